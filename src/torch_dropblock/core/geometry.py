"""Sizes, the valid seed region, the seed probability γ and the keep rates that follow from it.

All formulas describe one plane: one feature map of spatial size `s`. A block has the size `b`, clamped to `s`, and
lies whole inside the map. So its seed, the first of its corners, lies in the valid seed region of size `v = s - b + 1`.
Each position of that region is a seed with probability γ, independently.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from . import checks, coverage
from .checks import WHOLE_MAP, BlockSize, Rate

Size = tuple[int, ...]


def seed_probability(size: int | Sequence[int], block_size: BlockSize, keep_prob: float, rate: Rate = "exact") -> float:
    """Return γ, the probability that a position of the valid seed region starts a dropped block.

    `"exact"` solves `mean over u of (1 - γ)^n(u) = keep_prob`, where `n(u)` is the number of blocks that cover the
    unit u. Units are then kept with probability `keep_prob` on average over the map. `"paper"` is equation 1 of
    the paper, which ignores the overlap of blocks and so drops fewer units than requested.

    Args:
        size: spatial size of the feature map, 1 to 3 ints; an int is a 1-d size.
        block_size: size of a block, one for all dimensions or one each: units, clamped to `size`, or `"30%"` of `size`.
        keep_prob: probability that a unit is kept, in [0, 1].
        rate: `"exact"` or `"paper"`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of its range.

    Source: Ghiasi, Lin, Le, "DropBlock", NeurIPS 2018, equation 1 (`"paper"`).

    Examples:
        >>> round(seed_probability((28, 28), 7, 0.9), 6)
        0.003534
        >>> round(seed_probability((28, 28), 7, 0.9, "paper"), 6)
        0.003306
    """
    size = checks.positive_ints("size", size, None)
    block = clamp(size, checks.block_size(block_size, len(size)))
    return gamma(size, block, checks.probability("keep_prob", keep_prob), checks.rate(rate))


def expected_keep_rate(size: int | Sequence[int], block_size: BlockSize, seed_prob: float) -> float:
    """Return the probability that a unit is kept, averaged over the map, for γ = `seed_prob`.

    Args:
        size: spatial size of the feature map, 1 to 3 ints; an int is a 1-d size.
        block_size: size of a block, one for all dimensions or one each: units, clamped to `size`, or `"30%"` of `size`.
        seed_prob: γ, in [0, 1].

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of its range.

    Examples:
        >>> gamma = seed_probability((28, 28), 7, 0.5, "paper")
        >>> round(1 - expected_keep_rate((28, 28), 7, gamma), 2)  # half was asked for
        0.37
    """
    size = checks.positive_ints("size", size, None)
    block = clamp(size, checks.block_size(block_size, len(size)))
    miss = 1.0 - checks.probability("seed_prob", seed_prob)
    return math.fsum(count * miss**n for n, count in coverage.exact(size, block)) / math.prod(size)


def keep_rate_map(size: int | Sequence[int], block_size: BlockSize, seed_prob: float) -> Tensor:
    """Return the probability that each unit is kept, `(1 - γ)^n(u)`: a float64 tensor of shape `size` on the CPU.

    Fewer blocks cover the units near the border, so these are kept more often.

    Args:
        size: spatial size of the feature map, 1 to 3 ints; an int is a 1-d size.
        block_size: size of a block, one for all dimensions or one each: units, clamped to `size`, or `"30%"` of `size`.
        seed_prob: γ, in [0, 1].

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of its range.

    Examples:
        >>> keep_rate_map(5, 3, 0.1)
        tensor([0.9000, 0.8100, 0.7290, 0.8100, 0.9000], dtype=torch.float64)
    """
    size = checks.positive_ints("size", size, None)
    block = clamp(size, checks.block_size(block_size, len(size)))
    miss = 1.0 - checks.probability("seed_prob", seed_prob)
    covering = torch.ones((), dtype=torch.float64, device="cpu")
    for s, b in zip(size, block, strict=True):
        axis = torch.tensor(_covering(s, b), dtype=torch.float64, device="cpu")
        covering = covering.unsqueeze(-1) * axis
    return torch.full_like(covering, miss) ** covering


def clamp(size: Size, block: Size) -> Size:
    """Return the size of a block in units, no larger than the map.

    A negative number is a share of the map, see `checks.block_size`: it is rounded down, as in darknet, to at least 1.
    """
    return tuple(min(s, b) if b > 0 else max(s * -b // WHOLE_MAP, 1) for s, b in zip(size, block, strict=True))


def part(block: Size, strength: float) -> Size:
    """Return a block size times a strength in [0, 1]: units rounded down to at least 1, shares in a hundred steps.

    Each size that a layer has once is kept in caches, so there must not be a size for each step of a training.
    """
    if strength == 1.0:
        return block
    hundredths = int(100 * strength + 1e-9)
    return tuple(max(int(b * strength + 1e-9), 1) if b > 0 else min(b * hundredths // 100, -1) for b in block)


def entries_text(block: Size) -> tuple[int | str, ...]:
    """Return the entries of a block size as a user gives them: `"30%"` for a share."""
    return tuple(b if b > 0 else f"{-100 * b / WHOLE_MAP:g}%" for b in block)


def valid_region(size: Size, block: Size) -> Size:
    """Return the size of the valid seed region of a clamped block."""
    return tuple(s - b + 1 for s, b in zip(size, block, strict=True))


@lru_cache(maxsize=4096)
def gamma(size: Size, block: Size, keep_prob: float, rate: Rate) -> float:
    """Return `seed_probability` for checked arguments and a clamped block; cached, since layers call it every step."""
    if rate == "paper":
        return (1.0 - keep_prob) * math.prod(size) / (math.prod(block) * math.prod(valid_region(size, block)))
    return -math.expm1(-_exact_lam(size, block, keep_prob))


@lru_cache(maxsize=4096)
def lam(size: Size, block: Size, keep_prob: float, rate: Rate) -> float:
    """Return λ = -log(1 - γ), to the last bits where γ is close to 1 too."""
    if rate == "exact":
        return _exact_lam(size, block, keep_prob)
    seed_prob = gamma(size, block, keep_prob, rate)
    return math.inf if seed_prob >= 1.0 else -math.log1p(-seed_prob)


def _exact_lam(size: Size, block: Size, keep_prob: float) -> float:
    """Solve `log(mean of exp(-λ n(u))) = log(keep_prob)` for λ by Newton's method.

    The left side is convex and decreasing in λ, so the iterates rise from 0 to the root without passing it; it is
    nearly linear, so they are few. For keep_prob above 0.5 the dropped share is summed, since 1 - keep_prob must be
    met precisely; otherwise the kept share.
    """
    if keep_prob < 1e-200:  # exp(-λ n) would leave the range of a float; γ is 1 to the last bit long before
        return math.inf
    histogram, units = coverage.short(size, block), math.prod(size)
    goal = math.log(keep_prob)
    lam = 0.0
    while True:
        if keep_prob > 0.5:
            dropped = [-count * math.expm1(-lam * n) for n, count in histogram]
            log_kept = math.log1p(-sum(dropped) / units)
            slope = sum(n * (count - d) for (n, count), d in zip(histogram, dropped, strict=True))
        else:
            kept = [count * math.exp(-lam * n) for n, count in histogram]
            log_kept = math.log(sum(kept) / units)
            slope = sum(n * k for (n, _), k in zip(histogram, kept, strict=True))
        step = (log_kept - goal) * math.exp(log_kept) * units / slope
        lam += step
        if step <= 1e-9 * lam:  # quadratic convergence: the next step would be below the last bit
            return lam


def _covering(s: int, b: int) -> list[int]:
    """Return, for each position along an axis of length s, the number of blocks of length b that cover it."""
    return [min(j + 1, s - j, b, s - b + 1) for j in range(s)]
