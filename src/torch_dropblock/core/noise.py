"""Standard normal noise of a key: every device makes the same, up to the rounding of its logarithm, sine and cosine.

Masks use the streams from 0 on of a key's words, see `keys.py`. Noise uses the words of stream -1, so that it is
independent of the mask of the same key. A word makes two numbers, by the transform of Box and Muller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .keys import PHI, mix_, shift_right

# Words made at once on a CPU: few enough for the cache, many enough that threads seldom wait for each other.
WORDS_AT_ONCE = 1 << 18


def normal(key: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return noise of a shape on the device of the key; float32 or float64."""
    count = math.prod(shape)
    pairs = torch.empty(((count + 1) // 2, 2), dtype=dtype, device=key.device)
    at_once = WORDS_AT_ONCE if key.device.type == "cpu" else max(count, 1)
    base = mix_(mix_(key.clone()))
    for first in range(0, len(pairs), at_once):
        some = pairs[first : first + at_once]
        words = torch.arange(first, first + len(some), dtype=torch.int64, device=key.device)
        mix_(words.mul_(PHI).add_(base))
        radius = shift_right(words, 32).add_(1).to(dtype).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
        angle = words.bitwise_and_(0xFFFFFFFF).to(dtype).mul_(2.0**-32 * math.tau)
        torch.mul(radius, angle.cos(), out=some[:, 0])
        torch.mul(radius, angle.sin_(), out=some[:, 1])
    return pairs.view(-1)[:count].view(tuple(shape))
