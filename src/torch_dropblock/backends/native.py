"""The native backend: C on the CPU, if it was built. It draws and applies in one pass over memory.

`native.c` runs on PyTorch's own threads. If PyTorch uses another OpenMP than `native.c` was built for, loading fails.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ..core.blocks import Blocks
from ..core.keys import Key
from .sparse import CHANNELS_LAST

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2, torch.float16: 3}
# Minimum work per thread, in units (PyTorch's grain size).
GRAIN_SIZE = 32768
# The value of `drop_block_interface` in native.c.
INTERFACE = 5


class Layout(ctypes.Structure):
    """Blocks in the memory of a tensor: `Layout` of native.c."""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            *("planes", "depth", "height", "width", "block_depth", "block_height", "block_width"),
            *("repeat", "unit", "channels", "dtype"),
            *("positions", "streams", "stream_length", "per_group", "group"),
        )
    )

    @classmethod
    def of(cls, blocks: Blocks, dtype: torch.dtype, *, channels_last: bool) -> Layout:
        copies = math.prod(blocks.lead[i] for i in blocks.shared)
        pad = (1,) * (3 - len(blocks.size))
        streams = blocks.streams
        return cls(
            blocks.planes,
            *(*pad, *blocks.size, *pad, *blocks.block),
            repeat=1 if channels_last else copies,
            unit=copies if channels_last else 1,
            channels=blocks.lead[-1] if channels_last and not blocks.shared else 1,
            dtype=DTYPES[dtype],
            positions=blocks.positions,
            streams=streams.count,
            stream_length=streams.length,
            per_group=streams.per_group,
            group=streams.group,
        )


class NotLoadedError(Exception):
    """The library is missing, cannot be loaded, or belongs to another version of this package."""


def load(file: Path) -> ctypes.CDLL:
    """Load the library.

    Raises:
        NotLoadedError: it cannot be loaded; the message gives the reason.
    """
    if not file.exists():
        raise NotLoadedError("it was not built when the package was installed")
    try:
        _share_openmp()
        library = ctypes.CDLL(str(file))
        interface = library.drop_block_interface()
    except (OSError, AttributeError) as error:  # for example if PyTorch uses another OpenMP
        raise NotLoadedError(f"it cannot be loaded ({error})") from error
    if interface != INTERFACE:
        raise NotLoadedError("it was built for another version of this package")
    pointer, number = ctypes.c_void_p, ctypes.c_double
    library.drop_block.argtypes = [pointer, ctypes.c_uint64, pointer, ctypes.c_int, pointer, pointer, number]
    library.drop_block_mask.argtypes = [pointer, ctypes.c_uint64, pointer, ctypes.c_int, pointer]
    library.drop_block.restype = library.drop_block_mask.restype = number
    return library


class _Symbol(ctypes.Structure):
    """`Dl_info` of dlfcn.h."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _share_openmp() -> None:
    """Let the loader find PyTorch's OpenMP library: PyTorch itself makes it global on x86-64, but not on aarch64."""
    if hasattr(ctypes.CDLL(None), "GOMP_parallel"):
        return
    torch_cpu, symbol = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so")), _Symbol()
    if ctypes.CDLL(None).dladdr(torch_cpu.GOMP_parallel, ctypes.byref(symbol)):
        ctypes.CDLL(os.fsdecode(symbol.file), mode=ctypes.RTLD_GLOBAL)


LIBRARY: ctypes.CDLL | None = None
NOT_LOADED = "it is left out"
try:
    LIBRARY = load(Path(__file__).with_name("_native.so"))
except NotLoadedError as error:
    NOT_LOADED = str(error)


@contextmanager
def left_out() -> Iterator[None]:
    """Work without the library, as if it had not been built, to measure and test the other backends."""
    global LIBRARY
    library, LIBRARY = LIBRARY, None
    try:
        yield
    finally:
        LIBRARY = library


def why_not(input: Tensor, blocks: Blocks) -> str | None:
    """Return why this backend does not serve the input, None if it does."""
    if input.device.type != "cpu":
        return f"it runs on the CPU, and the input is on {input.device}"
    if LIBRARY is None:
        return NOT_LOADED
    if type(input) is not Tensor:  # a subclass may need to see operators
        return f"it takes plain tensors, and the input is a {type(input).__name__}"
    if input.dtype not in DTYPES:
        return f"it takes float16, bfloat16, float32 and float64, and the input is {input.dtype}"
    if _layout_of(input, blocks) is None:
        return "it takes tensors of fewer than 2^31 units, contiguous or channels-last"
    return None


def drop(
    input: Tensor, output: Tensor, key: Key, blocks: Blocks, table: Tensor, scale: float | Tensor | None = None
) -> float:
    """Write the input with blocks zeroed and the rest scaled into `output`, which may be the input.

    Returns the scale, counted unless it is given.
    """
    counted: float = LIBRARY.drop_block(  # type: ignore[union-attr]
        _layout_of(input, blocks),
        int(key) & (2**64 - 1),
        table.data_ptr(),
        _threads(input.numel()),
        input.data_ptr(),
        output.data_ptr(),
        -1.0 if scale is None else scale,
    )
    if counted < 0:
        raise MemoryError("no memory for the seeds of blocks")
    return counted


def serves_mask(blocks: Blocks) -> bool:
    """Return True if `draw_mask` serves these blocks."""
    return LIBRARY is not None and 0 < blocks.units < 2**31 - 2


def draw_mask(words: Tensor, order: str, key: Key, blocks: Blocks, table: Tensor) -> float:
    """Write the mask of a key into words in the order `"planes"` or `"channels"` of `packed.py`. Returns the scale."""
    kind = "mask", order
    if kind not in blocks.cache:
        own = Blocks(blocks.own_lead, blocks.size, blocks.block)
        blocks.cache[kind] = Layout.of(own, torch.float32, channels_last=order == "channels")
    address = ctypes.addressof(blocks.cache[kind])
    scale: float = LIBRARY.drop_block_mask(  # type: ignore[union-attr]
        address, int(key) & (2**64 - 1), table.data_ptr(), _threads(blocks.units), words.data_ptr()
    )
    if scale < 0:
        raise MemoryError("no memory for the seeds of blocks")
    return scale


def _threads(units: int) -> int:
    """Return the number of threads: in a Python thread, `torch.set_num_threads` does not reach OpenMP."""
    return 1 if units < 2 * GRAIN_SIZE else min(units // GRAIN_SIZE, torch.get_num_threads())


def _layout_of(input: Tensor, blocks: Blocks) -> int | None:
    """Return the address of the layout, or None if the tensor is not served."""
    kind = input.dtype, input.is_contiguous() or _is_channels_last(input)
    if kind not in blocks.cache:
        dtype, order = kind
        served = order and 0 < blocks.units < 2**31 - 2 and blocks.shared in ((), (len(blocks.lead) - 1,))
        served = served and (order is True or len(blocks.lead) == 2)
        blocks.cache[kind] = Layout.of(blocks, dtype, channels_last=order is not True) if served else None
    layout: Layout | None = blocks.cache[kind]
    return None if layout is None else ctypes.addressof(layout)


def _is_channels_last(tensor: Tensor) -> str:
    there = tensor.dim() in CHANNELS_LAST and tensor.is_contiguous(memory_format=CHANNELS_LAST[tensor.dim()])
    return "channels_last" if there else ""
