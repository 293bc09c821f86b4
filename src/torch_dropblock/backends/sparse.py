"""The sparse backend: plain PyTorch operations that zero the memory covered by blocks.

    key ── draw_seeds ──> seeds ── count_dropped: the scale (CPU) ── scale_and_zero: rows of memory (CPU)
                                └─ dropped_mask: a mask (other devices) ── masked

No mask is saved: the backward pass draws the same seeds again from the key.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from ..core.blocks import Blocks
from ..core.geometry import Size
from ..core.keys import Key
from ..core.seeds import draw_seeds

# Bytes processed at once, so that the second pass over them finds them in the cache.
BYTES_AT_ONCE = 1 << 24
# Bytes of the mask counted at once: so little memory stays in the cache between calls. For a whole mask the operating
# system would have to clear new pages.
COUNTED_AT_ONCE = 1 << 18
WHOLE = slice(None)
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


# --- from seeds to memory ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cover:
    """The memory that blocks cover in a tensor with given strides, as contiguous stretches of `length` elements.

    `first` holds the offset of each block's first unit, in the order of the seeds. The stretches of a block start at
    `offsets` from there. `steps` describes the same offsets by an extent and a stride for each axis.
    """

    first: Tensor
    length: int
    offsets: tuple[int, ...]
    steps: tuple[tuple[int, int], ...]

    @cached_property
    def starts(self) -> Tensor:
        """Offset of each stretch, block by block."""
        first, device = self.first.unsqueeze(1), self.first.device
        if len(self.offsets) == 1:
            return self.first
        if device.type == "cpu":
            return (first + torch.tensor(self.offsets, dtype=torch.int64, device="cpu")).flatten()
        # copying a list to a GPU would make the host wait; numbers in kernel launches do not
        for extent, stride in reversed(self.steps):
            axis = torch.arange(0, extent * stride, stride, dtype=torch.int64, device=device)
            first = (first.unsqueeze(-1) + axis).flatten(1)
        return first.flatten()

    def fill(self, memory: Tensor, value: float, span: slice = WHOLE, before: int = 0) -> None:
        """Write `value` over the blocks of the seeds in `span`; `memory` starts `before` elements into the tensor."""
        reach = 1 + sum((n - 1) * stride for n, stride in zip(memory.shape, memory.stride(), strict=True))
        if self.length == 1 and len(self.first) > 2048:
            # element by element: one pass for each offset keeps the index in the cache
            first = self.first[span] - before if before else self.first[span]
            elements = memory.as_strided((reach,), (1,))
            for offset in self.offsets:
                elements[offset:].index_fill_(0, first, value)
            return
        n = len(self.offsets)
        starts = self.starts if span == WHOLE else self.starts[span.start * n : span.stop * n]
        # row i of this view is the stretch of memory that starts at element i
        rows = memory.as_strided((reach - self.length + 1, self.length), (1, 1))
        rows.index_fill_(0, starts - before if before else starts, value)


def cover(seeds: Tensor, blocks: Blocks, strides: Size) -> Cover:
    """Return the memory that the blocks of `seeds` cover in a tensor of these strides."""
    rank = len(blocks.lead)
    axes = [(strides[i], blocks.lead[i]) for i in blocks.shared]
    axes += zip(strides[rank:], blocks.block, strict=True)
    return Cover(_first_units(seeds, blocks, strides), *_stretches(tuple(axes)))


def _first_units(seeds: Tensor, blocks: Blocks, strides: Size) -> Tensor:
    """Return the offset in memory of the first unit of each block.

    The digits of a seed's number, in a mixed radix, are its plane's indices and its place in the valid region.
    Multiply the number by the stride of the last digit. Then each other digit adds the difference between its own
    stride and what a carry into it already contributed.
    """
    rank = len(blocks.lead)
    digits = [(n, strides[i]) for i, n in enumerate(blocks.lead) if i not in blocks.shared]
    digits += zip(blocks.valid, strides[rank:], strict=True)
    units = seeds * digits[-1][1]
    quotient, divisor = seeds, 1
    for (_, stride), (radix, inner) in zip(reversed(digits[:-1]), reversed(digits), strict=False):
        divisor *= radix
        if stride != radix * inner:
            if divisor > 1:
                # exact below 2^53, and twice as fast as integer division
                quotient, divisor = quotient.to(torch.float64).div_(divisor).to(torch.int64), 1
            units.add_(quotient, alpha=stride - radix * inner)
    return units


@lru_cache(maxsize=1024)
def _stretches(axes: tuple[tuple[int, int], ...]) -> tuple[int, tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Turn a box of memory (a stride and an extent per axis) into stretches: `length`, `offsets` and `steps`."""
    length, offsets = 1, [0]
    steps: list[tuple[int, int]] = []
    for stride, extent in sorted(axis for axis in axes if axis[1] > 1):
        if stride == length and not steps:
            length *= extent
        else:
            offsets = [i * stride + offset for i in range(extent) for offset in offsets]
            steps.append((extent, stride))
    return length, tuple(offsets), tuple(steps)


