"""`Blocks`: the places of blocks in a tensor, and the division of seed positions into streams."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from .geometry import Size, clamp, valid_region

# Seeds in a stream, about, if a tenth of the units is dropped: enough to share the cost of drawing their number,
# few enough to be sorted quickly.
SEEDS_IN_A_STREAM = 12
# Limits of a stream's length. A place in a stream is the product of 47 random bits and its length, in 63 bits.
SHORTEST, LONGEST = 32, (1 << 16) - 1


class Streams(NamedTuple):
    """The seed positions, divided into streams that are drawn independently.

    A group is several whole planes that form one stream, or one large plane that forms several. Stream s begins at
    position `s // per_group * group + s % per_group * length`, and ends `length` positions later or with its group.
    """

    count: int  # type: ignore[assignment]
    length: int
    per_group: int
    group: int  # positions
    planes: int  # in a group


@dataclass(frozen=True)
class Blocks:
    """The places of blocks in a tensor of shape `(*lead, *size)`.

    A plane is an index into the leading dimensions that are not `shared`; along the shared ones, one mask is repeated.
    A seed's number is its position, counted plane by plane and row by row through the valid seed regions of all planes.
    """

    lead: Size
    size: Size
    block: Size
    shared: tuple[int, ...] = ()
    cache: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)  # for use by backends

    @classmethod
    @lru_cache(maxsize=1024)
    def of(cls, lead: Size, size: Size, block_size: Size, share_channels: bool) -> Blocks:
        """Return the blocks of a layer with these arguments for an input of shape `(*lead, *size)`."""
        return cls(lead, size, clamp(size, block_size), (len(lead) - 1,) if share_channels else ())

    @cached_property
    def valid(self) -> Size:
        return valid_region(self.size, self.block)

    @cached_property
    def own_lead(self) -> Size:
        """Leading dimensions with 1 for the shared ones: a mask of shape `(*own_lead, *size)` broadcasts."""
        return tuple(1 if i in self.shared else n for i, n in enumerate(self.lead))

    @cached_property
    def planes(self) -> int:
        return math.prod(self.own_lead)

    @cached_property
    def positions(self) -> int:
        """Number of positions that a seed can have, in all planes."""
        return self.planes * math.prod(self.valid)

    @cached_property
    def units(self) -> int:
        """Number of units of the mask."""
        return self.planes * math.prod(self.size)

    @cached_property
    def streams(self) -> Streams:
        plane = math.prod(self.valid)
        length = SEEDS_IN_A_STREAM * 10 * math.prod(self.block) * plane // math.prod(self.size)
        length = min(max(length, SHORTEST), LONGEST)
        if plane <= length:
            planes = length // plane  # not limited by the number of planes, so that vmap can use the same table
            return Streams(-(-self.planes // planes), planes * plane, 1, planes * plane, planes)
        pieces = -(-plane // length)
        return Streams(self.planes * pieces, -(-plane // pieces), pieces, plane, 1)

    @cached_property
    def flat(self) -> Blocks:
        """The same blocks in the mask itself, with one leading dimension: its planes."""
        return Blocks((self.planes,), self.size, self.block)

    def batched(self, batch: int, *, shared: bool) -> Blocks:
        """Return the same blocks with an additional leading dimension in front."""
        moved = tuple(i + 1 for i in self.shared)
        return Blocks((batch, *self.lead), self.size, self.block, (0, *moved) if shared else moved)
