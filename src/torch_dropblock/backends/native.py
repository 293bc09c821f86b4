"""The sparse path on the CPU in compiled code, where that was built and for the tensors that it serves.

`native.c` makes the same seeds and the same values as `sparse.py`, bit for bit, in one pass over memory. It runs on
PyTorch's own threads; where those are not of the kind that it was built for it cannot be loaded, and is left out.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ..core import seeds as drawing
from ..core.rng import RngSeed
from ..core.seeds import Blocks
from . import sparse
from .sparse import CHANNELS_LAST

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}
# Minimum work per thread, PyTorch's grain size.
UNITS_A_THREAD = 32768
# Of `drop_block_interface` in native.c.
INTERFACE = 3
# A quotient of logarithms that is so close to an integer, relative to it, is left to PyTorch's logarithm.
CLOSE = 2.0**-40


class Layout(ctypes.Structure):
    """`Blocks` of native.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("planes", "depth", "height", "width")),
        *((name, ctypes.c_int64) for name in ("block_depth", "block_height", "block_width")),
        *((name, ctypes.c_int64) for name in ("repeat", "unit", "channels", "dtype", "room")),
        ("log_keep", ctypes.c_double),
    )


def _load(file: Path) -> ctypes.CDLL | str:
    """The library, or why there is none."""
    if not file.exists():
        return "it was not built when the package was installed"
    try:
        library = ctypes.CDLL(str(file))
        interface = library.drop_block_interface()
    except (OSError, AttributeError) as error:  # PyTorch's threads may be of another kind
        return f"it cannot be loaded ({error})"
    if interface != INTERFACE:
        return "it was built of another version of this package"
    pointer, integer, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
    library.drop_block_draw.argtypes = [pointer, ctypes.c_uint64, number, pointer, integer]
    library.drop_block_draw.restype = integer
    library.drop_block_apply.argtypes = [pointer, pointer, pointer, pointer, integer, number, integer]
    library.drop_block.argtypes = [pointer, ctypes.c_uint64, number, pointer, pointer, number, integer]
    library.drop_block_apply.restype = library.drop_block.restype = number
    return library if _agrees(library) else "it does not draw what this version of PyTorch draws"


def _agrees(library: ctypes.CDLL) -> bool:
    """Whether it makes what `sparse` makes: PyTorch's generator might change."""
    blocks = Blocks((2, 3), (9, 11), (3, 4), 0.05)
    plan = Plan(library, blocks, False, torch.float32)
    input = torch.linspace(-1, 1, 594, dtype=torch.float32, device="cpu").view(2, 3, 9, 11)
    for word in (3, -(2**62) + 5):
        rng_seed = torch.tensor(word, dtype=torch.int64, device="cpu")
        seeds, mine, theirs = drawing.draw_seeds(rng_seed, blocks), torch.empty_like(input), torch.empty_like(input)
        scale = plan.drop(input, mine, rng_seed, None)
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
            room=drawing.enough(blocks.gamma * blocks.positions),
            log_keep=math.log1p(-blocks.gamma),
        )
        self.address = ctypes.addressof(self.layout)
        self.most_threads = max(1, blocks.units * copies // UNITS_A_THREAD)

    def drop(self, input: Tensor, output: Tensor, rng_seed: RngSeed, scale: float | None) -> float:
        """Draw and apply, and return the scale, which is counted unless it is given."""
        given = -1.0 if scale is None else scale
        memory = input.data_ptr(), output.data_ptr()
        word = int(rng_seed) & (2**64 - 1)
        counted: float = self.library.drop_block(self.address, word, CLOSE, *memory, given, self.threads())
        if counted < 0:
            counted = self.apply_blocks(input, output, self.draw_seeds(rng_seed), scale)
        return counted

    def threads(self) -> int:
        """How many to use; OpenMP itself does not hear of `torch.set_num_threads` in a thread of Python's."""
        return 1 if self.most_threads == 1 else min(self.most_threads, torch.get_num_threads())

    def draw_seeds(self, rng_seed: RngSeed) -> Tensor:
        """`drawing.draw_seeds`, as int32."""
        room = self.layout.room
        seeds = torch.empty(room, dtype=torch.int32, device="cpu")
        word = int(rng_seed) & (2**64 - 1)
        count = self.library.drop_block_draw(self.address, word, CLOSE, seeds.data_ptr(), room)
        return seeds[:count] if count >= 0 else drawing.draw_seeds(rng_seed, self.blocks).to(torch.int32)

    def apply_blocks(self, input: Tensor, output: Tensor, seeds: Tensor, scale: float | None) -> float:
        """`sparse.apply_blocks`."""
        memory = input.data_ptr(), output.data_ptr(), seeds.data_ptr()
        given = -1.0 if scale is None else scale
        counted: float = self.library.drop_block_apply(self.address, *memory, len(seeds), given, self.threads())
        if counted < 0:
            raise MemoryError("no memory for the masks of blocks")
        return counted


_LOADED = _load(Path(__file__).with_name("_native.so"))
LIBRARY = None if isinstance(_LOADED, str) else _LOADED
WHY_NOT = _LOADED if isinstance(_LOADED, str) else "it is left out"


@contextmanager
def left_out() -> Iterator[None]:
    """Without the library, as where it was not built: to measure and to test what it is compared with."""
    global LIBRARY
    library, LIBRARY = LIBRARY, None
    try:
        yield
    finally:
        LIBRARY = library


def plan(input: Tensor, output: Tensor, blocks: Blocks) -> Plan | None:
    """How the library serves these tensors, or None if it does not."""
    if LIBRARY is None or input.device.type != "cpu" or input.stride() != output.stride():
        return None
    if type(output) is not Tensor:  # of a class of its own, which may want to see operators
        return None
    kind = input.dtype, output.is_contiguous() or _is_channels_last(output)
    if kind not in blocks.plans:
        dtype, layout = kind
        served = dtype in DTYPES and layout and 0 < blocks.gamma < 1 and 0 < blocks.units < 2**31 - 2
        served = served and blocks.shared in ((), (len(blocks.lead) - 1,))
        served = served and (layout is True or len(blocks.lead) == 2)
        blocks.plans[kind] = Plan(LIBRARY, blocks, layout is not True, dtype) if served else None
    found: Plan | None = blocks.plans[kind]
    return found


def _is_channels_last(tensor: Tensor) -> str:
    there = tensor.dim() in CHANNELS_LAST and tensor.is_contiguous(memory_format=CHANNELS_LAST[tensor.dim()])
    return "channels_last" if there else ""
