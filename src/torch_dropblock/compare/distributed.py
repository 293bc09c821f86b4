"""The processes that train a run together: how many there are, which is the first, and how they part."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import distributed

from ..core import checks
from .settings import option


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
            checks.whole_number(option(name), getattr(self, name), at_least=least)

    @property
    def processes(self) -> int:
        return self.devices * self.nodes

    def environment(self) -> list[ClusterEnvironment]:
        """Lightning's plugin for a process that trains alone; Lightning finds the launcher of several by itself.

        A cluster's variables tell it of the tasks of its allocation, which may have nothing to do with this process.
        """
        return [LightningEnvironment()] if self.processes == 1 else []


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


class Stop:
    """SIGTERM stops a study as Ctrl-C does, and no process waits for another that has stopped.

    The first process raises KeyboardInterrupt, which reaches the code that writes the table. The others end at once:
    what they would save, the first one saves.

    Attributes:
        signal: what stops the study; SIGINT until SIGTERM comes.
    """

    def __init__(self) -> None:
        self.signal = signal.SIGINT

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGTERM until the end of the block, in the main thread, which alone can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._interrupt if is_first_process() else signal.SIG_DFL)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # launchers send it again when another process has ended
        self.signal = signal.SIGTERM
        raise KeyboardInterrupt


def without_signals(trainer: Trainer) -> Trainer:
    """Keep Lightning from handling SIGTERM: its handler broadcasts, in the middle of other collectives.

    Two processes that are told at the same time would wait for each other. With SLURM Lightning also requeues a job,
    from a checkpoint that it would then load into the next run, whichever that is.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


class Children:
    """The processes that Lightning's first trainer starts, and that stay for those after it."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []

    def of(self, trainer: Trainer) -> None:
        self._started = self._started or getattr(trainer.strategy.launcher, "procs", [])

    def end(self) -> None:
        """End them. Lightning's thread kills this process within seconds of that, unless its list is empty."""
        for child in self._started:
            child.kill()
            child.wait()
        self._started.clear()


def leave_group() -> None:
    """Gloo's threads must end before Python does: one that frees a tensor of Python's later aborts the process.

    Of NCCL's group Lightning has taken care by then.
    """
    if distributed.is_initialized():
        gc.collect()  # DistributedDataParallel holds the group, and is in a cycle of references
        distributed.destroy_process_group()
