"""DropBlock as in the paper, on a dense mask: the oracle that tests compare every faster backend with.

Source: Ghiasi, Lin, Le, "DropBlock", NeurIPS 2018, algorithm 1. The line numbers below are those of the algorithm.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right

import torch
import torch.nn.functional as F
from torch import Tensor

from .blocks import Blocks
from .keys import PHI, mixed

MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def draw_seeds(key: int, blocks: Blocks, table: Tensor) -> Tensor:
    """Line 5: decide for each position whether it is a seed; bool of shape (1, planes, *valid).

    Draw one stream and one number after the other, in Python's integers; `seeds.py` defines them.
    """
    count, length, per_group, group, _ = blocks.streams
    seeds = torch.zeros(blocks.positions, dtype=torch.bool)
    numbers, *probabilities = table.tolist()
    for s in range(count):
        base = mixed(mixed(key) + (s + 1) * PHI)
        words = (mixed(base + i * PHI) % 2**64 for i in itertools.count())
        many = sum(bisect_right(probabilities, (next(words) >> 11) / 2**53) for _ in range(int(numbers)))
        start = s // per_group * group + s % per_group * length
        end = min(start + length, (s // per_group + 1) * group, blocks.positions)
        places = [start + ((next(words) >> 17) * length >> 47) for _ in range(many)]
        seeds[[place for place in places if place < end]] = True
    return seeds.view(1, blocks.planes, *blocks.valid)


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
