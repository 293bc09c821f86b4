"""Draw the seeds of a key, without a random number per unit.

Each position is a seed with probability γ, independently. The distinct values among K ~ Poisson(λ M) positions, drawn
uniformly from M, have that distribution, for λ = -log(1 - γ). So a stream of M positions draws a number K, then K
places. It uses its words in order: the first ones for K, each by a search in a table of the Poisson distribution, the
next ones for the places.

Every operation is exact or rounded once, and no product is directly added to a number, so nothing can be fused.
PyTorch, C and Triton therefore agree bit for bit.
"""

from __future__ import annotations

import math
import struct
from functools import lru_cache

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._subclasses.fake_tensor import unset_fake_temporarily

from . import geometry
from .blocks import Blocks
from .checks import Rate
from .geometry import Size
from .keys import PHI, Key, device_of, mix_, shift_right, signed, stream_bases

# Entries of a table. Entry 0 is the count of numbers whose sum is K. The others are P(number <= k) for k = 0, 1, …,
# and 1 at the end. A number has a mean of at most MOST_EXPECTED, so its probabilities reach 1 long before the end.
TABLE = 128
MOST_EXPECTED = 32
# From this λ on, γ rounds to 1 in float64.
MOST_LAM = 40.0
# Streams drawn at once, so that their numbers stay in the cache.
STREAMS_AT_ONCE = 1 << 13


def rounded(lam: float) -> float:
    """Return λ rounded to float32 for drawing, so that a γ solved on another device gives the same seeds."""
    return float(struct.unpack("f", struct.pack("f", min(lam, MOST_LAM)))[0])


def poisson_table(lam: float, length: int) -> list[float]:
    """Return the table of a stream of `length` positions; `triton/gamma.py` makes the same one on a GPU."""
    expected = rounded(lam) * length
    numbers = max(math.ceil(expected / MOST_EXPECTED), 1)
    expected /= numbers
    # e^-expected: a series for the 128th part, then seven squares
    part, exponential = expected / 128, 1.0
    for k in range(16, 0, -1):
        exponential = 1.0 - part * exponential / k
    for _ in range(7):
        exponential *= exponential
    table, probability, sum = [float(numbers)], exponential, exponential
    for k in range(1, TABLE):
        table.append(min(sum, 1.0) if probability > 1e-18 or k < expected else 1.0)
        probability = probability * expected / k
        sum += probability
    return table


@lru_cache(maxsize=1024)
def table_of(size: Size, block: Size, length: int, keep_prob: float, rate: Rate) -> Tensor | None:
    """Return the table of a stream of `length` positions: float64, on the CPU; None if everything is dropped."""
    lam = geometry.lam(size, block, keep_prob, rate)
    if math.isinf(lam):
        return None
    # the table outlives this call, so it must be a plain tensor: neither fake nor tracked by a transform
    with torch.inference_mode(False), unset_fake_temporarily(), temporarily_clear_interpreter_stack():
        return torch.tensor(poisson_table(lam, length), dtype=torch.float64, device="cpu")


def draw_seeds(key: Key, blocks: Blocks, table: Tensor) -> Tensor:
    """Draw the seeds of a key: int64, stream by stream, unsorted within a stream.

    A position may occur twice. Nothing is read back from a device: there every stream gets as many seeds as its table
    allows, and surplus seeds are set to `blocks.positions`, one past the last position.
    """
    if not blocks.positions:
        return torch.empty(0, dtype=torch.int64, device=device_of(key))
    draw = _exactly if device_of(key).type == "cpu" else _at_most
    count = blocks.streams.count
    parts = [draw(key, blocks, table, i, min(STREAMS_AT_ONCE, count - i)) for i in range(0, count, STREAMS_AT_ONCE)]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _exactly(key: Key, blocks: Blocks, table: Tensor, first: int, count: int) -> Tensor:
    streams = blocks.streams
    bases = stream_bases(key, first, count)
    numbers = int(table[0])
    many = _counts(bases, table, numbers)
    ends = many.cumsum(0)
    total = int(ends[-1])
    # the t-th seed overall is number t - (ends - many) of its stream
    bases.sub_((ends - many).sub_(numbers).mul_(PHI))
    stream = torch.repeat_interleave(many, output_size=total)
    words = bases.index_select(0, stream)
    words.add_(torch.arange(total, dtype=torch.int64, device="cpu"), alpha=PHI)
    places = _places(words, streams.length)
    if streams.per_group == 1:
        seeds = places.add_(stream, alpha=streams.group).add_(first * streams.group)
        if first + count < streams.count or not blocks.positions % streams.group:
            return seeds
        # only the last stream may be longer than its positions
        whole = total - int(many[-1])
        last = seeds[whole:]
        return torch.cat((seeds[:whole], last[last < blocks.positions]))
    start, room = _starts(blocks, first, count, bases.device)
    seeds = start.index_select(0, stream).add_(places)
    return seeds if room is None else seeds[places < room.index_select(0, stream)]


def _at_most(key: Key, blocks: Blocks, table: Tensor, first: int, count: int) -> Tensor:
    """Draw like `_exactly`, but in shapes that do not depend on the number of seeds; pad with `blocks.positions`."""
    streams = blocks.streams
    bases = stream_bases(key, first, count).unsqueeze(1)
    numbers, most = int(table[0]), int((table[1:] < 1.0).sum())
    many = _counts(bases, table.to(bases.device, non_blocking=True), numbers)
    slots = torch.arange(most * numbers, dtype=torch.int64, device=bases.device)
    places = _places(bases + (slots + numbers) * PHI, streams.length)
    start, room = _starts(blocks, first, count, bases.device)
    inside = slots < many
    if room is not None:
        inside &= places < room.unsqueeze(1)
    return torch.where(inside, places.add_(start.unsqueeze(1)), blocks.positions).flatten()


def _counts(bases: Tensor, table: Tensor, numbers: int) -> Tensor:
    """Return K of each stream."""
    many = torch.zeros_like(bases)
    for i in range(numbers):
        uniform = shift_right(mix_(bases + signed(i * PHI)), 11).to(torch.float64).mul_(2.0**-53)
        many.add_(torch.searchsorted(table[1:], uniform, right=True))
    return many


def _places(words: Tensor, length: int) -> Tensor:
    """Turn words into places in a stream, equally likely up to 2^-31 of their probability."""
    return shift_right(mix_(words), 17).mul_(length).bitwise_right_shift_(47)


def _starts(blocks: Blocks, first: int, count: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return the first position of each stream, and the number of its positions if some have fewer than `length`."""
    streams = blocks.streams
    start = torch.arange(first, first + count, dtype=torch.int64, device=device)
    if streams.per_group == 1:
        start.mul_(streams.group)
        end = blocks.positions
        return start, (end - start).clamp_(max=streams.length) if end % streams.group else None
    group = start // streams.per_group
    piece = start.sub_(group * streams.per_group).mul_(streams.length)
    room = (streams.group - piece).clamp_(max=streams.length)
    return group.mul_(streams.group).add_(piece), room if streams.group % streams.length else None
