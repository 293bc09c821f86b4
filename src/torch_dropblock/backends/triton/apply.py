"""Apply a mask of bits on a GPU, in Triton: the input is read once, the output is written once.

Bit i of the mask, in words of 64 bits, is 1 if unit i is dropped. Units are numbered plane by plane and row by
row, for tensors of any strides. docs/kernel.md has the details; `launch.py` launches.
"""
# Triton reads the annotations of a kernel as they are, so there is no `from __future__ import annotations`.

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]


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
    """Apply the mask to elements in the order of its bits, eight to a byte."""
    mask = mask.to(tl.pointer_type(tl.uint8))
    if (tl.program_id(0).to(tl.int64) + 1) * (EIGHTS * 8) <= elements:
        _apply_eights(input, output, mask, scale, elements, OP, EIGHTS, False)
    else:
        _apply_eights(input, output, mask, scale, elements, OP, EIGHTS, True)


@triton.jit
def _window(mask, bit, words, inside):
    """Return the 32 bits of the mask from `bit` on."""
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
    """Apply the mask to tiles of 32 units by CHANNELS channels of one sample, in any strides.

    Each channel's bits in a tile are one window.
    """
    mask = mask.to(tl.pointer_type(tl.int32))
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
    """Transpose the mask of planes into one whose words hold 32 channels of one unit each; a task is 32 by 32 bits.

    Tasks are grouped ROWS by COLUMNS within a sample, so that a group uses whole cache lines of both masks.
    """
    mask = mask.to(tl.pointer_type(tl.int32))
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
