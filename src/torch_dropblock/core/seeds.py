"""Where blocks may fall, and the drawing of their few seeds: no random number is drawn per unit.

Seeds are positions in the valid seed regions of all planes, numbered plane by plane and row by row: int64, sorted,
none twice. They are a pure function of the RNG seed, so the backward pass draws the same ones again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .checks import Rate
from .geometry import Size, clamp, gamma, valid_region
from .rng import RngSeed, Stream, device_of

# How many gaps are drawn at once, so that what is done with them stays in the cache and on one thread.
DRAWN_AT_ONCE = 16384


@dataclass
class Blocks:
    """Where blocks may fall in a tensor of shape `(*lead, *size)`, and how densely.

    `shared` lists the leading dimensions along which one mask is repeated; a plane is an index into the others. γ, and
    the `keep_prob` that it is solved for, are NaN where the device alone knows them.
    """

    lead: Size
    size: Size
    block: Size
    gamma: float
    shared: tuple[int, ...] = ()

    @classmethod
    @lru_cache(maxsize=1024)
    def of(cls, lead: Size, size: Size, block_size: Size, keep_prob: float, rate: Rate, share_channels: bool) -> Blocks:
        """What the arguments of a layer come to for an input of this shape."""
        block = clamp(size, block_size)
        shared = (len(lead) - 1,) if share_channels else ()
        density = keep_prob if math.isnan(keep_prob) else gamma(size, block, keep_prob, rate)
        return cls(lead, size, block, density, shared)

    def __post_init__(self) -> None:
        self.valid = valid_region(self.size, self.block)
        # with 1 for the shared dimensions: a mask of shape (*own_lead, *size) broadcasts
        self.own_lead = tuple(1 if i in self.shared else n for i, n in enumerate(self.lead))
        planes = math.prod(self.own_lead)
        self.positions = planes * math.prod(self.valid)  # of seeds, in all planes
        self.units = planes * math.prod(self.size)  # of the mask
        self.plans: dict[Any, Any] = {}  # of `native`, for tensors of each kind

    def planes(self) -> Blocks:
        """The same blocks in the mask, with one leading dimension: a shared mask is one plane."""
        return Blocks((math.prod(self.own_lead),), self.size, self.block, self.gamma)

    def batched(self, batch: int, *, shared: bool) -> Blocks:
        """The same blocks with one more leading dimension in front."""
        moved = tuple(i + 1 for i in self.shared)
        return replace(self, lead=(batch, *self.lead), shared=(0, *moved) if shared else moved)


def draw_seeds(rng_seed: RngSeed, blocks: Blocks) -> Tensor:
    """Make each position a seed with probability γ, independently.

    The gap from one seed to the next is then geometric, and `1 + floor(E / λ)` is such a gap if E is a standard
    exponential and λ = -log(1 - γ). So one random number is drawn per seed, and the seeds come sorted.

    On the CPU drawing goes on until the last position is passed. Elsewhere nothing is read back: what is drawn
    once is eight standard deviations more than expected, and the surplus stands at `blocks.positions`, which is
    one past the last position.
    """
    device = device_of(rng_seed)
    if blocks.gamma in (0.0, 1.0) or not blocks.positions:
        return torch.arange(blocks.positions if blocks.gamma else 0, dtype=torch.int64, device=device)
    if device.type == "cpu":
        drawn = list(_seeds_up_to_the_last(rng_seed, blocks))
        return torch.cat(drawn) if len(drawn) > 1 else drawn[0]
    return draw_fixed_number(rng_seed, blocks)


def _seeds_up_to_the_last(rng_seed: RngSeed, blocks: Blocks) -> Iterator[Tensor]:
    stream, last = Stream(rng_seed), -1
    while last < blocks.positions - 1:
        count = min(enough(blocks.gamma * (blocks.positions - 1 - last)), DRAWN_AT_ONCE)
        seeds = _gaps(stream, count, blocks).cumsum(0).add_(last)
        inside = int(torch.searchsorted(seeds, blocks.positions))
        yield seeds[:inside]
        last = int(seeds[-1]) if inside == count else blocks.positions


def draw_fixed_number(rng_seed: RngSeed, blocks: Blocks) -> Tensor:
    """`draw_seeds` without a value that the host must wait for."""
    gaps = _gaps(Stream(rng_seed), enough(blocks.gamma * blocks.positions), blocks)
    return gaps.cumsum(0).sub_(1).clamp_(max=blocks.positions)


def enough(expected: float) -> int:
    return math.ceil(expected + 8 * math.sqrt(expected) + 16)


def _gaps(stream: Stream, count: int, blocks: Blocks) -> Tensor:
    gaps = stream.negative_exponentials(count).div_(math.log1p(-blocks.gamma))
    return gaps.clamp_(max=blocks.positions).to(torch.int64).add_(1)
