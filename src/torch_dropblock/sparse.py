"""The sparse path: draw the few seeds, then zero the memory that their blocks cover.

    rng_seed ── draw_seeds ──> seeds ── apply_blocks ──> output
                                          count_dropped: the scale, then
                                          scale_and_zero: rows of memory (CPU)
                                          apply_masked: a mask (other devices)

No random number is drawn per unit and no mask is kept: the backward pass has the RNG seed and draws the same seeds
again. `seeds` are positions in the valid seed regions of all planes, numbered plane by plane and row by row:
int64, sorted, none twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .geometry import Size, valid_region
from .rng import uniforms

# How many gaps are drawn at once. Below the size from which PyTorch splits an elementwise operation among threads,
# so the last bit of a logarithm, and with it the mask, cannot depend on the number of threads.
DRAWN_AT_ONCE = 16384
# How many bytes are worked on at once, so that the second pass over them finds them in the cache.
BYTES_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Blocks:
    """Where blocks may fall in a tensor of shape `(*lead, *size)`, and how densely.

    `shared` lists the leading dimensions along which one mask is repeated; a plane is an index into the others.
    """

    lead: Size
    size: Size
    block: Size
    gamma: float
    shared: tuple[int, ...] = ()

    @property
    def valid(self) -> Size:
        return valid_region(self.size, self.block)

    @property
    def own_lead(self) -> Size:
        """The leading dimensions with 1 for the shared ones: a mask of shape `(*own_lead, *size)` broadcasts."""
        return tuple(1 if i in self.shared else n for i, n in enumerate(self.lead))

    @property
    def positions(self) -> int:
        """How many seed positions there are."""
        return math.prod(self.own_lead) * math.prod(self.valid)

    @property
    def units(self) -> int:
        """How many entries the mask has."""
        return math.prod(self.own_lead) * math.prod(self.size)

    def batched(self, batch: int, *, shared: bool) -> Blocks:
        """The same blocks with one more leading dimension in front."""
        moved = tuple(i + 1 for i in self.shared)
        return replace(self, lead=(batch, *self.lead), shared=(0, *moved) if shared else moved)


# --- drawing -----------------------------------------------------------------------------------------------------


def draw_seeds(rng_seed: Tensor, blocks: Blocks) -> Tensor:
    """Make each position a seed with probability γ, independently.

    The gap from one seed to the next is then geometric, and `1 + floor(E / λ)` is such a gap if E is a standard
    exponential and λ = -log(1 - γ). So one random number is drawn per seed, and the seeds come sorted.

    On the CPU drawing goes on until the last position is passed. Elsewhere nothing is read back: what is drawn
    once is eight standard deviations more than expected, and the surplus stands at `blocks.positions`, which is
    one past the last position.
    """
    if blocks.gamma == 0.0:
        return torch.empty(0, dtype=torch.int64, device=rng_seed.device)
    if rng_seed.device.type == "cpu":
        return torch.cat(list(_seeds_up_to_the_last(rng_seed, blocks)))
    return draw_fixed_number(rng_seed, blocks)


def _seeds_up_to_the_last(rng_seed: Tensor, blocks: Blocks) -> Iterator[Tensor]:
    last, drawn = -1, 0
    while last < blocks.positions - 1:
        count = min(_enough(blocks.gamma * (blocks.positions - 1 - last)), DRAWN_AT_ONCE)
        seeds = _gaps(rng_seed, drawn, count, blocks).cumsum(0).add_(last)
        last, drawn = int(seeds[-1]), drawn + count
        yield seeds if last < blocks.positions else seeds[: int(torch.searchsorted(seeds, blocks.positions))]


def draw_fixed_number(rng_seed: Tensor, blocks: Blocks) -> Tensor:
    """`draw_seeds` without a value that the host must wait for."""
    gaps = _gaps(rng_seed, 0, _enough(blocks.gamma * blocks.positions), blocks)
    return gaps.cumsum(0).sub_(1).clamp_(max=blocks.positions)


def _enough(expected: float) -> int:
    return math.ceil(expected + 8 * math.sqrt(expected) + 16)


def _gaps(rng_seed: Tensor, start: int, count: int, blocks: Blocks) -> Tensor:
    lam = -math.log1p(-blocks.gamma) if blocks.gamma < 1 else math.inf
    gaps = uniforms(rng_seed, start, count).neg_().log1p_().div_(-lam).floor_()
    return gaps.clamp_(max=blocks.positions).to(torch.int64).add_(1)


# --- from seeds to memory ----------------------------------------------------------------------------------------


def _first_units(seeds: Tensor, blocks: Blocks, strides: Sequence[int]) -> Tensor:
    """The offset in memory of the first unit of each block.

    A seed is a number whose digits, in a mixed radix, are its plane's indices and its place in the valid region.
    The last digit steps by the last stride; each other digit adds what its own stride differs from a carry.
    """
    rank = len(blocks.lead)
    digits = [(n, strides[i]) for i, n in enumerate(blocks.lead) if i not in blocks.shared]
    digits += list(zip(blocks.valid, strides[rank:], strict=True))
    units = seeds * digits[-1][1]
    quotient, divisor = seeds, 1
    for (_, stride), (radix, inner) in zip(reversed(digits[:-1]), reversed(digits), strict=False):
        divisor *= radix
        if stride != radix * inner:
            quotient, divisor = quotient // divisor, 1
            units.add_(quotient, alpha=stride - radix * inner)
    return units


def _rows(blocks: Blocks, strides: Sequence[int]) -> tuple[int, Tensor]:
    """A block as stretches of contiguous memory: their length, and their offsets from the block's first unit."""
    rank = len(blocks.lead)
    axes = [(strides[i], blocks.lead[i]) for i in blocks.shared]
    axes += list(zip(strides[rank:], blocks.block, strict=True))
    length, offsets = 1, torch.zeros(1, dtype=torch.int64, device="cpu")
    for stride, extent in sorted(axis for axis in axes if axis[1] > 1):
        if stride == length and len(offsets) == 1:
            length *= extent
        else:
            offsets = (torch.arange(0, stride * extent, stride, device="cpu").unsqueeze(1) + offsets).flatten()
    return length, offsets


