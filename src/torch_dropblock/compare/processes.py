"""The processes that train a run together: how many there are, which is the first, and how they part."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass

from lightning.pytorch.utilities import rank_zero_only
from torch import distributed

from .. import checks


@dataclass(frozen=True)
class Machine:
    """Where the runs are trained; as for Lightning's Trainer.

    A run depends on it by chance alone: each process, and each of its workers, draws numbers of its own.
    """

    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    workers: int = 0

    def __post_init__(self) -> None:
        for name, least in (("devices", 1), ("nodes", 1), ("workers", 0)):
            checks.whole_number(name, getattr(self, name), at_least=least)

    @property
    def processes(self) -> int:
        return self.devices * self.nodes


def launched_with() -> tuple[int, int]:
    """Devices of a node and nodes, as torchrun has started this process; one of each without it."""
    if not distributed.is_torchelastic_launched():
        return 1, 1
    devices = int(os.environ["LOCAL_WORLD_SIZE"])
    return devices, int(os.environ["WORLD_SIZE"]) // devices


def is_first_process() -> bool:
    """Of those that train together, by what their launcher told them."""
    # without a launcher that sets ranks, each node's own command is of rank 0 until Lightning has seen its NODE_RANK
    first_node = int(os.environ.get("NODE_RANK", 0)) == 0
    return bool(rank_zero_only.rank == 0) and first_node  # type: ignore[attr-defined]


def leave_group() -> None:
    """Gloo's threads must end before Python does: one that frees a tensor of Python's later aborts the process.

    Of NCCL's group Lightning has taken care by then.
    """
    if distributed.is_initialized():
        gc.collect()  # DistributedDataParallel holds the group, and is in a cycle of references
        distributed.destroy_process_group()
