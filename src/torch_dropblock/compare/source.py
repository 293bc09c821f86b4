"""Images of a study: a fixed split, and the augmentation of each row.

Images stay bytes until they are on the device, where `Source.mean` and `std` normalise them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from .batches import Augmentation
from .rows import Row

HELD_OUT = 0.2
SPLIT_SEED = 0


@dataclass(frozen=True)
class Source:
    """Images for training and for validation: pairs of a uint8 tensor (C, H, W) or a PIL image, and a class.

    Args:
        train: raw images to train on.
        val: raw images to validate on.
        classes: number of classes.
        channels: channels of an image.
        side: side of an image as the network sees it.
        mean: mean of each channel, in [0, 1].
        std: standard deviation of each channel, on the same scale.
        policy: AutoAugment's policy.
        shift: largest shift of a training image in memory, in pixels.
        mirror: mirror half of the training images in memory.
        are_digits: the images are scikit-learn's digits.
        place: random transforms that bring a training image from a file to `side`.
        place_val: transforms that bring a validation image from a file to `side`.
        files: paths of all images, if they are files.
        notes: lines for the user about what was found and what was left out.
    """

    train: Dataset[Any]
    val: Dataset[Any]
    classes: int
    channels: int
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    policy: v2.AutoAugmentPolicy
    shift: int = 0
    mirror: bool = False
    are_digits: bool = False
    place: tuple[Any, ...] = ()
    place_val: tuple[Any, ...] = ()
    files: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def counts(self) -> dict[str, int]:
        return {"train": len(self.train), "val": len(self.val), "classes": self.classes}  # type: ignore[arg-type]

    def augmentation_of(self, row: Row) -> Augmentation:
        """Return the augmentation of a row for images in memory.

        Raises:
            ValueError: the row would blank no pixel of such images, or all of them.
        """
        blank = round(self.side * math.sqrt(row.cutout))
        if row.cutout and not 0 < blank < self.side:
            raise ValueError(
                f"row {row.name!r}: area {row.cutout:g} of {self.side}×{self.side} pixels is a square of side "
                f"{blank}; it must have at least 1 and less than {self.side}"
            )
        policy = self.policy if row.autoaugment else None
        return Augmentation(self.shift, self.mirror, policy, blank, tuple(self.mean_byte))

    def train_of(self, row: Row) -> Transformed:
        """Return the training images of files with the augmentation of a row."""
        steps = [*self.place]
        if row.autoaugment:
            steps.append(v2.AutoAugment(self.policy, fill=self.mean_byte))
        steps.append(v2.PILToTensor())
        if row.cutout:
            steps.append(v2.RandomErasing(1.0, (row.cutout, row.cutout), (1.0, 1.0), self.mean_byte))
        return Transformed(self.train, v2.Compose(steps))

    def val_as_is(self) -> Transformed:
        return Transformed(self.val, v2.Compose([*self.place_val, v2.PILToTensor()]))

    @property
    def mean_byte(self) -> list[int]:
        """Mean colour of all images, which becomes zero after normalisation."""
        return [round(255 * mean) for mean in self.mean]


class Transformed(Dataset[tuple[Tensor, int]]):
    def __init__(self, images: Dataset[Any], transform: Callable[[Any], Tensor]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        return self.transform(image), int(label)


def split(labels: Sequence[int], first: int | float, purpose: str) -> tuple[list[int], list[int]]:
    """Split into two parts with the same share of each class; the split is deterministic."""
    try:
        parts = train_test_split(range(len(labels)), train_size=first, stratify=labels, random_state=SPLIT_SEED)
    except ValueError as error:  # a part has fewer images than there are classes, or a class has a single image
        raise ValueError(
            f"{purpose}: {len(labels)} images of {len(set(labels))} classes cannot be split in two parts with images "
            f"of each class ({error})"
        ) from None
    first_part, second_part = parts
    _swap_in_missing(first_part, second_part, labels)
    _swap_in_missing(second_part, first_part, labels)
    return first_part, second_part


def _swap_in_missing(part: list[int], other: list[int], labels: Sequence[int]) -> None:
    """Give each class that a part lacks one image, swapped for one of the part's largest class.

    The share of a rare class may round to no image.
    """
    counts = Counter(labels[i] for i in part)
    for label in sorted(set(labels) - counts.keys()):
        most = counts.most_common(1)[0][0]
        mine = max(k for k, i in enumerate(part) if labels[i] == most)
        theirs = next(k for k, i in enumerate(other) if labels[i] == label)
        part[mine], other[theirs] = other[theirs], part[mine]
        counts.update({label: 1, most: -1})
