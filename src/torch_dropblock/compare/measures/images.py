"""Images on which networks are measured: the same for all runs, on the device, each variant made once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from sklearn.datasets import load_digits, load_sample_image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from ..batches import Arrays
from ..source import Source
from .corruptions import LEVELS, corrupted

MOST = 10_000
MOST_PIECES = 500
# corrupted images of more bytes than this are made again for each run
KEPT_BYTES = 2**31
SEED = 0


@dataclass
class Images:
    """Images to measure on.

    Args:
        val: validation images, uint8 (N, C, S, S).
        labels: their classes (N,).
        fill: mean colour of the training images (C,).
        others: images of other things, uint8 (M, C, S, S).
        others_name: what these are.
    """

    val: Tensor
    labels: Tensor
    fill: Tensor
    others: Tensor
    others_name: str

    @cached_property
    def places(self) -> Tensor:
        """Place of each image's occluding square (N, 2), in [0, 1): the same for all sizes and all networks."""
        return torch.rand((len(self.val), 2), generator=_generator()).to(self.val.device)

    def corrupted(self) -> Iterator[tuple[str, float, Tensor]]:
        """Yield the kind of each corruption, its level, and all images with it."""
        return iter(self._kept) if len(LEVELS) * 3 * self.val.nbytes <= KEPT_BYTES else self._made()

    @cached_property
    def _kept(self) -> list[tuple[str, float, Tensor]]:
        return list(self._made())

    def _made(self) -> Iterator[tuple[str, float, Tensor]]:
        for kind, (small, large) in LEVELS.items():
            for level in small if self.val.shape[-1] <= 64 else large:
                yield kind, level, corrupted(self.val, kind, level, _generator())


def images_of(source: Source, device: torch.device, workers: int = 0) -> Images:
    """Load up to 10,000 validation images, evenly spaced, onto a device."""
    chosen = range(0, len(source.val), math.ceil(len(source.val) / MOST))  # type: ignore[arg-type]
    if isinstance(source.val, Arrays):
        val, labels = source.val.images[list(chosen)], source.val.labels[list(chosen)]
    else:
        subset = torch.utils.data.Subset(source.val_as_is(), chosen)
        pairs = list(DataLoader(subset, 64, num_workers=workers, generator=torch.Generator()))
        val, labels = torch.cat([images for images, _ in pairs]), torch.cat([labels for _, labels in pairs])
    name, others = _others(source)
    return Images(
        val.to(device), labels.to(device), torch.tensor(source.mean_byte, dtype=torch.uint8).to(device),
        others.to(device), name,
    )  # fmt: skip


def _others(source: Source) -> tuple[str, Tensor]:
    """Return images that show none of the classes: handwritten digits, or pieces of a photograph if these are digits.

    Both come with scikit-learn.
    """
    if source.are_digits:
        name, others = "photograph", _pieces(load_sample_image("china.jpg"), source.side)
    else:
        digits = torch.from_numpy(load_digits().images * (255 / 16)).round().to(torch.uint8)[:, None]
        name, others = "digits", v2.functional.resize(digits, [source.side, source.side], antialias=True)
    if others.shape[1] != source.channels:
        others = others.expand(-1, 3, -1, -1) if source.channels == 3 else v2.functional.rgb_to_grayscale(others)
    return name, others


def _pieces(photograph: np.ndarray, side: int) -> Tensor:
    """Cut a photograph into square pieces, evenly spaced."""
    pixels = torch.from_numpy(photograph.copy()).permute(2, 0, 1)
    pieces = pixels.unfold(1, side, side).unfold(2, side, side).permute(1, 2, 0, 3, 4).flatten(0, 1)
    return pieces[:: math.ceil(len(pieces) / MOST_PIECES)]


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)
