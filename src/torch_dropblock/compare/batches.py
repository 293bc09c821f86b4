"""Images in memory, augmented a batch at a time on the device that trains.

All random numbers of an epoch are drawn when its `Batches` are made, on the CPU. They follow from PyTorch's seed, are
the same on every device, and no step waits for one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

# label of the images that fill a shard which has fewer than others; metrics ignore it
PADDING = -1


class Arrays(Dataset[tuple[Tensor, int]]):
    """Images in memory: uint8, shape (N, C, H, W)."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self._on: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return images and labels on a device; they are copied once."""
        if device not in self._on:
            self._on[device] = self.images.to(device), self.labels.to(device)
        return self._on[device]


@dataclass(frozen=True)
class Augmentation:
    """Augmentations of the training images of a row, in this order.

    Args:
        shift: largest shift in pixels, up, down, left and right; what comes in is black.
        mirror: mirror half of the images.
        policy: AutoAugment's policy, applied image by image.
        blank: side of the square that is blanked, 0 for none.
        fill: colour of the square and of what a policy moves in.
    """

    shift: int = 0
    mirror: bool = False
    policy: v2.AutoAugmentPolicy | None = None
    blank: int = 0
    fill: tuple[int, ...] = ()

    def draw(self, images: int, side: int) -> Tensor:
        """Draw the numbers of each image: rows and columns of the shift, of the square, and whether it is mirrored."""
        highest = (2 * self.shift + 1, 2 * self.shift + 1, side - self.blank + 1, side - self.blank + 1, 2)
        return torch.stack([torch.randint(0, high, (images,)) for high in highest], 1)

    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Augment images (N, C, S, S) with what was drawn for each (N, 5), on the same device."""
        top, left, *square, mirrored = drawn[..., None].unbind(1)
        shifted = _moved(images, self.shift, top, left, mirrored.bool() if self.mirror else None)
        if self.policy:
            augment = v2.AutoAugment(self.policy, fill=list(self.fill))
            shifted = torch.stack([augment(image) for image in shifted.cpu()]).to(images.device)
        if not self.blank:
            return shifted
        places = torch.arange(images.shape[-1], device=images.device)
        rows, columns = ((start <= places) & (places < start + self.blank) for start in square)
        fill = torch.tensor(self.fill, dtype=images.dtype).to(images.device, non_blocking=True)
        return torch.where(rows[:, None, :, None] & columns[:, None, None, :], fill[:, None, None], shifted)


def _moved(images: Tensor, shift: int, top: Tensor, left: Tensor, mirrored: Tensor | None) -> Tensor:
    """Crop each image at (top, left) of itself padded by `shift`, and mirror it."""
    places = torch.arange(images.shape[-1], device=images.device)
    rows, columns = top + places, left + places
    if mirrored is not None:
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = torch.nn.functional.pad(images, (shift,) * 4)
    each = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class Batches:
    """Batches of an epoch: pairs of images and labels on a device.

    Args:
        arrays: the images.
        order: index of each image of the epoch; `PADDING` stands for an image that does not count.
        size: images of a batch; a last batch may be smaller.
        device: where the batches are.
        augmentation: what happens to the images.
    """

    def __init__(
        self,
        arrays: Arrays,
        order: Tensor,
        size: int,
        device: torch.device,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.images, self.labels = arrays.on(device)
        self.augmentation, self.size = augmentation, size
        self.order = order.to(device)
        self.drawn = augmentation.draw(len(order), arrays.images.shape[-1]).to(device) if augmentation else order

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for order, drawn in zip(torch.split(self.order, self.size), torch.split(self.drawn, self.size), strict=True):
            images = self.images[order]
            labels = torch.where(order == PADDING, PADDING, self.labels[order])
            yield self.augmentation(images, drawn) if self.augmentation else images, labels
