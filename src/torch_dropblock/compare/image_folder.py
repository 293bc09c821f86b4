"""A folder with one folder of images per class: each image counted once, and a count of what is left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset

from .image_file import read_image, suffixes

# made by Synology, QNAP, Windows, macOS, Python and file systems; dot files are skipped anyway
MACHINE_MADE = {
    "@eadir",
    "#recycle",
    "@recycle",
    "#snapshot",
    "$recycle.bin",
    "system volume information",
    "thumbs.db",
    "desktop.ini",
    "__macosx",
    "__pycache__",
    "lost+found",
}


class ImageFolder(Dataset[tuple[Image.Image, int]]):
    """Images and their class numbers.

    Attributes:
        classes: folder names, sorted.
        files: paths, class by class.
        targets: class number of each file.
    """

    def __init__(self, classes: list[str], files: list[str], targets: list[int]) -> None:
        self.classes, self.files, self.targets = classes, files, targets

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return read_image(self.files[index]), self.targets[index]


class Reader:
    """Read folders of images; no folder is read twice, even if links lead to it again.

    Attributes:
        left_out: count of skipped entries by kind.
    """

    def __init__(self) -> None:
        self.left_out: Counter[str] = Counter()
        self._suffixes = suffixes()
        # real path of each folder read: the class folder that its images belong to
        self._class_of: dict[str, Path] = {}

    def read(self, path: Path) -> ImageFolder:
        """Read the images of all folders in `path`, one class per folder.

        Raises:
            ValueError: there is no class, a class holds no image, or two classes share a folder.
            OSError: a folder cannot be read.
        """
        folders = folders_in(path)
        if not folders:
            raise ValueError(f"{path} must hold a folder of images for each class; it holds no folder")
        self._leave_out_loose(path)
        of_each = [self._images(folder) for folder in folders]
        empty = [folder.name for folder, files in zip(folders, of_each, strict=True) if not files]
        if empty:
            raise ValueError(f"{path} must hold a folder of images for each class; without an image: {some(empty)}")
        files = [file for files in of_each for file in files]
        targets = [number for number, files in enumerate(of_each) for _ in files]
        return ImageFolder([folder.name for folder in folders], files, targets)

    def _images(self, class_folder: Path) -> list[str]:
        """Return all image files below a folder, sorted by folder and name."""
        files: list[tuple[str, str]] = []
        waiting = [(str(class_folder), os.path.realpath(class_folder))]
        while waiting:
            folder, real = waiting.pop()
            if not self._is_new(folder, real, class_folder):
                continue
            for entry in visible(folder):
                if _is_folder(entry):
                    within = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real, entry.name)
                    if Path(real).is_relative_to(within):  # the link leads to a parent folder
                        self.left_out["links to a folder around them"] += 1
                    else:
                        waiting.append((entry.path, within))
                elif self._is_image(entry.name):
                    files.append((folder, entry.name))
        return [os.path.join(*file) for file in sorted(files)]

    def _is_new(self, folder: str, real: str, class_folder: Path) -> bool:
        if real not in self._class_of:
            self._class_of[real] = class_folder
            return True
        if self._class_of[real] != class_folder:
            raise ValueError(
                f"folders must belong to one class of one part each, got {folder}, which leads to {real} of "
                f"{self._class_of[real]} too; remove the link"
            )
        self.left_out["links to a folder of the same class"] += 1
        return False

    def _is_image(self, name: str) -> bool:
        suffix = os.path.splitext(name)[1].lower()
        if suffix in self._suffixes:
            return True
        self.left_out[f"{suffix} files" if suffix else "files without a suffix"] += 1
        return False

    def _leave_out_loose(self, path: Path) -> None:
        loose = sum(self._is_image(entry.name) for entry in visible(path) if not _is_folder(entry))
        if loose:
            self.left_out["images outside of the classes' folders"] += loose


def visible(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder by name, without hidden and machine-made ones."""
    with os.scandir(folder) as entries:
        kept = [e for e in entries if not e.name.startswith(".") and e.name.lower() not in MACHINE_MADE]
    return sorted(kept, key=lambda entry: entry.name)


def folders_in(folder: Path) -> list[Path]:
    return [folder / entry.name for entry in visible(folder) if _is_folder(entry)]


def holds_images(folder: Path) -> bool:
    """Return True if the folder directly contains an image."""
    known = suffixes()
    return any(Path(entry.name).suffix.lower() in known for entry in visible(folder) if not _is_folder(entry))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()  # is_dir raises on a link to itself


def some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
