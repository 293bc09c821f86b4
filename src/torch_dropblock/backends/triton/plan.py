"""Launch parameters of the two drawing kernels, computed once per shape and block.

The programs of `draw` divide the words of the mask, 64 units each, among them. A program handles its own words and the
halo: the words before them, from which blocks may reach in. It draws the streams whose seeds may set bits in either.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from ...core.blocks import Blocks
from ...core.geometry import Size, valid_region

# The kernel counts positions within a plane and within a stream in 32 bits.
MOST_UNITS_OF_A_PLANE = 1 << 30

# The kernels count their programs in 23 bits.
MOST_PROGRAMS = 1 << 23

# row of a block, in units, above which it is not set word by word
LONG_ROW = 128
# number of programs that keeps a GPU busy
ENOUGH_PROGRAMS = 512


@dataclass(frozen=True)
class Plan:
    """Launch parameters of the drawing kernel.

    Attributes:
        length: length of the mask, in words.
        programs: number of programs.
        chunk: words that a program holds at once.
        one_chunk: True if a program's words and its halo are one chunk.
        scratch: words of scratch memory, for all programs together.
        wide: True if units are counted in 64 bits.
        parameters: the kernel's integer parameters by name.
    """

    length: int
    programs: int
    chunk: int
    one_chunk: bool
    scratch: int
    wide: bool
    parameters: dict[str, int]


def why_not_of(size: Size) -> str | None:
    """Return why this backend does not serve maps of this size, None if it does."""
    if math.prod(size) >= MOST_UNITS_OF_A_PLANE:
        return f"it counts the positions of a map in 32 bits, and this one has {math.prod(size)}"
    return None


def plan_of(blocks: Blocks, words: int) -> Plan:
    """Return the plan of these blocks, for programs that hold `words` words at once.

    Raises:
        ValueError: the maps are too large.
    """
    if words not in blocks.cache:
        blocks.cache[words] = _plan(blocks, words)
    plan: Plan = blocks.cache[words]
    return plan


def _plan(blocks: Blocks, words: int) -> Plan:
    if reason := why_not_of(blocks.size):  # compiled code chooses its backend without the size
        raise ValueError(f"the Triton backend cannot draw these blocks: {reason}; use_backend('sparse') takes another")
    pad = (1,) * (3 - len(blocks.size))
    # rows of a block are set word by word, so treat a long one as an axis of rows of one unit
    before, behind = (pad[1:], pad[:1]) if blocks.block[-1] > LONG_ROW else (pad, ())
    size, block = before + blocks.size + behind, before + blocks.block + behind
    valid = valid_region(size, block)
    plane, area, row = math.prod(size), size[1] * size[2], size[2]
    length = parts(blocks.units, 64)
    # words that blocks reach back, and one that stays empty
    halo = parts((block[0] - 1) * area + (block[1] - 1) * row, 64) + 1
    chunk = at_most(words, length)
    # own words are three times the halo, or fewer if there would be too few programs
    for many in (4, 2, 1.25):
        chunks = max(1, parts(math.ceil(many * halo), chunk))
        own = chunks * chunk - halo
        programs = parts(length, own)
        if programs >= ENOUGH_PROGRAMS:
            break
    parameters = {
        "length": length,
        "units": blocks.units,
        "halo": halo,
        "own": own,
        "chunks": chunks,
        **_of_seeds(blocks, valid),
        "plane_units": plane,
        "by_units": inverse(plane),
        "area": area,
        "by_area": reciprocal(area),
        "row": row,
        "by_row": reciprocal(row),
        "layers": block[0],
        "rows": block[1],
        "run": block[2],
    }
    # the last unit that a program's streams may reach, counted from its first
    furthest = (blocks.streams.group // math.prod(valid) + 2) * plane + 64 * chunks * chunk
    return Plan(length, programs, chunk, chunks == 1, programs * chunks * chunk, furthest >= 1 << 31, parameters)


def _of_seeds(blocks: Blocks, valid: Size) -> dict[str, int]:
    """Return the parameters by which a kernel draws seeds, for a valid seed region in three dimensions."""
    streams, positions = blocks.streams, math.prod(valid)
    return {
        "positions": blocks.positions,
        "group": streams.group,
        "by_group": inverse(streams.group),
        "group_planes": streams.planes,
        "per_group": streams.per_group,
        "stream_length": streams.length,
        "by_length": inverse(streams.length),
        "plane_positions": positions,
        "by_positions": reciprocal(positions),
        "valid_rows": valid[1],
        "by_valid_rows": reciprocal(valid[1]),
        "valid_columns": valid[2],
        "by_valid_columns": reciprocal(valid[2]),
    }


@dataclass(frozen=True)
class ChannelsPlan:
    """Launch parameters of the kernel that draws 32 channels to a word.

    Attributes:
        programs: number of programs.
        width: words of a unit that a program makes.
        chunk: words that a program holds.
        parameters: the kernel's integer parameters by name.
    """

    programs: int
    width: int
    chunk: int
    parameters: dict[str, int]


def channels_plan_of(blocks: Blocks, words: int) -> ChannelsPlan | None:
    """Return the plan for programs that hold at most `words` words, None for larger maps and for too many samples."""
    plane = math.prod(blocks.size)
    if plane > words:
        return None
    pad = (1,) * (3 - len(blocks.size))
    size, block, valid = pad + blocks.size, pad + blocks.block, pad + blocks.valid
    samples, channels = math.prod(blocks.own_lead[:-1]), blocks.own_lead[-1]
    columns = parts(channels, 32)
    # memory transfers 8 words at once; there are fewer, if programs would be too few
    width = 1
    for wider in (2, 4, 8):
        if wider // 2 < columns and wider * plane <= words and samples * parts(columns, wider) >= ENOUGH_PROGRAMS:
            width = wider
    parameters = {
        "units": blocks.units,
        "channels": channels,
        "columns": columns,
        "parts": parts(columns, width),
        **_of_seeds(blocks, valid),
        "plane_units": plane,
        "area": size[1] * size[2],
        "row": size[2],
        "layers": block[0],
        "rows": block[1],
        "run": block[2],
    }
    programs, chunk = samples * parts(columns, width), 1 << (width * plane - 1).bit_length()
    return ChannelsPlan(programs, width, chunk, parameters) if programs < MOST_PROGRAMS else None


def reciprocal(divisor: int) -> int:
    """Return the factor and the shift that divide a number below 2^31, each in 32 bits, with shift + 1 above.

    To divide, multiply twice the number by the factor and shift the upper 32 bits of the product right by the shift.
    Source: Granlund, Montgomery, "Division by invariant integers using multiplication", PLDI 1994.
    """
    shift = (divisor - 1).bit_length()
    return parts(1 << 31 + shift, divisor) | shift + 1 << 32


def inverse(divisor: int) -> int:
    """Return the bits of 1 / divisor in float64."""
    (bits,) = struct.unpack("q", struct.pack("d", 1 / divisor))
    return int(bits)


def at_most(launched: int, wanted: int) -> int:
    """Return the work of one program: in the interpreter no more than `wanted` needs; on a GPU always `launched`."""
    return min(launched, max(1024, 1 << (wanted - 1).bit_length()))


def parts(whole: int, part: int) -> int:
    return -(-whole // part)
