"""Standard normal noise of a key, in plain operations: every device and the compiler make the same, but for rounding.

Masks use the streams from 0 on of a key's words, see `keys.py`. Noise uses the words of stream -1, so that it is
independent of the mask of the same key. A word makes two numbers, by the transform of Box and Muller.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .geometry import Size
from .keys import FACTORS, PHI, as_tensor, device_for_keys


def normal(key: Tensor | int, shape: Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return noise of a shape; float32 or float64.

    The operations write into nothing, so that `torch.vmap` can map over the key.
    """
    count, there = math.prod(shape), device_for_keys(device)
    order = torch.arange((count + 1) // 2, dtype=torch.int64, device=there)
    words = _mix(_mix(_mix(as_tensor(key, there))) + order * PHI)
    uniform = (_shifted(words, 32) + 1).to(dtype) * 2.0**-32
    angle = (words & 0xFFFFFFFF).to(dtype) * (2.0**-32 * math.tau)
    radius = (-2.0 * uniform.log()).sqrt()
    pairs = torch.stack((radius * angle.cos(), radius * angle.sin()), -1)
    return pairs.flatten()[:count].reshape(shape).to(device)


def _mix(words: Tensor) -> Tensor:
    words = (words ^ _shifted(words, 30)) * FACTORS[0]
    words = (words ^ _shifted(words, 27)) * FACTORS[1]
    return words ^ _shifted(words, 31)


def _shifted(words: Tensor, bits: int) -> Tensor:
    return (words >> bits) & ((1 << (64 - bits)) - 1)
