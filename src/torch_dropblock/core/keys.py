"""Keys: 64-bit numbers that determine masks, and the random words made from a key.

The i-th word of stream s of a key is `mix(mix(mix(key) + (s + 1) φ) + i φ)` modulo 2^64. `mix` is the finaliser of
SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), and φ is 2^64 over the golden ratio. These are operations on integers, so
PyTorch, C and Triton make the same words on every device, and each word can be computed alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

# a Python int, or an int64 tensor of no dimensions, for which the host need not wait
Key = Tensor | int


def signed(word: int) -> int:
    """Return the lowest 64 bits of `word` as a signed integer, since int64 tensors wrap around modulo 2^64."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word


PHI = signed(0x9E3779B97F4A7C15)
FACTORS = signed(0xBF58476D1CE4E5B9), signed(0x94D049BB133111EB)


def draw_key(device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Draw a key from PyTorch's generator: an int64 tensor of no dimensions on `device`."""
    if generator is None and not torch.compiler.is_compiling() and _MEMORY.supply is not None:
        return as_tensor(next(_MEMORY.supply), device_for_keys(device))
    if generator is None:  # the overload with a generator has no C shim, which compiled C++ code needs
        key = torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=device)
    else:
        key = torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=device, generator=generator)
    return key.to(device_for_keys(device))


def device_for_keys(device: torch.device) -> torch.device:
    """Return the device for the keys of tensors on `device`: MPS has no float64, so its seeds are drawn on the CPU."""
    return torch.device("cpu") if device.type == "mps" else device


def draw_key_number(generator: torch.Generator | None) -> int:
    """Draw the number that `draw_key` draws on the CPU, into memory that is reused.

    A new tensor would live until the backward pass and split the memory that the next large output could use.
    """
    if generator is None and _MEMORY.supply is not None:
        return next(_MEMORY.supply)
    if _MEMORY.of_a_key is None:
        with torch.inference_mode(False), unset_fake_temporarily():
            _MEMORY.of_a_key = torch.empty((), dtype=torch.int64, device="cpu")
    return int(_MEMORY.of_a_key.random_(-(2**63), 2**63 - 1, generator=generator))


class _Memory(threading.local):
    of_a_key: Tensor | None = None
    supply: Iterator[int] | None = None


_MEMORY = _Memory()


@contextmanager
def supplied(keys: Iterator[int]) -> Iterator[None]:
    """Let this thread's eager calls without a generator take their keys from an iterator, in the order of the calls."""
    before, _MEMORY.supply = _MEMORY.supply, keys
    try:
        yield
    finally:
        _MEMORY.supply = before


def word(key: int, stream: int, index: int) -> int:
    """Return the word of a key with this stream and index, both from 0, as a signed integer."""
    return mixed(mixed(mixed(key) + (stream + 1) * PHI) + index * PHI)


def device_of(key: Key) -> torch.device:
    return key.device if isinstance(key, Tensor) else torch.device("cpu")


def as_tensor(key: Key, device: torch.device) -> Tensor:
    """Return a key as an int64 tensor of no dimensions on a device."""
    if isinstance(key, Tensor):
        return key.to(device)
    return torch.full((), key, dtype=torch.int64, device=device)


def stream_bases(key: Key, first: int, count: int) -> Tensor:
    """Make `mix(mix(key) + (s + 1) φ)` for `count` streams from `first` on: int64 on the device of the key."""
    bases = torch.arange(first + 1, first + count + 1, dtype=torch.int64, device=device_of(key))
    if isinstance(key, Tensor):
        return mix_(bases.mul_(PHI).add_(mix_(key.clone())))
    return mix_(bases.mul_(PHI).add_(mixed(key)))


def mixed(word: int) -> int:
    """Return `mix(word)` of a Python int, as a signed integer."""
    word &= (1 << 64) - 1
    word = (word ^ word >> 30) * (FACTORS[0] & (1 << 64) - 1) & (1 << 64) - 1
    word = (word ^ word >> 27) * (FACTORS[1] & (1 << 64) - 1) & (1 << 64) - 1
    return signed(word ^ word >> 31)


def mix_(words: Tensor) -> Tensor:
    """Replace each word of an int64 tensor by `mix(word)`, in place."""
    shifted = torch.empty_like(words)
    for shift, factor in ((30, FACTORS[0]), (27, FACTORS[1])):
        words.bitwise_xor_(shift_right(words, shift, shifted)).mul_(factor)
    return words.bitwise_xor_(shift_right(words, 31, shifted))


def shift_right(words: Tensor, bits: int, out: Tensor | None = None) -> Tensor:
    """Shift right like unsigned integers; PyTorch would fill the upper bits with the sign."""
    return torch.bitwise_right_shift(words, bits, out=out).bitwise_and_((1 << (64 - bits)) - 1)
