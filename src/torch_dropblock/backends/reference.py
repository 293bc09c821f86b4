"""The reference backend, the oracle: Algorithm 1 on a dense mask. It serves only when requested by name."""

from __future__ import annotations

from torch import Tensor

from ..core import reference
from ..core.blocks import Blocks
from ..core.keys import Key, device_of


def why_not(input: Tensor, blocks: Blocks) -> str | None:
    """Return None: this backend serves every input."""
    return None


def drop(
    input: Tensor, output: Tensor, key: Key, blocks: Blocks, table: Tensor, scale: float | Tensor | None = None
) -> None:
    """Write the input with blocks zeroed and the rest scaled into `output`; the scale is counted again each time."""
    output.copy_(reference.drop_block(input, kept(key, blocks, table)))


def kept(key: Key, blocks: Blocks, table: Tensor) -> Tensor:
    """Return the mask, True where kept, of shape `(*own_lead, *size)` on the device of the key."""
    seeds = reference.draw_seeds(int(key), blocks, table)
    return reference.kept_mask(seeds, blocks.block).view(*blocks.own_lead, *blocks.size).to(device_of(key))
