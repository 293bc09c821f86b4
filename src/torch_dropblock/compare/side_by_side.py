"""A second process that shares a study's runs, for networks so small that a second thread mostly waits."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .settings import Settings

# steps that take about as long as a process takes to start, many times over
WORTH_STEPS = 1000


def worth_it(steps: int) -> bool:
    """Return True if a second process on another core saves time for this number of steps."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores > 1 and steps >= WORTH_STEPS


@dataclass(frozen=True)
class Work:
    """Arguments of the second process for the same study."""

    settings: Settings
    rows: Sequence[str]
    seeds: Sequence[int]
    out: Path
    measures: Sequence[str]
    accelerator: str
    save_weights: bool

    def run(self) -> None:
        """Train the runs that no other process trains."""
        import torch

        from . import data, study
        from .distributed import Machine
        from .records import Records
        from .rows import parsed

        torch.set_num_threads(1)
        rows, records = parsed(self.rows, self.settings), Records(self.out, self.settings, self.measures)
        source, machine = data.load(self.settings, Path()), Machine(self.accelerator)
        study.Study(
            self.settings, rows, self.seeds, source, records, Silent(), machine, save_weights=self.save_weights
        ).run()


class Silent:
    """A listener that reports nothing."""

    def run_starts(self, *_: object) -> None: ...

    def run_is_others(self, *_: object) -> None: ...

    def measure_starts(self, *_: object) -> None: ...

    def step_done(self) -> None: ...

    def run_ends(self, *_: object) -> None: ...


@contextmanager
def helped(work: Work) -> Iterator[BaseProcess]:
    """Start a process that works on the same study, and end it with the block.

    If it fails, it says nothing: its runs are left to this process, which meets the same error.
    """
    process = multiprocessing.get_context("spawn").Process(target=_help, args=(work,), daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.terminate()
        process.join()


def _help(work: Work) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both; the first process ends this one
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    work.run()


def _end_with_the_first() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
