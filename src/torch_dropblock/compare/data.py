"""The images of a study: where they come from, a split that never changes, and what a row does to them.

Images stay bytes until they are on the device; `Source.mean` and `std` make numbers of them there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision import datasets
from torchvision.transforms import v2

from .image_folder import image_folder
from .rows import Row
from .settings import Settings

NAMES = ("digits", "fashion-mnist", "cifar10")
FOLDER = "folder:"
# of ImageNet, as every network of torchvision's was trained
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HELD_OUT = 0.2
SPLIT_SEED = 0


@dataclass(frozen=True)
class Source:
    """Images for training and for validation: pairs of a uint8 tensor (C, H, W) or a PIL image, and a class.

    Args:
        train: raw images to train on.
        val: raw images to validate on, the same for all runs.
        classes: number of classes.
        channels: channels of an image.
        side: side of an image as the network sees it.
        mean: of each channel, from 0 to 1.
        std: of each channel, from 0 to 1.
        place: what brings a training image to its side, at random.
        place_val: what brings an image for validation to its side.
        policy: of AutoAugment.
    """

    train: Dataset[Any]
    val: Dataset[Any]
    classes: int
    channels: int
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    place: tuple[Any, ...]
    place_val: tuple[Any, ...]
    policy: v2.AutoAugmentPolicy

    @property
    def counts(self) -> dict[str, int]:
        return {"train": len(self.train), "val": len(self.val), "classes": self.classes}  # type: ignore[arg-type]

    def train_of(self, row: Row) -> Transformed:
        """The training images as a row has them.

        Raises:
            ValueError: what the row blanks is no pixel of such images, or all of them.
        """
        steps = [*self.place]
        if row.autoaugment:
            steps.append(v2.AutoAugment(self.policy, fill=self._mean_byte))
        steps.append(v2.PILToTensor())
        if row.cutout:
            blank = round(self.side * math.sqrt(row.cutout))
            if not 0 < blank < self.side:  # where RandomErasing does nothing, without a word
                raise ValueError(
                    f"row {row.name!r}: area {row.cutout:g} of {self.side}×{self.side} pixels is a square of side "
                    f"{blank}; it must have at least 1 and less than {self.side}"
                )
            # the mean of all images is what zero is after normalisation
            erase = v2.RandomErasing(1.0, (row.cutout, row.cutout), (1.0, 1.0), self._mean_byte)
            steps.append(erase)
        return Transformed(self.train, v2.Compose(steps))

    def val_as_is(self) -> Transformed:
        return Transformed(self.val, v2.Compose([*self.place_val, v2.PILToTensor()]))

    @property
    def _mean_byte(self) -> list[int]:
        return [round(255 * mean) for mean in self.mean]


class Transformed(Dataset[tuple[Tensor, int]]):
    def __init__(self, images: Dataset[Any], transform: Callable[[Any], Tensor]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        return self.transform(image), int(label)


class Arrays(Dataset[tuple[Tensor, int]]):
    """Images (N, C, H, W) of bytes, in memory."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def load(settings: Settings, data_dir: Path, download: bool = False) -> Source:
    """The images that the settings name.

    Raises:
        ValueError: there are no such data, or too few of them.
        OSError: a folder cannot be read.
    """
    if settings.data.startswith(FOLDER):
        source, labels = _folder(Path(settings.data.removeprefix(FOLDER)).expanduser(), settings.image_size)
    elif settings.data in NAMES:
        source, labels = _arrays(settings.data, data_dir, download)
    else:
        raise ValueError(f"data must be {', '.join(NAMES)} or folder:DIR, got {settings.data!r}")
    if settings.limit_train is None:
        return source
    if not source.classes <= settings.limit_train <= len(labels):
        raise ValueError(
            f"limit_train must be from {source.classes}, one image of each class, to all {len(labels)} of them, "
            f"got {settings.limit_train}"
        )
    if settings.limit_train == len(labels):
        return source
    part, _ = _split(labels, settings.limit_train, f"limit_train {settings.limit_train}")
    return replace(source, train=Subset(source.train, part))


def _split(labels: Sequence[int], first: int | float, purpose: str) -> tuple[list[int], list[int]]:
    """Two parts with the same share of each class, always the same two."""
    try:
        parts = train_test_split(range(len(labels)), train_size=first, stratify=labels, random_state=SPLIT_SEED)
    except ValueError as error:  # one part has less images than there are classes, or a class has one image only
        raise ValueError(
            f"{purpose}: {len(labels)} images of {len(set(labels))} classes cannot be split in two parts with images "
            f"of each class ({error})"
        ) from None
    first_part, second_part = parts
    _swap_in_missing(first_part, second_part, labels)
    _swap_in_missing(second_part, first_part, labels)
    return first_part, second_part


def _swap_in_missing(part: list[int], other: list[int], labels: Sequence[int]) -> None:
    """A rare class's share of a part may round to no image: it gets one, for one of the class that has the most."""
    counts = Counter(labels[i] for i in part)
    for label in sorted(set(labels) - counts.keys()):
        most = counts.most_common(1)[0][0]
        mine = max(k for k, i in enumerate(part) if labels[i] == most)
        theirs = next(k for k, i in enumerate(other) if labels[i] == label)
        part[mine], other[theirs] = other[theirs], part[mine]
        counts.update({label: 1, most: -1})


# --- arrays ------------------------------------------------------------------------------------------------------


