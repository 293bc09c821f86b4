"""What the kernel that draws is told of a shape and a block: numbers, worked out once for each.

The kernel's programs share out the words of the mask, 64 units each. A program looks at its own words and at those
before them from which blocks reach in (the halo), and walks the streams of seed positions that may set bits there.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import lru_cache

from ...core.geometry import Size, valid_region
from ...core.seeds import Blocks

# units of a row of a block
LONG_ROW = 128
# of a GPU that is to have something to do
ENOUGH_PROGRAMS = 512


@dataclass(frozen=True)
class Plan:
    """The numbers of `triton_draw.draw` in their order, and how it is launched.

    Attributes:
        length: of the mask, in words.
        programs: how many share it out.
        chunk: words that a program holds at once.
        one_chunk: whether these are all that it looks at.
        scratch: words of memory for all programs together.
        wide: whether units are counted in 64 bits.
        numbers: for the kernel, after the two of `gap_in_two`.
    """

    length: int
    programs: int
    chunk: int
    one_chunk: bool
    scratch: int
    wide: bool
    numbers: tuple[int | float, ...]


def plan_of(blocks: Blocks, words: int) -> Plan:
    """The plan of these blocks, for programs that hold so many words at once."""
    return _plan(blocks.size, blocks.block, blocks.units // math.prod(blocks.size), words)


@lru_cache(maxsize=1024)
def _plan(size: Size, block: Size, planes: int, words: int) -> Plan:
    pad = (1,) * (3 - len(size))
    # a row of a block is set word by word, so a long one is made the second of three axes, of rows of one unit
    before, behind = (pad[1:], pad[:1]) if block[-1] > LONG_ROW else (pad, ())
    size, block = before + size + behind, before + block + behind
    valid = valid_region(size, block)
    plane, positions, area, row = math.prod(size), math.prod(valid), size[1] * size[2], size[2]
    length, stream = parts(planes * plane, 64), stream_length(size, block)
    # blocks reach so many words back, and one is left empty
    halo = parts((block[0] - 1) * area + (block[1] - 1) * row, 64) + 1
    chunk = at_most(words, length)
    # a program's own words are three times as many, and fewer only where else there were few programs
    for many in (4, 2, 1.25):
        chunks = max(1, parts(math.ceil(many * halo), chunk))
        own = chunks * chunk - halo
        programs = parts(length, own)
        if programs >= ENOUGH_PROGRAMS:
            break
    numbers = (
        length,
        planes * plane,
        halo,
        own,
        chunks,
        planes * positions,
        stream,
        positions,
        valid[1],
        valid[2],
        reciprocal(positions),
        reciprocal(valid[1]),
        reciprocal(valid[2]),
        plane,
        area,
        row,
        inverse(plane),
        inverse(stream),
        inverse(positions),
        reciprocal(area),
        reciprocal(row),
        *block,
    )
    # the furthest unit of a stream, counted from a program's first one
    furthest = (stream // positions + 2) * plane + 64 * chunks * chunk
    return Plan(length, programs, chunk, chunks == 1, programs * chunks * chunk, furthest >= 1 << 31, numbers)


def stream_length(size: Size, block: Size) -> int:
    """How many seed positions make a stream: where a tenth of the units is dropped, about 24 seeds are in each.

    They are drawn at once, by the lanes of a warp. A function of the shape and the block alone, as the mask is.
    """
    seeds_wanted = math.prod(size) / (math.prod(block) * math.prod(valid_region(size, block)))  # to drop them all
    return min(max(round(240 / seeds_wanted), 32), 1 << 16)


def reciprocal(divisor: int) -> int:
    """What twice a number below 2^31 is multiplied by, and its upper 32 bits shifted right by, to be divided.

    32 bits each, the shift and 1 above. Source: Granlund, Montgomery, "Division by invariant integers using
    multiplication", PLDI 1994.
    """
    shift = (divisor - 1).bit_length()
    return parts(1 << 31 + shift, divisor) | shift + 1 << 32


def inverse(divisor: int) -> int:
    """The bits of 1 / divisor in float64."""
    (bits,) = struct.unpack("q", struct.pack("d", 1 / divisor))
    return int(bits)


def mean_gap_of(gamma: float) -> float:
    """-1 / log(1 - γ), as far as the two numbers hold it that the kernel is given."""
    return sum(gap_in_two(gamma))


@lru_cache(maxsize=1024)
def gap_in_two(gamma: float) -> tuple[float, float]:
    """-1 / log(1 - γ) as a sum: a number that is given to a kernel has 32 bits."""
    whole = 0.0
    if gamma < 1.0:
        whole = min(-1.0 / math.log1p(-gamma), 1e30) if gamma else 1e30
    high = _rounded(whole)
    return high, _rounded(whole - high)


def _rounded(number: float) -> float:
    return float(struct.unpack("f", struct.pack("f", number))[0])


def at_most(launched: int, wanted: int) -> int:
    """How much one program does: in the interpreter no more than there is; on a GPU always the same."""
    return min(launched, max(1024, 1 << (wanted - 1).bit_length()))


def parts(whole: int, part: int) -> int:
    return -(-whole // part)
