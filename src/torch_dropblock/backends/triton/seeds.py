"""Draw the seeds of `core/seeds.py` on a GPU, in Triton: what the kernels that make masks share."""
# Triton reads the annotations of a kernel as they are, so there is no `from __future__ import annotations`.

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

PHI = tl.constexpr(0x9E3779B97F4A7C15)
TO_UNIT = tl.constexpr(2.0**-53)


@triton.jit
def mix(word):
    """Mix a uint64 like `keys.mix_`."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB
    return word ^ (word >> 31)


@triton.jit
def divided(number, reciprocal):
    """Return number // divisor, for 0 <= number < 2^31 and `plan.reciprocal(divisor)`.

    A division by a number that is unknown at compilation is many times slower.
    """
    doubled = number.to(tl.uint32, bitcast=True) * 2
    shift = ((reciprocal >> 32) - 1).to(tl.uint32)
    return (tl.umulhi(doubled, reciprocal.to(tl.uint32)) >> shift).to(tl.int32)


@triton.jit
def quotient(number, divisor, inverse):
    """Return number // divisor, for 0 <= number < 2^53 and the bits of 1 / divisor in float64."""
    quotient = (number.to(tl.float64) * inverse.to(tl.float64, bitcast=True)).to(tl.int64)
    rest = number - quotient * divisor
    return quotient + (rest >= divisor).to(tl.int64) - (rest < 0).to(tl.int64)


@triton.jit
def streams_between(low, high, group, by_group, per_group, stream_length, by_length):
    """Return the streams of the positions from `low` to before `high`: the first's group and piece, and how many."""
    first_group = quotient(low, group, by_group)
    first_piece = quotient(low - first_group * group, stream_length, by_length).to(tl.int32)
    last = tl.maximum(high - 1, 0)
    last_group = quotient(last, group, by_group)
    last_piece = quotient(last - last_group * group, stream_length, by_length).to(tl.int32)
    streams = ((last_group - first_group) * per_group).to(tl.int32) + last_piece - first_piece + 1
    return first_group, first_piece, tl.where(high > low, streams, 0)


@triton.jit
def bounds(piece, group, per_group, stream_length, positions_left):
    """Return where streams start and end, in positions counted from the first group."""
    group_start = piece // per_group * group.to(tl.int32)
    start = group_start + piece % per_group * stream_length
    return start, tl.minimum(tl.minimum(start + stream_length, group_start + group.to(tl.int32)), positions_left)


@triton.jit
def counts(base, numbers, probabilities):
    """Return how many places streams draw: the sum of `numbers` numbers of the table's distribution."""
    many = base.to(tl.int32) * 0
    for i in range(numbers):
        word = mix(base + (many * 0 + i).to(tl.uint64) * PHI)
        uniform = (word >> 11).to(tl.int64).to(tl.float64) * TO_UNIT
        many += tl.sum((probabilities[None, :] <= uniform[:, None]).to(tl.int32), axis=1)
    return many


@triton.jit
def places(base, number, stream_length):
    """Return the places in their streams that words number `number` are."""
    word = mix(base + number.to(tl.uint64) * PHI)
    return (((word >> 17) * stream_length.to(tl.uint64)) >> 47).to(tl.int32)


@triton.jit
def unit_of(position, plane_positions, by_positions, area, row, valid_rows, by_valid_rows, valid_columns, by_columns):
    """Return the plane of a position, and the unit there."""
    plane = divided(position, by_positions)
    rest = position - plane * plane_positions
    line = divided(rest, by_columns)
    column = rest - line * valid_columns
    layer = divided(line, by_valid_rows)
    line -= layer * valid_rows
    return plane, layer * area + line * row + column
