"""Draw a mask on a GPU, in Triton: draw seeds, grow them into blocks, and count the dropped units.

docs/kernel.md has the formula and the layout of the mask; `plan.py` computes the launch parameters, and `launch.py`
launches.
"""
# Triton reads the annotations of a kernel as they are, so there is no `from __future__ import annotations`.

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from .seeds import PHI, bounds, counts, divided, mix, places, quotient, streams_between, unit_of

# `counted` holds two numbers: the programs that have counted (bits 40 and up) and the units they counted (below).
ONE_PROGRAM = tl.constexpr(1 << 40)


@triton.jit
def ones(word):
    """Count the bits of a uint64 that are 1."""
    word -= (word >> 1) & 0x5555555555555555
    word = (word & 0x3333333333333333) + ((word >> 2) & 0x3333333333333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((word * 0x0101010101010101) >> 56).to(tl.int32)


@triton.jit
def add_count(counted, scale, dropped, units):
    """Add the dropped units of this program; the last program to do so stores the scale, which is always finite."""
    before = tl.atomic_add(counted, dropped + ONE_PROGRAM, sem="relaxed")
    if (before >> 40) == tl.num_programs(0) - 1:
        kept = units - (before & (ONE_PROGRAM - 1)) - dropped
        tl.store(scale, units.to(tl.float64) / tl.maximum(kept, 1).to(tl.float64))
        tl.store(counted, 0)  # for the next call


@triton.jit
def _corners_before(
    unit, plane_units, by_units, plane_positions, area, by_area, row, by_row, valid_rows, valid_columns
):
    """Return the number of seed positions before a unit."""
    plane = quotient(unit, plane_units, by_units)
    rest = (unit - plane * plane_units).to(tl.int32)
    layer = divided(rest, by_area)
    rest -= layer * area
    line = divided(rest, by_row)
    column = tl.minimum(rest - line * row, valid_columns)
    of_layer = tl.minimum(line * valid_columns + column, valid_rows * valid_columns)
    return plane * plane_positions + tl.minimum(layer * (valid_rows * valid_columns) + of_layer, plane_positions)


@triton.jit
def _shifted(upper, lower, shift):
    """Shift two neighbouring words left by `shift` modulo 64, as one number, and return the upper one."""
    left = (shift & 63).to(tl.uint64)
    # a shift by 64 would be undefined
    return (upper << left) | ((lower >> 1) >> (63 - left))


@triton.jit
def _grown(word, extent, stride, CHUNK: tl.constexpr):
    """Set every bit that follows a set bit by 0 to extent - 1 strides, in steps that double.

    The first word is 0, and stands for the words before it.
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
    """Do the same as `_grown` in memory, chunk by chunk, from the last to the first."""
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


# The launch parameters change with the shape; with specialisation, Triton would recompile the kernel for each.
@triton.jit(
    do_not_specialize=[
        "key", "table", "copy", "length", "units", "halo", "own", "chunks", "positions", "group", "by_group",
        "group_planes", "per_group", "stream_length", "by_length", "plane_positions", "by_positions", "valid_rows",
        "by_valid_rows", "valid_columns", "by_valid_columns", "plane_units", "by_units", "area", "by_area", "row",
        "by_row", "layers", "rows", "run",
    ]
)  # fmt: skip
def draw(
    words,
    scratch,
    counted,
    scale,
    key,
    table,
    copy,
    length,
    units,
    halo,
    own,
    chunks,
    positions,
    group,
    by_group,
    group_planes,
    per_group,
    stream_length,
    by_length,
    plane_positions,
    by_positions,
    valid_rows,
    by_valid_rows,
    valid_columns,
    by_valid_columns,
    plane_units,
    by_units,
    area,
    by_area,
    row,
    by_row,
    layers,
    rows,
    run,
    COUNT: tl.constexpr,
    COPY: tl.constexpr,
    ONE_CHUNK: tl.constexpr,
    UNIT: tl.constexpr,
    STREAMS: tl.constexpr,
    DRAWS: tl.constexpr,
    CHUNK: tl.constexpr,
    TABLE: tl.constexpr,
):
    """Draw `own` words of the mask, in the program's own memory, after a `halo` of words whose blocks reach into them.

    The seeds are those of `seeds.py`, stream by stream. A seed sets the bits of the first row of its block (`run`),
    and `_grown` or `_grow` adds the other `rows` and `layers`. Blocks lie whole inside their map, so no bit is shifted
    past the end of a row or a plane.
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
    first_group, first_piece, streams = streams_between(low, high, group, by_group, per_group, stream_length, by_length)
    # positions are counted from the first group, units from the first bit
    positions_left = tl.minimum(positions - first_group * group, 0x7FFFFFFF).to(tl.int32)
    origin = (first_group * group_planes * plane_units - base * 64).to(UNIT)

    mixed = mix(tl.load(key).to(tl.uint64, bitcast=True))
    entry = tl.arange(0, TABLE)
    numbers = tl.load(table).to(tl.int32)
    # entry 0 is not a probability
    probabilities = tl.where(entry > 0, tl.load(table + entry), 2.0)
    if COPY:
        tl.store(copy + entry, tl.load(table + entry), mask=(entry >= 0) & (program == 0))  # of the first program
    halves = bits.to(tl.pointer_type(tl.int32))
    all_ones = tl.full((STREAMS, DRAWS), 0xFFFFFFFF, tl.uint32)
    turn = tl.arange(0, DRAWS)[None, :] + tl.zeros((STREAMS, DRAWS), tl.int32)
    for first in range(0, streams, STREAMS):
        which = first + tl.arange(0, STREAMS)
        stream = first_group * per_group + (first_piece + which).to(tl.int64)
        stream_base = mix(mixed + (stream + 1).to(tl.uint64, bitcast=True) * PHI)
        many = tl.where(which < streams, counts(stream_base, numbers, probabilities), 0)
        start, end = bounds(first_piece + which, group, per_group, stream_length, positions_left)
        for drawn in range(0, tl.max(many, axis=0), DRAWS):
            number = turn + drawn
            position = start[:, None] + places(stream_base[:, None], number + numbers, stream_length)
            inside = (number < many[:, None]) & (position < end[:, None])
            planes, in_plane = unit_of(
                position, plane_positions, by_positions, area, row, valid_rows, by_valid_rows,
                valid_columns, by_valid_columns,
            )  # fmt: skip
            unit = origin + planes.to(UNIT) * plane_units.to(UNIT) + in_plane  # counted from the first bit
            bit = (unit & 31).to(tl.int32)
            for i in range((31 + run + 31) // 32):
                begin = tl.maximum(bit - 32 * i, 0)
                bits_here = tl.minimum(bit + run - 32 * i, 32) - begin
                run_here = (all_ones >> (32 - tl.maximum(bits_here, 1)).to(tl.uint32)) << tl.minimum(begin, 31).to(
                    tl.uint32
                )
                half = (unit >> 5) + i
                here_too = inside & (bits_here > 0) & (half >= 2) & (half < 2 * span)
                tl.atomic_or(halves + half, run_here.to(tl.int32, bitcast=True), mask=here_too, sem="relaxed")

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
            dropped += tl.where(mine, ones(word), 0)
    if COUNT:
        add_count(counted, scale, tl.sum(dropped.to(tl.int64), axis=0), units)