def _arrays(name: str, data_dir: Path, download: bool) -> tuple[Source, list[int]]:
    if name == "digits":
        (train, labels), (val, val_labels) = _digits()
        policy, flip = v2.AutoAugmentPolicy.SVHN, []  # a digit in a mirror is another digit, or none
    elif name == "fashion-mnist":
        (train, labels), (val, val_labels) = (_fashion_mnist(data_dir, part, download) for part in (True, False))
        policy, flip = v2.AutoAugmentPolicy.CIFAR10, [v2.RandomHorizontalFlip()]
    else:
        (train, labels), (val, val_labels) = (_cifar10(data_dir, part, download) for part in (True, False))
        policy, flip = v2.AutoAugmentPolicy.CIFAR10, [v2.RandomHorizontalFlip()]
    side = train.shape[-1]
    pixels = train.float().div_(255)
    source = Source(
        train=Arrays(train, labels),
        val=Arrays(val, val_labels),
        classes=int(labels.max()) + 1,
        channels=train.shape[1],
        side=side,
        mean=tuple(pixels.mean((0, 2, 3)).tolist()),
        std=tuple(pixels.std((0, 2, 3)).tolist()),
        place=(v2.RandomCrop(side, padding=side // 8), *flip),
        place_val=(),
        policy=policy,
    )
    return source, labels.tolist()


Part = tuple[Tensor, Tensor]


def _digits() -> tuple[Part, Part]:
    """1,797 handwritten digits of 8×8; a fifth for validation."""
    digits = load_digits()
    # 17 shades of grey
    images = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(digits.target)
    train, val = _split(labels.tolist(), 1.0 - HELD_OUT, "digits")
    return (images[train], labels[train]), (images[val], labels[val])


def _fashion_mnist(data_dir: Path, train: bool, download: bool) -> Part:
    data = _from_torchvision(datasets.FashionMNIST, "fashion-mnist", data_dir, train, download)
    return data.data[:, None], data.targets


def _cifar10(data_dir: Path, train: bool, download: bool) -> Part:
    part = "train" if train else "test"
    files = [data_dir / "cifar10" / f"{part}_{what}.npy" for what in ("images", "labels")]
    if all(file.exists() for file in files):
        images, labels = map(_array, files)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or images.shape[1] != images.shape[2]:
            raise ValueError(
                f"{files[0]} must hold uint8 images of shape (N, S, S, 3), it holds {images.dtype} of {images.shape}"
            )
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or labels.min(initial=0) < 0:
            raise ValueError(
                f"{files[1]} must hold a class from 0 for each of the {len(images)} images of {files[0].name}, it "
                f"holds {labels.dtype} of {labels.shape}"
            )
        labels = labels.astype(np.int64)
    else:
        data = _from_torchvision(datasets.CIFAR10, "cifar10", data_dir, train, download)
        images, labels = data.data, data.targets
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.as_tensor(labels)


def _array(file: Path) -> Any:
    try:
        return np.load(file)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{file} is no array of NumPy, or a damaged one: {error}") from error


def _from_torchvision(kind: Any, name: str, data_dir: Path, train: bool, download: bool) -> Any:
    if download:
        data_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(data_dir / f".{name}.lock"):  # the processes of a training come here together
            try:
                return kind(data_dir, train=train, download=True)
            except RuntimeError as error:
                raise ValueError(f"cannot get {name} into the folder {data_dir}: {error}") from error
    try:
        return kind(data_dir, train=train)
    except (RuntimeError, ValueError, AssertionError, EOFError) as error:  # of damaged files torchvision raises any
        raise ValueError(
            f"the folder {data_dir} does not hold {name}, or not whole: --data-dir names where it is, "
            "--download gets it"
        ) from error


# --- folders -----------------------------------------------------------------------------------------------------


def _folder(path: Path, side: int) -> tuple[Source, list[int]]:
    """DIR/train/CLASS/* and DIR/val/CLASS/*; or DIR/CLASS/*, of which a fifth of each class is for validation."""
    if not path.is_dir():
        raise ValueError(f"there is no folder {path} of images")
    val_path = next((path / name for name in ("val", "test", "valid") if (path / name).is_dir()), None)
    if (path / "train").is_dir() != (val_path is not None):
        raise ValueError(f"{path} must hold train and val, or a folder for each class; it holds one of the two only")
    if val_path:
        train, val = map(image_folder, (path / "train", val_path))
        if train.classes != val.classes:
            only = sorted(set(train.classes) ^ set(val.classes))
            raise ValueError(f"train and {val_path.name} of {path} must have the same classes; in one: {some(only)}")
        labels, parts = train.targets, (train, val)
    else:
        whole = image_folder(path)
        few = [name for name, number in whole.class_to_idx.items() if whole.targets.count(number) < 2]
        if few:
            raise ValueError(f"each class of {path} must have two images, one of them to validate on: {some(few)}")
        kept, held_out = _split(whole.targets, 1.0 - HELD_OUT, str(path))
        labels, parts = [whole.targets[i] for i in kept], (Subset(whole, kept), Subset(whole, held_out))
        train = whole
    if len(train.classes) < 2:
        raise ValueError(f"{path} must have two classes or more, it has {train.classes[0]!r} only")
    source = Source(
        train=parts[0],
        val=parts[1],
        classes=len(train.classes),
        channels=3,
        side=side,
        mean=MEAN,
        std=STD,
        place=(v2.RandomResizedCrop(side, antialias=True), v2.RandomHorizontalFlip()),
        place_val=(v2.Resize(round(side * 256 / 224), antialias=True), v2.CenterCrop(side)),
        policy=v2.AutoAugmentPolicy.IMAGENET,
    )
    return source, labels


def some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
