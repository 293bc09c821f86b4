"""Memory of a device that lives as long as the process: counters of the drawing kernels, and tables.

Compiled code reserves it when it is traced. Under CUDA graphs PyTorch runs the first call in a pool of memory in which
nothing may stay.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes

from ...core.seeds import TABLE

# counters that are taken in turn, since several streams may draw at the same time
COUNTERS = 4096
# copies of tables: twice as many as the host keeps
TABLES = 2048


class Reserve:
    """The memory of one device; `of(device)` returns it."""

    def __init__(self, device: torch.device) -> None:
        with _plain_tensors():
            self.counters = itertools.cycle(torch.zeros(COUNTERS, dtype=torch.int64, device=device).unbind())
            self.tables = list(torch.empty(TABLES, TABLE, dtype=torch.float64, device=device).unbind())
        self.device = device
        self.freed: dict[int, list[Tensor]] = {}
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # once; the next stream may be another

    def copied(self, table: Tensor, stream: int) -> Tensor:
        """Copy a table of the host to the device, for one stream, until the table ends."""
        freed = self.freed.setdefault(stream, [])  # what still reads the last table there comes earlier in the stream
        place = _popped(freed) if freed else _popped(self.tables)
        with _plain_tensors():
            if place is None:
                place = torch.empty(TABLE, dtype=torch.float64, device=self.device)
            place.copy_(table, non_blocking=True)
        weakref.finalize(table, freed.append, place).atexit = False
        return place


def _popped(places: list[Tensor]) -> Tensor | None:
    try:
        return places.pop()
    except IndexError:  # another thread was faster
        return None


@contextmanager
def _plain_tensors() -> Iterator[None]:
    """Make tensors that outlive the call: neither fake, nor traced, nor those of a transform or of inference mode."""
    with torch.inference_mode(False), temporarily_clear_interpreter_stack(), _disable_current_modes():
        yield


@lru_cache
def of(device: torch.device) -> Reserve:
    """Return the memory of a device, which is allocated at the first call."""
    return Reserve(device)
