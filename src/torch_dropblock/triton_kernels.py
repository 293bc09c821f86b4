"""What runs on a GPU, in Triton: draw the seeds, grow them to blocks, apply the mask.

    rng_seed ── draw ──> mask, scale ── apply_flat, apply_tiles ──> output

docs/kernel.md has the formula, the layout of the mask and how its random numbers are made; `triton_launch.py` launches.
"""
# Triton reads the annotations of a kernel as they are, so there is no `from __future__ import annotations`.

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

# One number holds how many programs have counted, above, and what they have counted, below.
ONE_PROGRAM = tl.constexpr(1 << 40)
TO_UNIT = tl.constexpr(2.0**-64)
# Below it a logarithm of 1 - v is a short sum: a difference from 1 would lose what is small.
SMALL = tl.constexpr(2.0**-8)


@triton.jit
def _series(v):
    """-log(1 - v) for 0 <= v < 2^-8 in float64, with a relative error below 2^-45."""
    return v * (1.0 + v * (1.0 / 2 + v * (1.0 / 3 + v * (1.0 / 4 + v * (1.0 / 5 + v * (1.0 / 6))))))


@triton.jit
def _minus_log1m(v):
    """-log(1 - v) for 0 <= v <= 1."""
    return tl.where(v < SMALL, _series(v), -tl.log(1.0 - v))


@triton.jit
def _exponential(word):
    """A standard exponential from 64 random bits, as -log(1 - v); each tail as precise as the other."""
    is_small = (word >> 56) == 0  # v < 2^-8; else 1 - v is made of the complement, without a difference from 1
    complement = (~word.to(tl.int64, bitcast=True)).to(tl.uint64, bitcast=True)
    v = (tl.where(is_small, word, complement).to(tl.float64) + 0.5) * TO_UNIT
    return tl.where(is_small, _series(v), -tl.log(v))


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
        sum = tl.sum(dropped, axis=0).to(tl.int64)
        before = tl.atomic_add(counted, sum + ONE_PROGRAM, sem="relaxed")
        if (before >> 40) == tl.num_programs(0) - 1:
            kept = units - (before & (ONE_PROGRAM - 1)) - sum
            tl.store(scale, units.to(tl.float64) / tl.maximum(kept, 1).to(tl.float64))


@triton.jit
def _apply_eights(input, output, mask, scale, elements, OP: tl.constexpr, EIGHTS: tl.constexpr, RAGGED: tl.constexpr):
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
    scaled = (value.to(OP) * tl.load(scale).to(OP)).to(output.dtype.element_ty)
    result = tl.where(dropped == 0, scaled, tl.zeros_like(scaled))
    if RAGGED:
        tl.store(output + offset, result, mask=offset < elements - start)
    else:
        tl.store(output + offset, result)


@triton.jit
def apply_flat(input, output, mask, scale, elements, OP: tl.constexpr, EIGHTS: tl.constexpr):
    """Elements in the order of the bits of the mask, eight to a byte."""
    if (tl.program_id(0).to(tl.int64) + 1) * (EIGHTS * 8) <= elements:
        _apply_eights(input, output, mask, scale, elements, OP, EIGHTS, False)
    else:
        _apply_eights(input, output, mask, scale, elements, OP, EIGHTS, True)


@triton.jit
def _window(mask, bit, words, inside):
    """The 32 bits of the mask from `bit` on."""
    at = bit >> 5
    lower = tl.load(mask + at, mask=inside & (at < words), other=0).to(tl.uint32, bitcast=True).to(tl.uint64)
    upper = tl.load(mask + at + 1, mask=inside & (at + 1 < words), other=0).to(tl.uint32, bitcast=True).to(tl.uint64)
    return ((lower | (upper << 32)) >> (bit & 31).to(tl.uint64)).to(tl.uint32)


@triton.jit(do_not_specialize=["words", "tiles", "columns_of_tiles"])
def apply_tiles(
    input,
    output,
    mask,
    scale,
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
    scaled = (value.to(OP) * tl.load(scale).to(OP)).to(output.dtype.element_ty)
    where = sample * output_sample + unit[:, None] * output_unit + channel[None, :] * output_channel
    tl.store(output + where, tl.where(dropped == 0, scaled, tl.zeros_like(scaled)), mask=inside)


@triton.jit(do_not_specialize=["words", "groups", "size", "channels", "rows", "columns"])
def channels_inside(
    mask,
    target,
    words,
    groups,
    size,
    channels,
    rows,
    columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TASKS: tl.constexpr,
):
    """Turn the mask of planes into one whose words hold 32 channels of one unit each: 32 by 32 bits are a task.

    Neighbours are ROWS by COLUMNS tasks of one sample: of as many as lie in a line of the cache before and after.
    """
    task = tl.program_id(0).to(tl.int64) * TASKS + tl.arange(0, TASKS).to(tl.int64)
    group = task // (ROWS * COLUMNS)
    across = (columns + COLUMNS - 1) // COLUMNS
    down = (rows + ROWS - 1) // ROWS
    line = group // across
    sample = line // down
    column = (group - line * across) * COLUMNS + task % COLUMNS
    row = (line - sample * down) * ROWS + task // COLUMNS % ROWS
    inside = (group < groups) & (column < columns)
    inner = tl.arange(0, 32)
    channel = column[None, :] * 32 + inner[:, None]
    bit = (sample[None, :] * channels + channel) * size + row[None, :] * 32
    window = _window(mask, bit, words, inside[None, :] & (channel < channels)).to(tl.int32, bitcast=True)
    for i in tl.static_range(32):
        word = tl.sum(((window >> i) & 1) << inner[:, None], axis=0)
        unit = row * 32 + i
        tl.store(target + (sample * size + unit) * columns + column, word, mask=inside & (unit < size))


@triton.jit
def _moment(size, block, most, POWER: tl.constexpr):
    """The mean, over the units along an axis, of the number of blocks that cover a unit, or of its square."""
    t = most.to(tl.float64)
    s = size.to(tl.float64)
    if POWER == 1:
        return block.to(tl.float64) * (s - block.to(tl.float64) + 1) / s
    return ((t - 1) * t * (2 * t - 1) / 3 + (s - 2 * t + 2) * t * t) / s


@triton.jit(do_not_specialize=["s0", "s1", "s2", "b0", "b1", "b2"])
def solve(keep_prob, gap, s0, s1, s2, b0, b1, b2, PAPER: tl.constexpr, LANES: tl.constexpr):
    """`geometry.gamma` on the device, by Newton's method, as the mean gap -1 / log(1 - γ): see there."""
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
        # that of a normal distribution of the numbers n, or the first of Newton's steps from 0
        mean = _moment(s0, b0, t0, 1) * _moment(s1, b1, t1, 1) * _moment(s2, b2, t2, 1)
        variance = _moment(s0, b0, t0, 2) * _moment(s1, b1, t1, 2) * _moment(s2, b2, t2, 2) - mean * mean
        rate = -2.0 * goal / (mean + tl.sqrt(tl.maximum(mean * mean + 2.0 * variance * goal, 0.0)))
        rate = tl.where(mean * mean + 2.0 * variance * goal > 0.0, rate, -goal / mean)
        step = tl.where(keep < 1e-200, 0.0, rate + 1.0)
        turn = 0
        # an error is squared by the next step
        while (tl.abs(step) > 1e-6 * rate) & (turn < 100):
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
