"""Random numbers that are a pure function of one 64-bit RNG seed.

The i-th number of a stream is a hash of the RNG seed and i (the SplitMix64 generator of Steele, Lea and Flood,
OOPSLA 2014), so a stream can be made again from its seed alone, on any device and from any index on. PyTorch's
CPU generator cannot serve for that: `manual_seed` keeps 32 bits of its seed.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(word: int) -> int:
    """The 64 bits of `word` read as a signed integer; products of int64 tensors wrap around modulo 2^64."""
    return word - (1 << 64) if word >> 63 else word


INCREMENT = _signed(0x9E3779B97F4A7C15)
FACTORS = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def draw_rng_seed(device: torch.device, generator: torch.Generator | None) -> Tensor:
    """A fresh 64-bit RNG seed from PyTorch's generator: an int64 tensor of no dimensions on `device`."""
    seed = torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=device, generator=generator)
    return seed.cpu() if device.type == "mps" else seed  # MPS has no float64, so its seeds are drawn on the CPU


def uniforms(rng_seed: Tensor, start: int, count: int) -> Tensor:
    """Numbers `start` to `start + count` of the stream: float64 in [0, 1], on the device of `rng_seed`."""
    z = torch.arange(start + 1, start + count + 1, dtype=torch.int64, device=rng_seed.device)
    z.mul_(INCREMENT).add_(rng_seed)
    z.bitwise_xor_(_shift_right(z, 30)).mul_(FACTORS[0])
    z.bitwise_xor_(_shift_right(z, 27)).mul_(FACTORS[1])
    z.bitwise_xor_(_shift_right(z, 31))
    return z.to(torch.float64).mul_(2.0**-64).add_(0.5)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """A shift that fills with zeros; that of a signed tensor fills with its sign."""
    return z.bitwise_right_shift(bits).bitwise_and_((1 << (64 - bits)) - 1)
