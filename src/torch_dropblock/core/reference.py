"""DropBlock as the paper writes it, dense: the oracle that every faster path is tested against.

Algorithm 1 of Ghiasi, Lin, Le, "DropBlock", NeurIPS 2018. The line numbers below are its own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def draw_seeds(shape: tuple[int, ...], gamma: float, generator: torch.Generator | None = None) -> Tensor:
    """Line 5: in the valid seed region of each plane, `shape` is (N, C, *v), each position is a seed or not."""
    return torch.bernoulli(torch.full(shape, gamma, dtype=torch.float64), generator=generator).bool()


def kept_mask(seeds: Tensor, block: tuple[int, ...]) -> Tensor:
    """Lines 5 and 6: each seed, a corner, grows into a block of zeros; (N, C, *v) becomes (N, C, *s)."""
    dims = len(block)
    margins = [b - 1 for b in reversed(block) for _ in range(2)]
    dropped = MAX_POOL[dims](F.pad(seeds.float(), margins), kernel_size=block, stride=1)
    return dropped == 0


def drop_block(input: Tensor, kept: Tensor) -> Tensor:
    """Lines 7 and 8: apply the mask, then normalise by `count(M) / count_ones(M)`."""
    op = torch.float64 if input.dtype == torch.float64 else torch.float32
    scale = torch.tensor(kept.numel() / max(int(kept.sum()), 1), dtype=op)
    return torch.where(kept, (input.to(op) * scale).to(input.dtype), 0)