def _spans(seeds: Tensor, blocks: Blocks, total: int, step: int) -> Iterator[tuple[int, int, slice]]:
    """Cut `total` equal parts into spans of `step`, each with the seeds of every group of streams that overlaps it."""
    if total <= step:
        yield 0, total, WHOLE
        return
    part, group = blocks.positions // total, blocks.streams.group
    lows = range(0, total, step)
    highs = [min(low + step, total) for low in lows]
    bounds = [low * part // group * group for low in lows] + [-(-high * part // group) * group for high in highs]
    # seeds are in order of their groups, though unsorted within a group
    cuts = torch.searchsorted(seeds, torch.tensor(bounds, dtype=torch.int64, device="cpu")).tolist()
    for low, high, first, end in zip(lows, highs, cuts, cuts[len(highs) :], strict=False):
        yield low, high, slice(first, end)


# --- counting and applying ---------------------------------------------------------------------------------------


def why_not(input: Tensor, blocks: Blocks) -> str | None:
    """Return None: this backend serves every input."""
    return None


def drop(
    input: Tensor, output: Tensor, key: Key, blocks: Blocks, table: Tensor, scale: float | Tensor | None = None
) -> float | Tensor:
    """Write the input with blocks zeroed and the rest scaled into `output`, which may be the input.

    Returns the scale, counted unless it is given.
    """
    return apply_seeds(input, output, draw_seeds(key, blocks, table), blocks, scale)


def apply_seeds(
    input: Tensor, out: Tensor, seeds: Tensor, blocks: Blocks, scale: float | Tensor | None = None
) -> float | Tensor:
    """Write the input with the blocks of `seeds` zeroed and the rest scaled into `out`, and return the scale."""
    if input.device.type != "cpu":
        return apply_masked(input, out, seeds, blocks, scale)
    if not blocks.shared and all(_is_one_axis(t, len(blocks.lead)) for t in (input, out)):
        blocks = blocks.flat
        input, out = (t.view(*blocks.lead, *blocks.size) for t in (input, out))
    covered = cover(seeds, blocks, out.stride())
    if not isinstance(scale, float):
        lies_like_mask = len(blocks.lead) == 1 and not blocks.shared and out.is_contiguous()
        kept = blocks.units - count_dropped(seeds, blocks.flat, covered if lies_like_mask else None)
        scale = blocks.units / kept if kept else 0.0
    scale_and_zero(input, out, seeds, covered, scale, blocks)
    return scale


def apply_masked(input: Tensor, out: Tensor, seeds: Tensor, blocks: Blocks, scale: float | Tensor | None) -> Tensor:
    """Apply seeds like `apply_seeds`, on any device, without reading anything back to the host."""
    dropped = dropped_mask(seeds, blocks, input.device)
    if not isinstance(scale, Tensor):
        scale = scale_of(dropped)
    out.copy_(masked(input, dropped, scale))
    return scale


def masked(input: Tensor, dropped: Tensor, scale: Tensor) -> Tensor:
    """Return the input times the scale, and 0 where dropped."""
    op = torch.float64 if input.dtype == torch.float64 else torch.float32
    return torch.where(dropped, 0, (input.to(op) * scale.to(op)).to(input.dtype))


def dropped_mask(seeds: Tensor, blocks: Blocks, device: torch.device, channels_last: bool = False) -> Tensor:
    """Return the mask of the seeds, True where dropped: bool of shape `(*own_lead, *size)`."""
    own = Blocks(blocks.own_lead, blocks.size, blocks.block)
    # surplus seeds, at `blocks.positions`, fall one past the end of the first dimension
    shape, order = (own.lead[0] + 1, *own.lead[1:], *own.size), torch.contiguous_format
    if channels_last:
        order = CHANNELS_LAST[len(shape)]
    mask = torch.empty(shape, dtype=torch.bool, device=device, memory_format=order).zero_()
    there = cover(seeds, own, mask.stride())
    replace(there, first=there.first.to(device)).fill(mask, True)
    return mask[: own.lead[0]]


def scale_of(dropped: Tensor) -> Tensor:
    """Return the scale of the kept units: the number of units over the number kept, a tensor of no dimensions."""
    memory = dropped.as_strided((dropped.numel(),), (1,))
    kept = (dropped.numel() - _count(memory)).clamp_(min=1)
    return torch.full_like(kept, dropped.numel(), dtype=widest_float(dropped.device)).div_(kept)


def widest_float(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _count(memory: Tensor) -> Tensor:
    """Count the True entries of a bool tensor of one dimension.

    Add whole 64-bit lanes, 128 to a sum, so that no byte carries into the next: many times faster than PyTorch's sum
    of bools.
    """
    whole = len(memory) // 1024
    lanes = memory[: whole * 1024].view(torch.int64).view(whole, 128).sum(1)
    return lanes.view(torch.uint8).sum() + memory[whole * 1024 :].sum()


def count_dropped(seeds: Tensor, planes: Blocks, covered: Cover | None = None) -> int:
    """Count the dropped entries of the mask, on the CPU; `covered` is the memory of the blocks in it, if known."""
    plane = math.prod(planes.size)
    covered = covered or cover(seeds, planes, (plane, *_contiguous_strides(planes.size)))
    in_a_group = planes.streams.planes
    # whole groups, so that each span has only its own seeds
    at_once = min(planes.planes, -(-max(1, COUNTED_AT_ONCE // plane) // in_a_group) * in_a_group)
    # PyTorch fills bool tensors nearly twice as fast as those of other types
    mask = torch.empty(at_once * plane, dtype=torch.bool, device="cpu")
    dropped = 0
    for low, _, span in _spans(seeds, planes, planes.planes, at_once):
        covered.fill(mask.zero_(), True, span, before=low * plane)
        dropped += int(_count(mask))
    return dropped


def scale_and_zero(input: Tensor, out: Tensor, seeds: Tensor, covered: Cover, scale: float, blocks: Blocks) -> None:
    """Write `input * scale` into `out`, and 0 over the covered memory, on the CPU; `out` may be `input`."""
    total = blocks.lead[0]
    at_once = total if 0 in blocks.shared else max(1, BYTES_AT_ONCE * total // (out.numel() * out.itemsize))
    for low, high, span in _spans(seeds, blocks, total, at_once):
        torch.mul(input[low:high], scale, out=out[low:high])
        covered.fill(out, 0, span)  # zeroes some blocks of the next span too early, which does no harm


def _is_one_axis(tensor: Tensor, lead: int) -> bool:
    return all(tensor.stride(i - 1) == tensor.stride(i) * tensor.shape[i] for i in range(1, lead))


def _contiguous_strides(shape: Size) -> Size:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
