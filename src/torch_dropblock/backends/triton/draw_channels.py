"""Draw a mask with 32 channels of a unit in each word, on a GPU, in Triton: for compiled code on channels-last tensors.

A block covers the same bit of neighbouring words. So seeds grow into blocks by whole words, and no bit is shifted.
"""
# Triton reads the annotations of a kernel as they are, so there is no `from __future__ import annotations`.

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from .draw import add_count, ones
from .seeds import PHI, bounds, counts, mix, places, streams_between, unit_of


@triton.jit
def _grown(word, extent, stride, CHUNK: tl.constexpr):
    """Add to every word those that lie 1 to extent - 1 strides before it, in steps that double."""
    index = tl.arange(0, CHUNK)
    done = 1
    while done < extent:
        step = tl.minimum(done, extent - done)
        at = index - step * stride
        word |= tl.where(at >= 0, tl.gather(word, tl.maximum(at, 0), 0), 0)
        done += step
    return word


# The launch parameters change with the shape; with specialisation, Triton would recompile the kernel for each.
@triton.jit(
    do_not_specialize=[
        "key", "table", "copy", "units", "channels", "columns", "parts", "positions", "group", "by_group",
        "group_planes", "per_group", "stream_length", "by_length", "plane_positions", "by_positions", "valid_rows",
        "by_valid_rows", "valid_columns", "by_valid_columns", "plane_units", "area", "row", "layers", "rows", "run",
    ]
)  # fmt: skip
def draw_channels(
    words,
    counted,
    scale,
    key,
    table,
    copy,
    units,
    channels,
    columns,
    parts,
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
    area,
    row,
    layers,
    rows,
    run,
    COUNT: tl.constexpr,
    COPY: tl.constexpr,
    STREAMS: tl.constexpr,
    DRAWS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    TABLE: tl.constexpr,
):
    """Draw whole planes: 32 * WIDTH channels of one sample, whose words are the program's own.

    A unit has `columns` words, which `parts` programs divide. The seeds are those of `seeds.py`, stream by stream. A
    seed sets the first bit of its block, and `_grown` adds the others.
    """
    program = tl.program_id(0).to(tl.int64)
    sample = program // parts
    first_column = ((program - sample * parts) * WIDTH).to(tl.int32)
    own_channels = tl.minimum(channels - first_column * 32, 32 * WIDTH)
    first_plane = sample * channels + first_column * 32
    own = words + sample * plane_units * columns + first_column

    index = tl.arange(0, CHUNK)
    unit, column = index // WIDTH, index % WIDTH
    place = unit * columns + column
    exists = (unit < plane_units) & (first_column + column < columns)
    tl.store(own + place, tl.zeros((CHUNK,), tl.int32), mask=exists)
    tl.debug_barrier()

    low = first_plane * plane_positions
    first_group, first_piece, streams = streams_between(
        low, low + own_channels.to(tl.int64) * plane_positions, group, by_group, per_group, stream_length, by_length
    )
    # positions are counted from the first group, planes from the program's first
    positions_left = tl.minimum(positions - first_group * group, 0x7FFFFFFF).to(tl.int32)
    origin = (first_group * group_planes - first_plane).to(tl.int32)

    mixed = mix(tl.load(key).to(tl.uint64, bitcast=True))
    entry = tl.arange(0, TABLE)
    numbers = tl.load(table).to(tl.int32)
    # entry 0 is not a probability
    probabilities = tl.where(entry > 0, tl.load(table + entry), 2.0)
    if COPY:
        tl.store(copy + entry, tl.load(table + entry), mask=(entry >= 0) & (program == 0))  # of the first program
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
            plane, in_plane = unit_of(
                position, plane_positions, by_positions, area, row, valid_rows, by_valid_rows,
                valid_columns, by_valid_columns,
            )  # fmt: skip
            channel = origin + plane
            inside = (number < many[:, None]) & (position < end[:, None]) & (channel >= 0) & (channel < own_channels)
            bit = tl.full((STREAMS, DRAWS), 1, tl.uint32) << (channel & 31).to(tl.uint32)
            word = own + in_plane * columns + (channel >> 5)
            tl.atomic_or(word, bit.to(tl.int32, bitcast=True), mask=inside, sem="relaxed")

    tl.debug_barrier()
    word = tl.load(own + place, mask=exists, other=0)
    word = _grown(word, run, WIDTH, CHUNK)
    word = _grown(word, rows, row * WIDTH, CHUNK)
    word = _grown(word, layers, area * WIDTH, CHUNK)
    tl.debug_barrier()
    tl.store(own + place, word, mask=exists)
    if COUNT:
        dropped = ones(word.to(tl.uint32, bitcast=True).to(tl.uint64))
        add_count(counted, scale, tl.sum(dropped.to(tl.int64), axis=0), units)
