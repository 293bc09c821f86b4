"""Drawing on a GPU, in Triton: the seeds, their blocks, and how many units they drop.

docs/kernel.md has the formula, the layout of the mask and how its random numbers are made; `triton_plan.py` works out
the numbers that the kernel is told, and `triton_launch.py` launches it.
"""
# Triton reads the annotations of a kernel as they are, so there is no `from __future__ import annotations`.

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from .gamma import series

# One number holds how many programs have counted, above, and what they have counted, below.
ONE_PROGRAM = tl.constexpr(1 << 40)
TO_UNIT = tl.constexpr(2.0**-64)


@triton.jit
def _exponential(word):
    """A standard exponential from 64 random bits, as -log(1 - v); each tail as precise as the other."""
    is_small = (word >> 56) == 0  # v < 2^-8; else 1 - v is made of the complement, without a difference from 1
    complement = (~word.to(tl.int64, bitcast=True)).to(tl.uint64, bitcast=True)
    v = (tl.where(is_small, word, complement).to(tl.float64) + 0.5) * TO_UNIT
    return tl.where(is_small, series(v), -tl.log(v))


@triton.jit
def _divided(number, reciprocal):
    """Number over divisor, rounded down, for 0 <= number < 2^31 and `triton_plan.reciprocal(divisor)`.

    A division by what is not known when the code is compiled takes many times as long.
    """
    doubled = number.to(tl.uint32, bitcast=True) * 2
    shift = ((reciprocal >> 32) - 1).to(tl.uint32)
    return (tl.umulhi(doubled, reciprocal.to(tl.uint32)) >> shift).to(tl.int32)


