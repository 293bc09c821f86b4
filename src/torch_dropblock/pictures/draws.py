"""Masks for pictures, and the choice of one that drops a share near the mean.

The share that a single mask of large blocks drops may be far from the mean, and its picture would mislead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.checks import Rate
from ..layer.functional import drop_block_mask


def mask_of(
    key: int, size: tuple[int, int], block_size: tuple[int, int], keep_prob: float, rate: Rate = "exact"
) -> Tensor:
    """Return the mask of a key for one map of this size: True where a unit is kept."""
    return drop_block_mask((1, *size), block_size, keep_prob=keep_prob, rate=rate, key=key)[0]


def share_dropped(kept: Tensor) -> float:
    return 1 - int(kept.count_nonzero()) / kept.numel()


def first_near(shares: Iterable[float], mean: float) -> int:
    """Return the index of the first share that equals the mean in whole percent, or else of the first nearest.

    Shares after the first equal one are not computed.

    Examples:
        >>> first_near([0.27, 0.332, 0.304, 0.3], mean=0.3)
        2
    """
    nearest, least = 0, math.inf
    for index, share in enumerate(shares):
        distance = abs(round(100 * share) - round(100 * mean))
        if distance < least:
            nearest, least = index, distance
        if distance == 0:
            break
    return nearest


@dataclass(frozen=True)
class Draws:
    """The masks of consecutive keys.

    Args:
        key: the first key whose mask drops a share near the mean, as `first_near` chooses it.
        kept: the mask of that key, of shape (H, W).
        shares: the share dropped by the mask of each key.
    """

    key: int
    kept: Tensor
    shares: Tensor

    @classmethod
    def of(cls, size: tuple[int, int], block_size: tuple[int, int], keep_prob: float, keys: range) -> Draws:
        shares = [share_dropped(mask_of(key, size, block_size, keep_prob)) for key in keys]
        key = keys[first_near(shares, 1 - keep_prob)]
        return cls(key, mask_of(key, size, block_size, keep_prob), torch.tensor(shares, dtype=torch.float64))

    @property
    def share(self) -> float:
        """Share dropped by the mask shown."""
        return share_dropped(self.kept)

    @property
    def mean(self) -> float:
        """Mean share dropped."""
        return self.shares.mean().item()

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.shares.std().item() / math.sqrt(len(self.shares))
