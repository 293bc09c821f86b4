"""Processes that train a run together: their number, their first, and their shutdown."""

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
    """Hardware for the runs, with the arguments of Lightning's Trainer.

    It changes the results of a run only through random numbers: each process and each worker draws its own.
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
        """Lightning's plugin for a single process; with several, Lightning finds the launcher by itself.

        Without the plugin, Lightning would read a cluster's variables, which may describe tasks of other processes.
        """
        return [LightningEnvironment()] if self.processes == 1 else []


def launched_with() -> tuple[int, int]:
    """Return the devices per node and the nodes of torchrun's launch, or (1, 1) without torchrun."""
    if not distributed.is_torchelastic_launched():
        return 1, 1
    devices = int(os.environ["LOCAL_WORLD_SIZE"])
    return devices, int(os.environ["WORLD_SIZE"]) // devices


def is_first_process() -> bool:
    """Return True in the process of rank 0 on the first node."""
    # without a launcher that sets ranks, each node's command has rank 0 until Lightning reads NODE_RANK
    first_node = int(os.environ.get("NODE_RANK", 0)) == 0
    return bool(rank_zero_only.rank == 0) and first_node  # type: ignore[attr-defined]


class Stop:
    """Stop a study on SIGTERM, like on Ctrl-C, without a process waiting for one that has stopped.

    The first process raises KeyboardInterrupt, which reaches the code that writes the table. The others end at once,
    since only the first process saves anything.

    Attributes:
        signal: the signal that stops the study: SIGINT until SIGTERM arrives.
    """

    def __init__(self) -> None:
        self.signal = signal.SIGINT

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGTERM until the end of the block; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._interrupt if is_first_process() else signal.SIG_DFL)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # launchers send it again when another process ends
        self.signal = signal.SIGTERM
        raise KeyboardInterrupt


def without_signals(trainer: Trainer) -> Trainer:
    """Keep Lightning from handling SIGTERM: its handler broadcasts in the middle of other collectives.

    Two processes that receive the signal at the same time would wait for each other. Under SLURM, Lightning also
    requeues the job, with a checkpoint that it would then load into an unrelated run.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


class Children:
    """Processes that Lightning's first trainer starts and later trainers reuse."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []

    def of(self, trainer: Trainer) -> None:
        self._started = self._started or getattr(trainer.strategy.launcher, "procs", [])

    def end(self) -> None:
        """Kill the processes and clear Lightning's list, or its thread would kill this process within seconds."""
        for child in self._started:
            child.kill()
            child.wait()
        self._started.clear()


def leave_group() -> None:
    """End Gloo's threads before Python ends: a thread that frees a Python tensor later aborts the process.

    Lightning has already ended an NCCL group by then.
    """
    if distributed.is_initialized():
        gc.collect()  # DistributedDataParallel holds the group and is part of a reference cycle
        distributed.destroy_process_group()
