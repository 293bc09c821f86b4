"""Random numbers that are a pure function of one 64-bit RNG seed, so that a mask can be made again from its seed.

On the CPU they come from PyTorch's own generator, the Mersenne Twister, the fastest there is for few numbers. It keeps
32 bits of a seed; the other 32 rotate its numbers around [0, 1). Elsewhere the host cannot seed a generator without
waiting for the device, so the i-th number is a hash of the seed and i: the SplitMix64 generator of Steele, Lea and
Flood, OOPSLA 2014.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily


def _signed(word: int) -> int:
    """The 64 bits of `word` read as a signed integer; products of int64 tensors wrap around modulo 2^64."""
    return word - (1 << 64) if word >> 63 else word


# From 2,048 numbers on PyTorch splits a logarithm among threads. For so little work they would wait for each other
# longer than they work, and the last bit of a logarithm, and with it a mask, could depend on how many they are.
LOGARITHMS_AT_ONCE = 2048

# 64 bits: a number on the CPU, a tensor of no dimensions on other devices, which need not be waited for
RngSeed = Tensor | int

INCREMENT = _signed(0x9E3779B97F4A7C15)
FACTORS = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def draw_rng_seed(device: torch.device, generator: torch.Generator | None) -> Tensor:
    """A fresh 64-bit RNG seed from PyTorch's generator: an int64 tensor of no dimensions on `device`."""
    # without a generator the argument is left out: compiled C++ has no call for the overload that takes one
    source: dict[str, Any] = {} if generator is None else {"generator": generator}
    seed: Tensor = torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=device, **source)
    return seed.cpu() if device.type == "mps" else seed  # MPS has no float64, so its seeds are drawn on the CPU


def draw_rng_number(generator: torch.Generator | None) -> int:
    """The number that `draw_rng_seed` draws on the CPU, in memory that is there already.

    A tensor of its own would live until the backward pass, in the middle of memory that a large one has given back and
    the next large one could have had: it then takes new pages from the operating system.
    """
    if not hasattr(_MEMORY, "of_a_number"):
        with torch.inference_mode(False), unset_fake_temporarily():
            _MEMORY.of_a_number = torch.empty((), dtype=torch.int64, device="cpu")
    return int(_MEMORY.of_a_number.random_(-(2**63), 2**63 - 1, generator=generator))


_MEMORY = threading.local()


def device_of(rng_seed: RngSeed) -> torch.device:
    return rng_seed.device if isinstance(rng_seed, Tensor) else torch.device("cpu")


class Stream:
    """The numbers of one RNG seed, in order; those of the CPU differ from those of other devices."""

    def __init__(self, rng_seed: RngSeed) -> None:
        self.rng_seed = rng_seed
        self.drawn = 0
        if device_of(rng_seed).type == "cpu":
            seed = int(rng_seed)
            self.generator = torch.Generator().manual_seed(seed & 0xFFFFFFFF)
            self.rotation = (seed >> 32 & 0xFFFFFFFF) * 2.0**-32

    def negative_exponentials(self, count: int) -> Tensor:
        """The next `count` numbers, float64: the logarithms of uniform ones, the distribution of -E."""
        if isinstance(self.rng_seed, Tensor) and self.rng_seed.device.type != "cpu":
            numbers = hashed_uniforms(self.rng_seed, self.drawn, count).log_()
        else:
            numbers = torch.rand(count, dtype=torch.float64, device="cpu", generator=self.generator)
            numbers.add_(self.rotation)
            for part in torch.split(numbers, LOGARITHMS_AT_ONCE):
                part.frac_().log_()
        self.drawn += count
        return numbers


def hashed_uniforms(rng_seed: Tensor, start: int, count: int) -> Tensor:
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
