"""The layer on a GPU, in Triton: a mask of one bit per unit is drawn, then the input is read once and written once.

    rng_seed ── _draw ──> corners grown along rows ── _grow ──> mask, count ── _apply ──> output

docs/kernel.md has the formula, the layout of the mask and how its random numbers are made. With TRITON_INTERPRET=1
set before Triton is imported the same code runs on CPU tensors, in Triton's interpreter.
"""
# Triton reads the annotations of a kernel as they are, so there is no `from __future__ import annotations`.

import contextlib
import itertools
import math
import struct
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from . import sparse
from .geometry import Size
from .sparse import Blocks

# Partial counts: one for all programs would be waited for, and one each would be too many to add up in `_apply`.
SLOTS = tl.constexpr(32)
TO_UNIT = tl.constexpr(2.0**-64)
# Below it a logarithm of 1 - v is a short sum: a difference from 1 would lose what is small.
SMALL = tl.constexpr(2.0**-8)
# The positions of one plane and of one stream are counted in 32 bits.
MOST_UNITS_OF_A_PLANE = 1 << 30
DTYPES = {
    torch.float16: tl.float32,
    torch.bfloat16: tl.float32,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


# --- kernels -----------------------------------------------------------------------------------------------------


@triton.jit
def _minus_log1m(v):
    """-log(1 - v) for 0 <= v <= 1 in float64, with a relative error below 2^-45."""
    series = v * (1.0 + v * (1.0 / 2 + v * (1.0 / 3 + v * (1.0 / 4 + v * (1.0 / 5 + v * (1.0 / 6))))))
    return tl.where(v < SMALL, series, -tl.log(1.0 - v))


@triton.jit
def _exponential(word):
    """A standard exponential from 64 random bits; each tail as precise as the other."""
    low = (word.to(tl.float64) + 0.5) * TO_UNIT
    complement = (~word.to(tl.int64, bitcast=True)).to(tl.uint64, bitcast=True)
    high = (complement.to(tl.float64) + 0.5) * TO_UNIT  # 1 - low, without a difference from 1
    return tl.where(low < SMALL, _minus_log1m(tl.minimum(low, SMALL)), -tl.log(high))


@triton.jit(
    do_not_specialize=[
        "gap_high", "gap_low", "positions", "stream_length", "plane_positions", "valid_rows", "valid_columns",
        "plane_units", "area", "row", "run", "run_words",
    ]
)  # fmt: skip
def _draw(
    words,
    corners,
    rng_seed,
    gap,
    gap_high,
    gap_low,
    positions,
    stream_length,
    plane_positions,
    valid_rows,
    valid_columns,
    plane_units,
    area,
    row,
    run,
    run_words,
    GAP_IN_MEMORY: tl.constexpr,
    NOTE_CORNERS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Set the bits of the first row of units of each block.

    A lane walks one stream: `stream_length` consecutive seed positions, of all planes in a row. Its i-th gap is made
    of the i-th block of Philox 4×32-10 with the RNG seed as key and the stream's number as counter.
    """
    seed = tl.load(rng_seed)
    if GAP_IN_MEMORY:
        mean_gap = tl.load(gap)
    else:
        mean_gap = tl.zeros((LANES,), tl.float64) + gap_high + gap_low
    stream = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    first = stream * stream_length
    length = tl.minimum(tl.maximum(positions - first, 0), stream_length).to(tl.int32)
    plane = first // plane_positions
    place = (first - plane * plane_positions).to(tl.int32)
    stream_low = stream.to(tl.int32)
    stream_high = (stream >> 32).to(tl.int32)
    longest = tl.zeros((LANES,), tl.float64) + stream_length
    one = tl.full((LANES,), 1, tl.int64)
    zero = tl.zeros((LANES,), tl.int32)
    number = tl.zeros((LANES,), tl.int32)
    at = tl.full((LANES,), -1, tl.int32)
    inside = at < length
    while tl.max(inside.to(tl.int32), axis=0) > 0:
        r0, r1, _, _ = tl.philox(seed, stream_low, stream_high, number, zero)
        word = (r0.to(tl.uint64) << 32) | r1.to(tl.uint64)
        number += 1
        at = tl.minimum(at + 1 + tl.minimum(_exponential(word) * mean_gap, longest).to(tl.int32), length)
        inside = at < length
        # from the number of a position to the number of a unit
        rest = place + at
        planes = rest // plane_positions
        rest -= planes * plane_positions
        line = rest // valid_columns
        column = rest - line * valid_columns
        layer = line // valid_rows
        line -= layer * valid_rows
        unit = (plane + planes) * plane_units + (layer * area + line * row + column)
        bit = (unit & 31).to(tl.int32)
        if NOTE_CORNERS:
            tl.atomic_or(corners + (unit >> 5), (one << bit.to(tl.int64)).to(tl.int32), mask=inside, sem="relaxed")
        for i in range(run_words):
            begin = tl.maximum(bit - 32 * i, 0)
            end = tl.minimum(bit + run - 32 * i, 32)
            ones = ((one << tl.maximum(end, begin).to(tl.int64)) - (one << begin.to(tl.int64))).to(tl.int32)
            tl.atomic_or(words + (unit >> 5) + i, ones, mask=inside & (end > begin), sem="relaxed")


@triton.jit
def _ones(word):
    """How many of the bits of a uint64 are 1."""
    word -= (word >> 1) & 0x5555555555555555
    word = (word & 0x3333333333333333) + ((word >> 2) & 0x3333333333333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((word * 0x0101010101010101) >> 56).to(tl.int32)


@triton.jit(do_not_specialize=["length", "stride", "step", "last", "shifts"])
def _grow(source, target, counts, length, stride, step, last, shifts, COUNT: tl.constexpr, WORDS: tl.constexpr):
    """Shift a string of bits by min(i * step, last) * stride for each i < shifts, and take every bit set in any.

    Blocks lie whole inside their map, so no bit is shifted over the end of a row or of a plane.
    """
    index = tl.program_id(0).to(tl.int64) * WORDS + tl.arange(0, WORDS)
    total = tl.zeros((WORDS,), tl.uint64)
    for i in range(shifts):
        shift = tl.minimum(i * step, last).to(tl.int64) * stride
        bits = (shift & 63).to(tl.uint64)
        at = index - (shift >> 6)
        upper = tl.load(source + at, mask=(index < length) & (at >= 0), other=0).to(tl.uint64, bitcast=True)
        lower = tl.load(source + at - 1, mask=(index < length) & (at >= 1), other=0).to(tl.uint64, bitcast=True)
        total |= (upper << bits) | ((lower >> 1) >> (63 - bits))  # a shift by 64 would be undefined
    tl.store(target + index, total.to(tl.int64, bitcast=True), mask=index < length)
    if COUNT:
        dropped = tl.sum(_ones(total), axis=0).to(tl.int64)
        tl.atomic_add(counts + tl.program_id(0) % SLOTS, dropped, sem="relaxed")


@triton.jit
def _scale(counts, units):
    """Units over units kept, float64; where all are dropped it is finite, and no unit is multiplied by it."""
    dropped = tl.sum(tl.load(counts + tl.arange(0, SLOTS)), axis=0)
    return units.to(tl.float64) / tl.maximum(units - dropped, 1).to(tl.float64)


@triton.jit(do_not_specialize=["units"])
def _store_scale(counts, scale, units):
    tl.store(scale, _scale(counts, units))


@triton.jit
def _apply_eights(
    input, output, mask, counts, units, elements, OP: tl.constexpr, EIGHTS: tl.constexpr, RAGGED: tl.constexpr
):
    eight = tl.arange(0, EIGHTS)
    inner = tl.arange(0, 8)
    start = tl.program_id(0).to(tl.int64) * (EIGHTS * 8)
    offset = eight[:, None] * 8 + inner[None, :]
    mask += tl.program_id(0).to(tl.int64) * EIGHTS
    input += start
    output += start
    if RAGGED:
        value = tl.load(input + offset, mask=offset < elements - start, other=0.0)
        byte = tl.load(mask + eight, mask=eight * 8 < elements - start, other=0)
    else:
        value = tl.load(input + offset)
        byte = tl.load(mask + eight)
    dropped = (byte.to(tl.int32)[:, None] >> inner[None, :]) & 1
    scaled = (value.to(OP) * _scale(counts, units).to(OP)).to(output.dtype.element_ty)
    result = tl.where(dropped == 0, scaled, tl.zeros_like(scaled))
    if RAGGED:
        tl.store(output + offset, result, mask=offset < elements - start)
    else:
        tl.store(output + offset, result)


@triton.jit(do_not_specialize=["units"])
def _apply_flat(input, output, mask, counts, units, elements, OP: tl.constexpr, EIGHTS: tl.constexpr):
    """Elements in the order of the bits of the mask, eight to a byte."""
    if (tl.program_id(0).to(tl.int64) + 1) * (EIGHTS * 8) <= elements:
        _apply_eights(input, output, mask, counts, units, elements, OP, EIGHTS, False)
    else:
        _apply_eights(input, output, mask, counts, units, elements, OP, EIGHTS, True)


@triton.jit
def _window(mask, bit, words, inside):
    """The 32 bits of the mask from `bit` on."""
    at = bit >> 5
    lower = tl.load(mask + at, mask=inside, other=0).to(tl.uint32, bitcast=True).to(tl.uint64)
    upper = tl.load(mask + at + 1, mask=inside & (at + 1 < words), other=0).to(tl.uint32, bitcast=True).to(tl.uint64)
    return ((lower | (upper << 32)) >> (bit & 31).to(tl.uint64)).to(tl.uint32)


@triton.jit(do_not_specialize=["units", "words", "tiles", "columns_of_tiles"])
def _apply_tiles(
    input,
    output,
    mask,
    counts,
    units,
    words,
    tiles,
    columns_of_tiles,
    size,
    channels,
    sample_bits,
    channel_bits,
    input_sample,
    input_channel,
    input_unit,
    output_sample,
    output_channel,
    output_unit,
    OP: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Tiles of 32 units by CHANNELS channels of one sample, in any strides: a channel's bits are one window."""
    program = tl.program_id(0).to(tl.int64)
    sample = program // tiles
    tile = program - sample * tiles
    row = tile // columns_of_tiles
    unit = row * 32 + tl.arange(0, 32).to(tl.int64)
    channel = (tile - row * columns_of_tiles) * CHANNELS + tl.arange(0, CHANNELS).to(tl.int64)
    inside = (unit < size)[:, None] & (channel < channels)[None, :]
    where = sample * input_sample + unit[:, None] * input_unit + channel[None, :] * input_channel
    value = tl.load(input + where, mask=inside, other=0.0)
    window = _window(mask, sample * sample_bits + row * 32 + channel * channel_bits, words, channel < channels)
    dropped = (window[None, :] >> tl.arange(0, 32).to(tl.uint32)[:, None]) & 1
    scaled = (value.to(OP) * _scale(counts, units).to(OP)).to(output.dtype.element_ty)
    where = sample * output_sample + unit[:, None] * output_unit + channel[None, :] * output_channel
    tl.store(output + where, tl.where(dropped == 0, scaled, tl.zeros_like(scaled)), mask=inside)


@triton.jit(do_not_specialize=["words", "size", "channels", "rows", "columns"])
def _channels_inside(mask, target, words, size, channels, rows, columns):
    """Turn the mask of planes into one whose words hold 32 channels of one unit each."""
    program = tl.program_id(0).to(tl.int64)
    column = program % columns
    row = (program // columns) % rows
    sample = program // columns // rows
    unit = row * 32 + tl.arange(0, 32).to(tl.int64)
    inner = tl.arange(0, 32).to(tl.int64)
    channel = column * 32 + inner
    window = _window(mask, (sample * channels + channel) * size + row * 32, words, channel < channels)
    bits = (window[None, :] >> tl.arange(0, 32).to(tl.uint32)[:, None]) & 1
    word = tl.sum(bits.to(tl.int64) << inner[None, :], axis=1).to(tl.int32)
    tl.store(target + (sample * size + unit) * columns + column, word, mask=unit < size)


@triton.jit(do_not_specialize=["s0", "s1", "s2", "b0", "b1", "b2"])
def _solve(keep_prob, gap, s0, s1, s2, b0, b1, b2, PAPER: tl.constexpr, LANES: tl.constexpr):
    """`geometry.gamma` on the device, as the mean gap -1 / log(1 - γ): see there."""
    keep = tl.minimum(tl.maximum(tl.load(keep_prob).to(tl.float64), 0.0), 1.0)
    units = s0.to(tl.float64) * s1.to(tl.float64) * s2.to(tl.float64)
    v0 = s0 - b0 + 1
    v1 = s1 - b1 + 1
    v2 = s2 - b2 + 1
    if PAPER:
        block = b0.to(tl.float64) * b1.to(tl.float64) * b2.to(tl.float64)
        valid = v0.to(tl.float64) * v1.to(tl.float64) * v2.to(tl.float64)
        tl.store(gap, 1.0 / _minus_log1m(tl.minimum((1.0 - keep) * units / (block * valid), 1.0)))
    else:
        t0 = tl.minimum(b0, v0)
        t1 = tl.minimum(b1, v1)
        t2 = tl.minimum(b2, v2)
        combinations = t0 * t1 * t2
        solvable = tl.maximum(keep, 1e-200)
        goal = tl.where(keep > 0.5, -_minus_log1m(1.0 - keep), tl.log(solvable))
        rate = keep * 0.0
        step = tl.where(keep < 1e-200, 0.0, rate + 1.0)
        turn = 0
        while (step > 1e-9 * rate) & (turn < 100):
            kept_of = tl.zeros((LANES,), tl.float64)
            dropped_of = tl.zeros((LANES,), tl.float64)
            slope_of = tl.zeros((LANES,), tl.float64)
            for start in range(0, combinations, LANES):
                k = start + tl.arange(0, LANES)
                n0 = k % t0 + 1
                n1 = (k // t0) % t1 + 1
                n2 = k // (t0 * t1) + 1
                c0 = tl.where(n0 < t0, 2, s0 - 2 * (t0 - 1))
                c1 = tl.where(n1 < t1, 2, s1 - 2 * (t1 - 1))
                c2 = tl.where(n2 < t2, 2, s2 - 2 * (t2 - 1))
                count = c0.to(tl.float64) * c1.to(tl.float64) * c2.to(tl.float64)
                count = tl.where(k < combinations, count, 0.0)
                n = n0.to(tl.float64) * n1.to(tl.float64) * n2.to(tl.float64)
                y = n * rate
                kept = tl.exp(-y)
                # 1 - exp(-y), for a small y as a sum
                z = tl.minimum(y, SMALL)
                sum = z * (1 - z / 2 * (1 - z / 3 * (1 - z / 4 * (1 - z / 5 * (1 - z / 6)))))
                kept_of += count * kept
                dropped_of += count * tl.where(y < SMALL, sum, 1 - kept)
                slope_of += count * n * kept
            kept_share = tl.sum(kept_of, axis=0) / units
            dropped_share = tl.sum(dropped_of, axis=0) / units
            log_kept = tl.where(dropped_share < 0.5, -_minus_log1m(tl.minimum(dropped_share, 0.5)), tl.log(kept_share))
            step = (log_kept - goal) * kept_share * units / tl.sum(slope_of, axis=0)
            rate += step
            turn += 1
        tl.store(gap, tl.where(keep < 1e-200, 0.0, 1.0 / rate))


# --- launching ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Launch:
    """How much one program does; nothing but time depends on it."""

    lanes: int = 32
    words: int = 1024
    eights: int = 512
    channels: int = 128


INTERPRETED: bool = triton.knobs.runtime.interpret if hasattr(triton, "knobs") else False
# the interpreter takes as long for a program of one lane as for one of thousands
LAUNCH = Launch(8192, 65536, 65536, 1024) if INTERPRETED else Launch()


@dataclass(frozen=True)
class Mask:
    """What was drawn: the unit of number i, plane by plane and row by row, is dropped if bit i of `words` is set."""

    words: Tensor
    counts: Tensor
    blocks: Blocks
    corners: Tensor | None = None

    def scale(self) -> Tensor:
        """Units over units kept, float64, of no dimensions."""
        scale = torch.empty((), dtype=torch.float64, device=self.words.device)
        with _on(scale):
            _store_scale[(1,)](self.counts, scale, self.blocks.units)
        return scale

    def dense(self) -> Tensor:
        """True where dropped, of shape `(*own_lead, *size)`."""
        return _unpacked(self.words, self.blocks.units).view(*self.blocks.own_lead, *self.blocks.size)

    def seeds(self) -> Tensor:
        """The corners that were drawn, numbered as `sparse.draw_seeds` numbers seeds."""
        if self.corners is None:
            raise ValueError("corners must be noted when the mask is drawn")
        at = _unpacked(self.corners, self.blocks.units).view(-1, *self.blocks.size)
        inside = at[(slice(None), *(slice(v) for v in self.blocks.valid))]
        if int(inside.sum()) != int(at.sum()):
            raise RuntimeError("a corner lies outside the valid seed region")
        return inside.flatten().nonzero().flatten()


def _unpacked(words: Tensor, units: int) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8, device=words.device)
    return (words.view(torch.uint8).unsqueeze(1) >> shifts & 1).view(-1)[:units].to(torch.bool)


def stream_length(blocks: Blocks) -> int:
    """How many seed positions make a stream: where a tenth of the units is dropped, one or two seeds are in each.

    A function of the map and the block alone, since the mask depends on it.
    """
    seeds_wanted = math.prod(blocks.size) / (math.prod(blocks.block) * math.prod(blocks.valid))  # to drop them all
    return min(max(round(16 / seeds_wanted), 16), 1 << 16)


@lru_cache(maxsize=1024)
def growth(size: Size, block: Size) -> tuple[tuple[int, int, int, int], ...]:
    """(stride, step, last, shifts) of each `_grow` that turns rows of units into blocks; at least one, to count.

    A block's extent along an axis is so many shifts; where those are many, they are made of two growths.
    """
    steps: list[tuple[int, int, int, int]] = []
    for axis, extent in enumerate(block[:-1]):
        stride, few = math.prod(size[axis + 1 :]), extent
        if extent > 8:
            few = math.isqrt(extent - 1) + 1
            steps.append((stride, few, extent - few, -(-extent // few)))
        if extent > 1:
            steps.append((stride, 1, few - 1, few))
    return tuple(steps) or ((0, 0, 0, 1),)


def mean_gap(keep_prob: Tensor, size: Size, block: Size, rate: str) -> Tensor:
    """-1 / log(1 - γ) for a `keep_prob` that only the device knows: float64, of one element."""
    gap = torch.empty(1, dtype=torch.float64, device=keep_prob.device)
    pad = (1,) * (3 - len(size))
    with _on(gap):
        _solve[(1,)](keep_prob, gap, *pad, *size, *pad, *block, rate == "paper", 1024)
    return gap


def draw(
    rng_seed: Tensor, blocks: Blocks, gap: Tensor | None = None, *, corners: bool = False, launch: Launch = LAUNCH
) -> Mask:
    """The mask of an RNG seed; `gap` is `mean_gap` where γ is not known here, and then that of `blocks` means nothing.

    Nothing is read back from the device.
    """
    if math.prod(blocks.size) >= MOST_UNITS_OF_A_PLANE:
        raise ValueError(f"a map for Triton must have fewer than 2^30 units, got one of {math.prod(blocks.size)}")
    device, units = rng_seed.device, blocks.units
    length, slots = _parts(units, 64), int(SLOTS.value)
    # one tensor, so that zeros are written once
    zeros = torch.zeros(slots + length * (2 if corners else 1), dtype=torch.int64, device=device)
    counts, rows = zeros[:slots], zeros[slots : slots + length]
    noted = zeros[slots + length :] if corners else None
    if gap is None and blocks.gamma == 0.0:
        return Mask(rows.clone(), counts, blocks, noted)  # what an operator returns is no part of something larger
    if gap is None and blocks.gamma == 1.0 and not corners:
        rows = rows.clone().fill_(-1)
        rows[-1].fill_((1 << units % 64) - 1 if units % 64 else -1)
        counts[0].fill_(units)
        return Mask(rows, counts, blocks)
    known = 0.0 if gap is not None or blocks.gamma == 1.0 else min(-1.0 / math.log1p(-blocks.gamma), 1e30)
    gap_high = struct.unpack("f", struct.pack("f", known))[0]  # a number that is given to a kernel has 32 bits
    pad = (1,) * (3 - len(blocks.size))
    size, valid = pad + blocks.size, pad + blocks.valid
    per_stream = stream_length(blocks)
    run = blocks.block[-1]
    streams = _parts(blocks.positions, per_stream)
    lanes, at_once = _fit(launch.lanes, streams), _fit(launch.words, length)
    with _on(zeros):
        _draw[(_parts(streams, lanes),)](
            rows.view(torch.int32),
            (rows if noted is None else noted).view(torch.int32),
            rng_seed,
            counts if gap is None else gap,
            gap_high,
            known - gap_high,
            blocks.positions,
            per_stream,
            math.prod(valid),
            valid[1],
            valid[2],
            math.prod(size),
            size[1] * size[2],
            size[2],
            run,
            _parts(31 + run, 32),
            GAP_IN_MEMORY=gap is not None,
            NOTE_CORNERS=corners,
            LANES=lanes,
            num_warps=1,
        )
        steps = growth(blocks.size, blocks.block)
        source = rows
        for i, step in enumerate(steps):
            target = torch.empty_like(rows)
            last = i == len(steps) - 1
            _grow[(_parts(length, at_once),)](source, target, counts, length, *step, COUNT=last, WORDS=at_once)
            source = target
    return Mask(source, counts, blocks, noted)


def apply(input: Tensor, output: Tensor, mask: Mask, *, launch: Launch = LAUNCH) -> None:
    """Write the input times the scale, and 0 where dropped, into `output`, which may be the input."""
    blocks, op = mask.blocks, DTYPES[input.dtype]
    lazy = input.is_neg() or output.is_neg()  # memory that does not hold what the tensor says
    if not blocks.shared and input.is_contiguous() and output.is_contiguous() and not lazy:
        count = input.numel()
        eights = _fit(launch.eights, _parts(count, 8))
        with _on(input):
            _apply_flat[(_parts(count, 8 * eights),)](
                input, output, mask.words.view(torch.uint8), mask.counts, blocks.units, count, op, eights
            )
        return
    lead = blocks.lead if len(blocks.lead) > 1 else (1, *blocks.lead)
    input_place, output_place = _strides(input, blocks), _strides(output, blocks)
    by_tiles = blocks.shared in ((), (len(blocks.lead) - 1,)) and not lazy
    if not by_tiles or input_place is None or output_place is None:
        # strides of no order, or a mask that is shared by what `torch.vmap` maps over
        output.copy_(sparse.masked(input, mask.dense(), mask.scale()))
        return
    samples, channels, size = math.prod(lead[:-1]), lead[-1], math.prod(blocks.size)
    at_once = min(launch.channels, triton.next_power_of_2(channels))
    rows, columns = _parts(size, 32), _parts(channels, at_once)
    words = mask.words.view(torch.int32)
    shared = bool(blocks.shared)
    with _on(input):
        _apply_tiles[(samples * rows * columns,)](
            input,
            output,
            words,
            mask.counts,
            blocks.units,
            len(words),
            rows * columns,
            columns,
            size,
            channels,
            size if shared else size * channels,
            0 if shared else size,
            *input_place,
            *output_place,
            op,
            at_once,
        )


def channels_inside(mask: Mask) -> Tensor:
    """The mask with 32 channels to a word: int32 of shape (N, *size, ⌈C / 32⌉)."""
    blocks = mask.blocks
    samples, channels, size = math.prod(blocks.lead[:-1]), blocks.lead[-1], math.prod(blocks.size)
    rows, columns = _parts(size, 32), _parts(channels, 32)
    target = torch.empty((samples, *blocks.size, columns), dtype=torch.int32, device=mask.words.device)
    words = mask.words.view(torch.int32)
    with _on(target):
        _channels_inside[(samples * rows * columns,)](words, target, len(words), size, channels, rows, columns)
    return target


def drop(input: Tensor, output: Tensor, rng_seed: Tensor, blocks: Blocks, gap: Tensor | None = None) -> None:
    """Draw and apply."""
    apply(input, output, draw(rng_seed, blocks, gap))


def why_not(device: torch.device, size: Size | None = None) -> str:
    """Why tensors on this device, with maps of this size, are not served; empty if they are."""
    if device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
        return f"it runs on CUDA devices, and the input is on {device}"
    if device.type == "cuda" and _is_old(device):
        return f"Triton needs a GPU of compute capability 8.0 or more, and {device} is older"
    if size is not None and math.prod(size) >= MOST_UNITS_OF_A_PLANE:
        return f"it counts the positions of a map in 32 bits, and this one has {math.prod(size)}"
    return ""


@lru_cache
def _is_old(device: torch.device) -> bool:
    if torch.version.hip is not None or not torch.cuda.is_available():  # where there is none, tensors are fake
        return False
    return torch.cuda.get_device_capability(device) < (8, 0)


def _strides(tensor: Tensor, blocks: Blocks) -> tuple[int, int, int] | None:
    """The strides of samples, channels and units, if each has one."""
    lead, stride = len(blocks.lead), tensor.stride()
    sample = _one_stride(tensor.shape[: lead - 1], stride[: lead - 1])
    unit = _one_stride(tensor.shape[lead:], stride[lead:])
    return None if sample is None or unit is None else (sample, stride[lead - 1], unit)


def _one_stride(shape: Size, strides: Size) -> int | None:
    axes = [(n, stride) for n, stride in zip(shape, strides, strict=True) if n > 1]
    if not axes:
        return 0
    if any(outer != n * inner for (_, outer), (n, inner) in itertools.pairwise(axes)):
        return None
    return axes[-1][1]


def _fit(launched: int, wanted: int) -> int:
    """How much one program does: in the interpreter no more than there is; on a GPU always the same."""
    return min(launched, max(1024, int(triton.next_power_of_2(wanted))))


def _parts(whole: int, part: int) -> int:
    return -(-whole // part)


def _on(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
