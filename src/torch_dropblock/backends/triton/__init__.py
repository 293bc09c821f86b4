"""The Triton backend, for CUDA devices. Triton is imported with the first call that may need it."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ...core.blocks import Blocks
from ...core.geometry import Size
from ...core.keys import Key
from . import reserve


@lru_cache(maxsize=1)
def _imported() -> tuple[ModuleType | None, str]:
    """Import `launch`, once; if Triton cannot be imported, return the reason."""
    try:
        from . import launch
    except (ImportError, RuntimeError, OSError) as error:
        reason = str(error).partition("\n")[0]
        return None, f"Triton cannot be imported ({reason})"
    return launch, ""


def launcher() -> ModuleType:
    """Return the module `launch`.

    Raises:
        ImportError: Triton cannot be imported.
    """
    module, reason = _imported()
    if module is None:
        raise ImportError(reason)
    return module


def why_not_on(device: torch.device) -> str | None:
    """Return why this backend does not serve tensors on this device, None if it does."""
    module, reason = _imported()
    return reason if module is None else module.why_not_on(device)


def why_not(input: Tensor, blocks: Blocks) -> str | None:
    """Return why this backend does not serve the input, None if it does."""
    return why_not_on(input.device) or launcher().why_not_of(blocks.size)


def drop(input: Tensor, output: Tensor, key: Key, blocks: Blocks, table: Tensor, scale: Tensor | None = None) -> Tensor:
    """Write the input with blocks zeroed and the rest scaled into `output`, which may be the input.

    Returns the scale, counted unless it is given.
    """
    launch = launcher()
    mask = launch.draw(key, blocks, on(input.device, table), scale=scale)
    launch.apply(input, output, mask)
    counted: Tensor = mask.scale
    return counted


def prepare(device: torch.device) -> None:
    """Reserve the memory that calls on a device keep, if this backend serves it."""
    if device.type == "cuda" and torch.cuda.is_available() and why_not_on(device) is None:
        reserve.of(device)


def on(device: torch.device, table: Tensor) -> Tensor:
    """Return the table on a device; it is copied there once for each stream, since streams run at the same time."""
    if table.device == device:
        return table
    # kept by the table itself, so that they end with it
    copies: dict[Any, Tensor] = vars(table).setdefault("copies", {})
    stream = torch._C._cuda_getCurrentRawStream(device.index)
    if (device.index, stream) not in copies:
        if torch.cuda.is_current_stream_capturing():
            return _in_graph(device, table, copies)
        copies[device.index, stream] = reserve.of(device).copied(table, stream)
    return copies[device.index, stream]


# tables that CUDA graphs read at each replay; they stay, since nobody says when a graph ends
OF_GRAPHS: dict[int, Tensor] = {}


def _in_graph(device: torch.device, table: Tensor, copies: dict[Any, Tensor]) -> Tensor:
    """Return a table for a CUDA graph: a copy made before, or one that the graph makes at each replay."""
    OF_GRAPHS[id(table)] = table
    for (index, _), copy in list(copies.items()):
        if index == device.index and copy.is_cuda:
            return copy  # work of other streams ends before a capture begins
    pinned = copies.setdefault((device.index, "pinned"), table.pin_memory())
    return pinned.to(device, non_blocking=True)


def solved_table(keep_prob: Tensor, size: Size, block: Size, rate: str, length: int) -> Tensor:
    """Make the table of a `keep_prob` that only the device holds."""
    table: Tensor = launcher().solved_table(keep_prob, size, block, rate, length)
    return table