@triton.jit
def _ones(word):
    """How many of the bits of a uint64 are 1."""
    word -= (word >> 1) & 0x5555555555555555
    word = (word & 0x3333333333333333) + ((word >> 2) & 0x3333333333333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((word * 0x0101010101010101) >> 56).to(tl.int32)


@triton.jit
def _quotient(number, divisor, inverse):
    """Number over divisor, rounded down, for 0 <= number < 2^53 and the bits of 1 / divisor in float64."""
    quotient = (number.to(tl.float64) * inverse.to(tl.float64, bitcast=True)).to(tl.int64)
    rest = number - quotient * divisor
    return quotient + (rest >= divisor).to(tl.int64) - (rest < 0).to(tl.int64)


@triton.jit
def _corners_before(
    unit, plane_units, by_units, plane_positions, area, by_area, row, by_row, valid_rows, valid_columns
):
    """How many seed positions there are before a unit."""
    plane = _quotient(unit, plane_units, by_units)
    rest = (unit - plane * plane_units).to(tl.int32)
    layer = _divided(rest, by_area)
    rest -= layer * area
    line = _divided(rest, by_row)
    column = tl.minimum(rest - line * row, valid_columns)
    of_layer = tl.minimum(line * valid_columns + column, valid_rows * valid_columns)
    return plane * plane_positions + tl.minimum(layer * (valid_rows * valid_columns) + of_layer, plane_positions)


@triton.jit
def _shifted(upper, lower, shift):
    """The upper of two neighbouring words after a shift of both by `shift` modulo 64."""
    left = (shift & 63).to(tl.uint64)
    # a shift by 64 would be undefined
    return (upper << left) | ((lower >> 1) >> (63 - left))


@triton.jit
def _grown(word, extent, stride, CHUNK: tl.constexpr):
    """Set every bit that is 0 to extent - 1 strides behind one that is set, in steps that double.

    The first word is 0, and stands for those that are before it.
    """
    index = tl.arange(0, CHUNK)
    done = 1
    while done < extent:
        step = tl.minimum(done, extent - done)
        at = tl.maximum(index - (step * stride >> 6), 0)
        lower = tl.gather(word, tl.maximum(at - 1, 0), 0)
        word |= _shifted(tl.gather(word, at, 0), lower, step * stride)
        done += step
    return word


@triton.jit
def _grow(bits, extent, stride, chunks, CHUNK: tl.constexpr):
    """The same in memory, chunk by chunk, from the last one to the first."""
    index = tl.arange(0, CHUNK)
    done = 1
    while done < extent:
        step = tl.minimum(done, extent - done)
        for i in range(chunks):
            to = (chunks - 1 - i) * CHUNK + index
            at = to - (step * stride >> 6)
            tl.debug_barrier()
            word = tl.load(bits + to)
            upper = tl.load(bits + at, mask=at >= 0, other=0).to(tl.uint64, bitcast=True)
            lower = tl.load(bits + at - 1, mask=at >= 1, other=0).to(tl.uint64, bitcast=True)
            tl.debug_barrier()
            tl.store(bits + to, word | _shifted(upper, lower, step * stride).to(tl.int64, bitcast=True))
        done += step


@triton.jit(
    do_not_specialize=[
        "gap_high", "gap_low", "length", "units", "halo", "own", "chunks", "positions", "stream_length",
        "plane_positions", "valid_rows", "valid_columns", "by_plane", "by_rows", "by_columns", "plane_units", "area",
        "row", "by_units", "by_length", "by_positions", "by_area", "by_row", "layers", "rows", "run",
    ]
)  # fmt: skip
def draw(
    words,
    corners,
    scratch,
    counted,
    scale,
    rng_seed,
    gap,
    gap_high,
    gap_low,
    length,
    units,
    halo,
    own,
    chunks,
    positions,
    stream_length,
    plane_positions,
    valid_rows,
    valid_columns,
    by_plane,
    by_rows,
    by_columns,
    plane_units,
    area,
    row,
    by_units,
    by_length,
    by_positions,
    by_area,
    by_row,
    layers,
    rows,
    run,
    GAP_IN_MEMORY: tl.constexpr,
    NOTE_CORNERS: tl.constexpr,
    COUNT: tl.constexpr,
    ONE_CHUNK: tl.constexpr,
    UNIT: tl.constexpr,
    STREAMS: tl.constexpr,
    DRAWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Draw `own` words of the mask, in memory of the program's own, with a `halo` of words whose blocks reach in.

    `stream_length` consecutive seed positions, of all planes in a row, are a stream. The i-th gap in it is made of the
    i-th block of Philox 4x32-10 with the RNG seed as key and the stream's number as counter. A corner sets the bits of
    the first row of its block (`run`), and `_grow` makes the other `rows` and `layers`. Blocks lie whole inside their
    map, so no bit is shifted over the end of a row or of a plane. The program that is the last to count, whichever
    that is, stores the scale: units over units kept. Where all are dropped it is finite, and no unit is multiplied.
    """
    program = tl.program_id(0).to(tl.int64)
    base = program * own - halo
    span = chunks * CHUNK
    bits = scratch + program * span
    index = tl.arange(0, CHUNK)
    for i in range(chunks):
        tl.store(bits + i * CHUNK + index, tl.zeros((CHUNK,), tl.int64))
    tl.debug_barrier()

    low = tl.maximum(base * 64 - (run - 1), 0)
    high = tl.minimum((base + span) * 64, units.to(tl.int64))
    low = _corners_before(
        low, plane_units, by_units, plane_positions, area, by_area, row, by_row, valid_rows, valid_columns
    )
    high = _corners_before(
        high, plane_units, by_units, plane_positions, area, by_area, row, by_row, valid_rows, valid_columns
    )
    first_stream = _quotient(low, stream_length, by_length)
    streams = (_quotient(high + stream_length - 1, stream_length, by_length) - first_stream).to(tl.int32)
    start = first_stream * stream_length
    plane = _quotient(start, plane_positions, by_positions)
    place = (start - plane * plane_positions).to(tl.int32)
    origin = (plane * plane_units - base * 64).to(UNIT)

    seed = tl.load(rng_seed)
    if GAP_IN_MEMORY:
        mean_gap = tl.load(gap)
    else:
        mean_gap = tl.zeros((1, 1), tl.float64) + gap_high + gap_low
    longest = stream_length.to(tl.float64)
    halves = bits.to(tl.pointer_type(tl.int32))
    all_ones = tl.full((STREAMS, DRAWS), 0xFFFFFFFF, tl.uint32)
    zero = tl.zeros((STREAMS, DRAWS), tl.int32)
    turn = zero + tl.arange(0, DRAWS)[None, :]
    for group in range(0, streams, STREAMS):
        which = group + tl.arange(0, STREAMS)[:, None]
        stream = first_stream + which
        stream_low = stream.to(tl.int32) + zero
        stream_high = (stream >> 32).to(tl.int32) + zero
        end = tl.minimum(tl.maximum(positions - stream * stream_length, 0), stream_length).to(tl.int32)
        end = tl.where(which < streams, end, 0)
        at = tl.where(end > 0, -1, 0)
        number = turn
        while tl.max(tl.max((at < end).to(tl.int32), axis=1), axis=0) > 0:
            r0, r1, _, _ = tl.philox(seed, stream_low, stream_high, number, zero)
            word = (r0.to(tl.uint64) << 32) | r1.to(tl.uint64)
            number += DRAWS
            gaps = tl.minimum(_exponential(word) * mean_gap, longest).to(tl.int32) + 1
            here = at + tl.cumsum(gaps, axis=1)
            inside = here < end
            at += tl.sum(gaps, axis=1)[:, None]
            # from the number of a position to the number of a unit, counted from the first bit
            rest = place + which * stream_length + here
            planes = _divided(rest, by_plane)
            rest -= planes * plane_positions
            line = _divided(rest, by_columns)
            column = rest - line * valid_columns
            layer = _divided(line, by_rows)
            line -= layer * valid_rows
            unit = origin + planes.to(UNIT) * plane_units.to(UNIT) + (layer * area + line * row + column)
            bit = (unit & 31).to(tl.int32)
            if NOTE_CORNERS:
                corner = tl.full((STREAMS, DRAWS), 1, tl.int32) << bit
                where = corners.to(tl.pointer_type(tl.int32)) + ((unit + base * 64) >> 5)
                tl.atomic_or(where, corner, mask=inside, sem="relaxed")
            for i in range((31 + run + 31) // 32):
                begin = tl.maximum(bit - 32 * i, 0)
                bits_here = tl.minimum(bit + run - 32 * i, 32) - begin
                ones = (all_ones >> (32 - tl.maximum(bits_here, 1)).to(tl.uint32)) << tl.minimum(begin, 31).to(
                    tl.uint32
                )
                half = (unit >> 5) + i
                here_too = inside & (bits_here > 0) & (half >= 2) & (half < 2 * span)
                tl.atomic_or(halves + half, ones.to(tl.int32, bitcast=True), mask=here_too, sem="relaxed")

    if not ONE_CHUNK:
        _grow(bits, rows, row, chunks, CHUNK)
        _grow(bits, layers, area, chunks, CHUNK)
    tl.debug_barrier()
    dropped = tl.zeros((CHUNK,), tl.int32)
    for i in range(chunks):
        at = i * CHUNK + index
        word = tl.load(bits + at).to(tl.uint64, bitcast=True)
        if ONE_CHUNK:
            word = _grown(_grown(word, rows, row, CHUNK), layers, area, CHUNK)
        mine = (at >= halo) & (base + at < length)
        tl.store(words + base + at, word.to(tl.int64, bitcast=True), mask=mine)
        if COUNT:
            dropped += tl.where(mine, _ones(word), 0)
    if COUNT:
        sum = tl.sum(dropped.to(tl.int64), axis=0)
        before = tl.atomic_add(counted, sum + ONE_PROGRAM, sem="relaxed")
        if (before >> 40) == tl.num_programs(0) - 1:
            kept = units - (before & (ONE_PROGRAM - 1)) - sum
            tl.store(scale, units.to(tl.float64) / tl.maximum(kept, 1).to(tl.float64))
