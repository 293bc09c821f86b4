"""The sparse path on the CPU in compiled code, where that was built and for the tensors that it serves.

`native.c` makes the same seeds and the same values as `sparse.py`, bit for bit, in one pass over memory. It runs on
PyTorch's own threads; where those are not of the kind that it was built for it cannot be loaded, and is left out.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from . import sparse
from .geometry import Size
from .sparse import CHANNELS_LAST, Blocks

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}
# A thread takes no less, as in PyTorch: it would be waited for longer than it works.
UNITS_A_THREAD = 32768
# Of `drop_block_interface` in native.c.
INTERFACE = 1
# A quotient of logarithms that is so close to an integer, relative to it, is left to PyTorch's logarithm.
CLOSE = 2.0**-40


class Layout(ctypes.Structure):
    """`Blocks` of native.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("planes", "depth", "height", "width")),
        *((name, ctypes.c_int64) for name in ("block_depth", "block_height", "block_width")),
        *((name, ctypes.c_int64) for name in ("repeat", "unit", "channels", "dtype")),
        ("log_keep", ctypes.c_double),
    )


def _load() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(Path(__file__).with_name("_native.so")))
        interface = library.drop_block_interface()
    except (OSError, AttributeError):  # it was not built, is an old one, or PyTorch's threads are of another kind
        return None
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    library.drop_block_draw.argtypes = [pointer, ctypes.c_uint64, ctypes.c_double, pointer, integer]
    library.drop_block_draw.restype = integer
    library.drop_block_apply.argtypes = [pointer, pointer, pointer, pointer, integer, pointer, ctypes.c_int]
    return library if interface == INTERFACE and _agrees(library) else None


def _agrees(library: ctypes.CDLL) -> bool:
    """Whether it makes what `sparse` makes: PyTorch's generator might change."""
    blocks = Blocks((2, 3), (9, 11), (3, 4), 0.05)
    plan = Plan(library, blocks, False, torch.float32)
    input = torch.linspace(-1, 1, 594, dtype=torch.float32, device="cpu").view(2, 3, 9, 11)
    for word in (3, -(2**62) + 5):
        rng_seed = torch.tensor(word, dtype=torch.int64, device="cpu")
        seeds, mine, theirs = sparse.draw_seeds(rng_seed, blocks), torch.empty_like(input), torch.empty_like(input)
        scale = plan.apply_blocks(input, mine, plan.draw_seeds(rng_seed), None)
        same = scale == sparse.apply_blocks(input, theirs, seeds, blocks) and torch.equal(mine, theirs)
        if not same or not torch.equal(plan.draw_seeds(rng_seed), seeds):
            return False
    return True


class Plan:
    """How the library serves tensors of one kind."""

    def __init__(self, library: ctypes.CDLL, blocks: Blocks, channels_last: bool, dtype: torch.dtype) -> None:
        copies = math.prod(blocks.lead[i] for i in blocks.shared)
        pad = (1,) * (3 - len(blocks.size))
        self.library, self.blocks = library, blocks
        self.layout = Layout(
            math.prod(blocks.own_lead),
            *(*pad, *blocks.size, *pad, *blocks.block),
            repeat=1 if channels_last else copies,
            unit=copies if channels_last else 1,
            channels=blocks.lead[-1] if channels_last and not blocks.shared else 1,
            dtype=DTYPES[dtype],
            log_keep=math.log1p(-blocks.gamma),
        )
        self.address = ctypes.addressof(self.layout)
        self.room = sparse.enough(blocks.gamma * blocks.positions)
        self.most_threads = max(1, blocks.units * copies // UNITS_A_THREAD)

    def draw_seeds(self, rng_seed: Tensor) -> Tensor:
        """`sparse.draw_seeds`, as int32."""
        seeds = torch.empty(self.room, dtype=torch.int32, device="cpu")
        word = int(rng_seed) & (2**64 - 1)
        count = self.library.drop_block_draw(self.address, word, CLOSE, seeds.data_ptr(), self.room)
        return seeds[:count] if count >= 0 else sparse.draw_seeds(rng_seed, self.blocks).to(torch.int32)

    def apply_blocks(self, input: Tensor, output: Tensor, seeds: Tensor, scale: float | None) -> float:
        """`sparse.apply_blocks`."""
        factor = ctypes.c_double(-1.0 if scale is None else scale)
        threads = min(torch.get_num_threads(), self.most_threads)
        memory = input.data_ptr(), output.data_ptr(), seeds.data_ptr()
        if not self.library.drop_block_apply(self.address, *memory, len(seeds), ctypes.byref(factor), threads):
            raise MemoryError(f"no memory for the masks of {threads} threads")
        return factor.value


LIBRARY = _load()


@contextmanager
def left_out() -> Iterator[None]:
    """Without the library, as where it was not built: to measure and to test what it is compared with."""
    global LIBRARY
    library, LIBRARY = LIBRARY, None
    try:
        yield
    finally:
        LIBRARY = library


@lru_cache(maxsize=1024)
def _plan(
    library: ctypes.CDLL, lead: Size, size: Size, block: Size, gamma: float, shared: Size, channels_last: bool,
    dtype: torch.dtype,
) -> Plan | None:  # fmt: skip
    blocks = Blocks(lead, size, block, gamma, shared)
    served = 0 < gamma < 1 and blocks.positions > 0 and blocks.units < 2**31 - 2 and shared in ((), (len(lead) - 1,))
    return Plan(library, blocks, channels_last, dtype) if served else None


def plan(input: Tensor, output: Tensor, blocks: Blocks) -> Plan | None:
    """How the library serves these tensors, or None if it does not."""
    if LIBRARY is None or input.dtype not in DTYPES or input.device.type != "cpu" or input.stride() != output.stride():
        return None
    # what PyTorch does with tensors of its own kind only, and what a mode would have seen
    if type(output) is not Tensor or input.is_neg() or torch._C._len_torch_dispatch_stack():
        return None
    channels_last = not output.is_contiguous()
    if channels_last and not (
        len(blocks.lead) == 2
        and output.dim() in CHANNELS_LAST
        and output.is_contiguous(memory_format=CHANNELS_LAST[output.dim()])
    ):
        return None
    kind = blocks.lead, blocks.size, blocks.block, blocks.gamma, blocks.shared
    return _plan(LIBRARY, *kind, channels_last, input.dtype)
