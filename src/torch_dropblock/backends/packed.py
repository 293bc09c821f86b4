"""Masks of one bit per unit, 1 where dropped, in words of 32 bits: what drawing hands to compiled code.

Bit i of a word is unit i of 32 neighbours. The order says which units are neighbours, and so the shape of the words:

| order | neighbours | shape of the words |
| --- | --- | --- |
| `"planes"` | units of a plane, row by row; each plane begins a word | (*lead, ⌈units / 32⌉) |
| `"channels"` | channels of a unit, for channels-last tensors | (*lead[:-1], *size, ⌈channels / 32⌉) |
| `"string"` | units of all planes in a row, as Triton draws them | (words,), an even number |

With the first two orders, neighbours of the innermost loop of compiled C++ share a word, which its vectors need.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.geometry import Size

WORD = 32
# times eight bytes of 0 or 1: its highest byte has them as bits
GATHER = 0x0102040810204080


def shape(lead: Size, size: Size, order: str) -> Size:
    """Return the shape of the words for a mask of shape `(*lead, *size)`."""
    if order == "channels":
        return (*lead[:-1], *size, _words(lead[-1]))
    units = math.prod(size)
    return (*lead, _words(units)) if order == "planes" else ((math.prod(lead) * units + 63) // 64 * 2,)


def _words(bits: int) -> int:
    return (bits + WORD - 1) // WORD


def pack(mask: Tensor, dims: int, order: str) -> Tensor:
    """Pack a bool mask of `dims` spatial dimensions into words, int32; not in the order `"string"`."""
    neighbours = mask.movedim(-dims - 1, -1) if order == "channels" else mask.flatten(-dims)
    neighbours = F.pad(neighbours, (0, -neighbours.shape[-1] % WORD)).contiguous()
    bytes = (neighbours.view(torch.int64) * GATHER).bitwise_right_shift_(56).to(torch.uint8)
    return bytes.view(torch.int32)


def unpack(words: Tensor, lead: Size, size: Size, order: str) -> Tensor:
    """Return the mask of shape `(*lead, *size)`, bool, in operations that the compiler fuses."""
    # Indices, since a slice of sizes that are dynamic would make the compiler guard against whole words; and no view,
    # for which it computes strides of sizes that are dynamic.
    bit = torch.zeros((), dtype=torch.int64 if order == "string" else torch.int32, device=words.device)
    for n in {"channels": lead[-1:], "planes": size, "string": (*lead, *size)}[order]:
        bit = bit.unsqueeze(-1) * n + torch.arange(n, dtype=bit.dtype, device=words.device)
    # right in 64 bits too, to which PyTorch 2.11 widens the words
    dropped = words[..., bit // WORD].bitwise_right_shift((bit % WORD).to(torch.int32)).bitwise_and(1) != 0
    return dropped.movedim(-1, len(lead) - 1) if order == "channels" else dropped
