"""Detection of the training and validation folders of a data set, under their common names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from .image_folder import folders_in, holds_images, some

# words in folder names; for validation, "val" folders take precedence over "test" folders
WORDS = {
    "train": {"train", "training", "trainset"},
    "val": {"val", "valid", "validation", "validate", "validating", "valset", "eval", "evaluation", "dev"},
    "test": {"test", "testing", "tests", "testset"},
}


@dataclass(frozen=True)
class Parts:
    """Folders with one folder per class each.

    Args:
        train: folder of the training images; of all images if `val` is None.
        val: folder of the validation images.
        left_out: names of the other folders.
    """

    train: Path
    val: Path | None = None
    left_out: tuple[str, ...] = ()


def parts_of(path: Path) -> Parts:
    """Find the parts of a data set.

    Raises:
        ValueError: only one of the two parts exists, a part exists more than once, or the parts have other names.
        OSError: a folder cannot be read.
    """
    path = _unwrapped(path, of_part=False)
    folders = folders_in(path)
    kinds = {folder: _kind(folder.name) for folder in folders}
    all_named = all(kinds.values())
    # a class may be called "test tube", but holds images rather than folders
    of_kind = {
        kind: [f for f in folders if kinds[f] == kind and (all_named or _is_one_word(f) or folders_in(f))]
        for kind in WORDS
    }
    if not any(of_kind.values()):
        _refuse_unnamed_parts(path, folders)
        return Parts(path)
    validating = of_kind["val"] or of_kind["test"]
    if not of_kind["train"] or not validating:
        found = some([folder.name for folders in of_kind.values() for folder in folders])
        raise ValueError(
            f"{path} must hold train and val, or a folder for each class; it holds one of the two only: {found}"
        )
    train, val = _the_one(path, "train", of_kind["train"]), _the_one(path, "validate", validating)
    left_out = tuple(folder.name for folder in folders if folder not in (train, val))
    return Parts(_unwrapped(train, of_part=True), _unwrapped(val, of_part=True), left_out)


def _words(name: str) -> list[str]:
    return re.findall("[a-z]+", re.sub("([a-z])([A-Z])", r"\1 \2", name).lower())


def _kind(name: str) -> str | None:
    kinds = [kind for kind, words in WORDS.items() if words & set(_words(name))]
    return kinds[0] if len(kinds) == 1 else None


def _is_one_word(folder: Path) -> bool:
    return len(_words(folder.name)) == 1


def _the_one(path: Path, purpose: str, folders: list[Path]) -> Path:
    exact = [folder for folder in folders if _is_one_word(folder)]
    if len(folders) > 1 and len(exact) != 1:
        names = ", ".join(folder.name for folder in folders)
        raise ValueError(f"{path} must hold one folder to {purpose} on, got {names}; move the others away")
    return (exact or folders)[0]


def _unwrapped(path: Path, of_part: bool) -> Path:
    """Descend through folders whose only content is one folder, which unpacked archives often leave behind."""
    seen = set()
    while path.resolve() not in seen:
        seen.add(path.resolve())
        inner = folders_in(path)
        if len(inner) != 1 or holds_images(path) or not folders_in(inner[0]):
            break
        if _kind(inner[0].name) and not of_part:  # the other part is missing
            break
        path = inner[0]
    return path


def _refuse_unnamed_parts(path: Path, folders: list[Path]) -> None:
    """Raise if several folders look like parts: they hold no image themselves, and folders of the same names."""
    inside = {folder: {f.name for f in folders_in(folder)} for folder in folders if not holds_images(folder)}
    for names in inside.values():
        alike = [other.name for other, others in inside.items() if len(names & others) > 1]
        if len(alike) > 1:
            common = some(sorted(names & inside[path / alike[-1]]))
            raise ValueError(
                f"{path} must hold train and val, or a folder for each class; {some(alike)} hold no images but the "
                f"same folders ({common}), as parts do: call them train and val, or put each class's images into one "
                "folder"
            )
