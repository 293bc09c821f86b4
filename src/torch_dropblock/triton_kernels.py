"""What runs on a GPU, in Triton: draw the seeds, grow them to blocks, apply the mask.

    rng_seed ── draw_rows ──> first rows of blocks ── grow ──> mask, count ── apply_flat, apply_tiles ──> output

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
    """Number over divisor, rounded down, for 0 <= number < 2^31 and `triton_launch.reciprocal(divisor)`.

    A division by what is not known when the code is compiled takes many times as long.
    """
    product = number.to(tl.uint32, bitcast=True).to(tl.uint64) * reciprocal.to(tl.uint32).to(tl.uint64)
    return (product >> (reciprocal >> 32).to(tl.uint64)).to(tl.int32)


@triton.jit(
    do_not_specialize=[
        "gap_high", "gap_low", "positions", "stream_length", "plane_positions", "valid_rows", "valid_columns",
        "by_plane", "by_rows", "by_columns", "plane_units", "area", "row", "run", "run_words",
    ]
)  # fmt: skip
def draw_rows(
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
    by_plane,
    by_rows,
    by_columns,
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
        planes = _divided(rest, by_plane)
        rest -= planes * plane_positions
        line = _divided(rest, by_columns)
        column = rest - line * valid_columns
        layer = _divided(line, by_rows)
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


@triton.jit
def _grown(source, start, length, stride, step, last, shifts, AT_AN_END: tl.constexpr, WORDS: tl.constexpr):
    index = tl.arange(0, WORDS)
    total = tl.zeros((WORDS,), tl.uint64)
    for i in range(shifts):
        shift = tl.minimum(i * step, last).to(tl.int64) * stride
        bits = (shift & 63).to(tl.uint64)
        at = start - (shift >> 6)
        if AT_AN_END:
            inside = index < length - start
            upper = tl.load(source + at + index, mask=inside & (at + index >= 0), other=0)
            lower = tl.load(source + at - 1 + index, mask=inside & (at + index >= 1), other=0)
        else:
            upper = tl.load(source + at + index)
            lower = tl.load(source + at - 1 + index)
        # a shift by 64 would be undefined
        total |= (upper.to(tl.uint64, bitcast=True) << bits) | ((lower.to(tl.uint64, bitcast=True) >> 1) >> (63 - bits))
    return total


@triton.jit(do_not_specialize=["length", "units", "stride", "step", "last", "shifts"])
def grow(
    source,
    target,
    counted,
    scale,
    length,
    units,
    stride,
    step,
    last,
    shifts,
    COUNT: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Shift a string of bits by min(i * step, last) * stride for each i < shifts, and take every bit set in any.

    Blocks lie whole inside their map, so no bit is shifted over the end of a row or of a plane. The program that is
    the last to count, whichever that is, stores the scale: units over units kept. Where all are dropped it is finite,
    and no unit is multiplied by it.
    """
    start = tl.program_id(0).to(tl.int64) * WORDS
    index = tl.arange(0, WORDS)
    if (start > (last.to(tl.int64) * stride >> 6)) & (start + WORDS <= length):
        total = _grown(source, start, length, stride, step, last, shifts, False, WORDS)
    else:
        total = _grown(source, start, length, stride, step, last, shifts, True, WORDS)
    tl.store(target + start + index, total.to(tl.int64, bitcast=True), mask=index < length - start)
    if COUNT:
        dropped = tl.sum(_ones(total), axis=0).to(tl.int64)
        before = tl.atomic_add(counted, dropped + ONE_PROGRAM, sem="relaxed")
        if (before >> 40) == tl.num_programs(0) - 1:
            kept = units - (before & (ONE_PROGRAM - 1)) - dropped
            tl.store(scale, units.to(tl.float64) / tl.maximum(kept, 1).to(tl.float64))


@triton.jit
def _apply_eights(
    input,
    output,
    mask,
    scale,
    elements,
    OP: tl.constexpr,
    EIGHTS: tl.constexpr,
    POLICY: tl.constexpr,
    RAGGED: tl.constexpr,
):
    eight = tl.arange(0, EIGHTS)
    inner = tl.arange(0, 8)
    start = tl.program_id(0).to(tl.int64) * (EIGHTS * 8)
    offset = eight[:, None] * 8 + inner[None, :]
    mask += tl.program_id(0).to(tl.int64) * EIGHTS
    input += start
    output += start
    if RAGGED:
        value = tl.load(input + offset, mask=offset < elements - start, other=0.0, eviction_policy=POLICY)
        byte = tl.load(mask + eight, mask=eight * 8 < elements - start, other=0)
    else:
        value = tl.load(input + offset, eviction_policy=POLICY)
        byte = tl.load(mask + eight)
    dropped = (byte.to(tl.int32)[:, None] >> inner[None, :]) & 1
    scaled = (value.to(OP) * tl.load(scale).to(OP)).to(output.dtype.element_ty)
    result = tl.where(dropped == 0, scaled, tl.zeros_like(scaled))
    if RAGGED:
        tl.store(output + offset, result, mask=offset < elements - start, eviction_policy=POLICY)
    else:
        tl.store(output + offset, result, eviction_policy=POLICY)


@triton.jit
def apply_flat(input, output, mask, scale, elements, OP: tl.constexpr, EIGHTS: tl.constexpr, POLICY: tl.constexpr):
    """Elements in the order of the bits of the mask, eight to a byte."""
    if (tl.program_id(0).to(tl.int64) + 1) * (EIGHTS * 8) <= elements:
        _apply_eights(input, output, mask, scale, elements, OP, EIGHTS, POLICY, False)
    else:
        _apply_eights(input, output, mask, scale, elements, OP, EIGHTS, POLICY, True)


@triton.jit
def _window(mask, bit, words, inside):
    """The 32 bits of the mask from `bit` on."""
    at = bit >> 5
    lower = tl.load(mask + at, mask=inside, other=0).to(tl.uint32, bitcast=True).to(tl.uint64)
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
    POLICY: tl.constexpr,
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
    value = tl.load(input + where, mask=inside, other=0.0, eviction_policy=POLICY)
    window = _window(mask, sample * sample_bits + row * 32 + channel * channel_bits, words, channel < channels)
    dropped = (window[None, :] >> tl.arange(0, 32).to(tl.uint32)[:, None]) & 1
    scaled = (value.to(OP) * tl.load(scale).to(OP)).to(output.dtype.element_ty)
    where = sample * output_sample + unit[:, None] * output_unit + channel[None, :] * output_channel
    result = tl.where(dropped == 0, scaled, tl.zeros_like(scaled))
    tl.store(output + where, result, mask=inside, eviction_policy=POLICY)


@triton.jit(do_not_specialize=["words", "size", "channels", "rows", "columns"])
def channels_inside(mask, target, words, size, channels, rows, columns):
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
def solve(keep_prob, gap, s0, s1, s2, b0, b1, b2, PAPER: tl.constexpr, LANES: tl.constexpr):
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