def _fill(memory: Tensor, first_units: Tensor, rows: tuple[int, Tensor], value: int) -> None:
    """Write `value` over whole blocks; `memory` is any tensor, of which the strides alone matter."""
    length, offsets = rows
    reach = 1 + sum((n - 1) * stride for n, stride in zip(memory.shape, memory.stride(), strict=True))
    starts = first_units if len(offsets) == 1 else (first_units.unsqueeze(1) + offsets).flatten()
    # row i of this view is the stretch of memory that starts at element i
    memory.as_strided((reach - length + 1, length), (1, 1)).index_fill_(0, starts, value)


def _spans(seeds: Tensor, total: int, step: int, positions: int) -> Iterator[tuple[int, int, slice]]:
    """Cut `total` equal parts, of `positions` seed positions each, into spans of `step`, with their seeds."""
    lows = range(0, total, step)
    bounds = torch.tensor([low * positions for low in lows[1:]], dtype=torch.int64, device="cpu")
    cuts = torch.searchsorted(seeds, bounds).tolist()
    for low, first, end in zip(lows, [0, *cuts], [*cuts, len(seeds)], strict=True):
        yield low, min(low + step, total), slice(first, end)


# --- counting and applying ---------------------------------------------------------------------------------------


def apply_blocks(
    input: Tensor, seeds: Tensor, blocks: Blocks, scale: float | Tensor | None = None, *, inplace: bool = False
) -> tuple[Tensor, float | Tensor]:
    """The input with the blocks of `seeds` zeroed and the rest scaled, and the scale, counted unless it is given."""
    out = input if inplace else torch.empty_like(input)
    if input.device.type != "cpu":
        return out, apply_masked(input, out, seeds, blocks, scale)
    if not isinstance(scale, float):
        kept = blocks.units - count_dropped(seeds, blocks)
        scale = blocks.units / kept if kept else 0.0
    scale_and_zero(input, out, seeds, scale, blocks)
    return out, scale


