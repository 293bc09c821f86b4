"""Accuracy while a square of growing share of the image is hidden."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .trained import Trained

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)


def measure(trained: Trained) -> dict[str, Any]:
    """Return pairs of hidden share and accuracy, and the area under them over their range: a mean accuracy.

    The square has the training images' mean colour. Its side is a whole number of pixels, so its share differs a
    little from the wanted one.
    """
    images = trained.images
    side = images.val.shape[-1]
    curve = [(0.0, trained.share_right(trained.clean))]
    for blank in sorted({round(side * math.sqrt(share)) for share in SHARES} - {0, side}):
        hidden = occluded(images.val, blank, images.places, images.fill)
        curve.append(((blank / side) ** 2, trained.accuracy(hidden)))
    shares, accuracies = torch.tensor(curve, dtype=torch.float64).unbind(1)
    area = torch.trapezoid(accuracies, shares).item()
    return {"auc": area / curve[-1][0], "curve": [list(point) for point in curve]}


def occluded(images: Tensor, blank: int, places: Tensor, fill: Tensor) -> Tensor:
    """Hide a square of side `blank` in each image (N, C, S, S) at places (N, 2) in [0, 1) with a colour (C,)."""
    side = images.shape[-1]
    pixels = torch.arange(side, device=images.device)
    starts = (places * (side - blank + 1)).long()
    rows, columns = ((start[:, None] <= pixels) & (pixels < start[:, None] + blank) for start in starts.unbind(1))
    return torch.where(rows[:, None, :, None] & columns[:, None, None, :], fill[:, None, None], images)