def apply_masked(input: Tensor, out: Tensor, seeds: Tensor, blocks: Blocks, scale: float | Tensor | None) -> Tensor:
    """Write the scaled input with its blocks zeroed into `out`, on any device, with nothing read back."""
    dropped = dropped_mask(seeds.to(input.device), blocks)
    op = torch.float64 if input.dtype == torch.float64 else torch.float32
    if not isinstance(scale, Tensor):
        kept = blocks.units - dropped.sum()
        widest = torch.float32 if input.device.type == "mps" else torch.float64
        scale = torch.full_like(kept, blocks.units, dtype=widest).div(kept).to(op)
    out.copy_(input.to(op) * scale).masked_fill_(dropped, 0)
    return scale


def dropped_mask(seeds: Tensor, blocks: Blocks) -> Tensor:
    """The mask that the seeds make, True where dropped: bool of shape `(*own_lead, *size)`, on the seeds' device."""
    plane = math.prod(blocks.size)
    # the surplus of `draw_fixed_number` marks one plane too many
    mask = torch.zeros(blocks.units + plane, dtype=torch.bool, device=seeds.device)
    own = replace(blocks, lead=(math.prod(blocks.own_lead),), shared=())
    strides = _contiguous_strides((1, *blocks.size))
    length, offsets = _rows(own, strides)
    _fill(mask, _first_units(seeds, own, strides), (length, offsets.to(seeds.device)), 1)
    return mask[: blocks.units].view(*blocks.own_lead, *blocks.size)


def count_dropped(seeds: Tensor, blocks: Blocks) -> int:
    """How many entries of the mask are dropped, on the CPU."""
    block_units, plane = math.prod(blocks.block), math.prod(blocks.size)
    if block_units == 1 or block_units == plane:  # blocks cannot overlap
        return len(seeds) * block_units
    planes, positions = math.prod(blocks.own_lead), math.prod(blocks.valid)
    at_once = min(planes, max(1, BYTES_AT_ONCE // plane))
    # 128 rows of 64-bit lanes: their sum cannot carry from one byte to the next, and it is many times faster than
    # counting bytes
    mask = torch.empty(-(-at_once * plane // 1024) * 1024, dtype=torch.uint8, device="cpu")
    own = replace(blocks, lead=(planes,), shared=())
    strides = _contiguous_strides((planes, *blocks.size))
    units, rows = _first_units(seeds, own, strides), _rows(own, strides)
    dropped = 0
    for low, _, span in _spans(seeds, planes, at_once, positions):
        _fill(mask.zero_(), units[span] - low * plane, rows, 1)
        dropped += int(mask.view(torch.int64).view(-1, 128).sum(1).view(torch.uint8).sum())
    return dropped


def scale_and_zero(input: Tensor, out: Tensor, seeds: Tensor, scale: float, blocks: Blocks) -> None:
    """Write `input * scale` into `out`, and 0 over the blocks, on the CPU; `out` may be `input`."""
    if not blocks.shared and _is_one_axis(input, len(blocks.lead)) and _is_one_axis(out, len(blocks.lead)):
        blocks = replace(blocks, lead=(math.prod(blocks.lead),))
        input, out = (t.view(*blocks.lead, *blocks.size) for t in (input, out))
    units, rows = _first_units(seeds, blocks, out.stride()), _rows(blocks, out.stride())
    total = blocks.lead[0]
    at_once = total if 0 in blocks.shared else max(1, BYTES_AT_ONCE * total // (out.numel() * out.itemsize))
    for low, high, span in _spans(seeds, total, at_once, blocks.positions // total):
        torch.mul(input[low:high], scale, out=out[low:high])
        _fill(out, units[span], rows, 0)


def _is_one_axis(tensor: Tensor, lead: int) -> bool:
    return all(tensor.stride(i - 1) == tensor.stride(i) * tensor.shape[i] for i in range(1, lead))


def _contiguous_strides(shape: Size) -> Size:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
