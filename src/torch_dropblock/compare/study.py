"""The runs of a study, one after the other: each row with the first seed, then each with the second, and so on."""

from __future__ import annotations

import logging
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Protocol

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from ..bench import machine
from .data import Source, UnreadableImageError
from .records import Records, Result
from .rows import Row
from .settings import Settings
from .training import Run

CHECKPOINT = "last"
NOT_FOR_USERS = (
    ".*does not have many workers.*",
    ".*exists and is not empty.*",  # the folder of the checkpoint that a run goes on from
    ".*number of training batches.*",  # below the interval of a logger that there is not
    ".*LeafSpec.*",  # Lightning's own use of PyTorch
)


class Listener(Protocol):
    """Who is told how the study goes on."""

    def run_starts(self, row: Row, seed: int, steps_done: int) -> None: ...

    def run_is_others(self, row: Row, seed: int) -> None: ...

    def step_done(self) -> None: ...

    def run_ends(self, result: Result) -> None: ...


@dataclass(frozen=True)
class Machine:
    """Where the runs are trained; as for Lightning's Trainer. Nothing but time is to depend on it."""

    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    workers: int = 0

    @property
    def processes(self) -> int:
        return self.devices * self.nodes


@dataclass
class Study:
    """Rows and seeds to be run, with what is already finished left out.

    Args:
        settings: of all runs.
        rows: with the baseline.
        seeds: the numbers of the seeds.
        source: the images.
        records: the directory.
        machine: where to train.
        listener: who is told.
        save_weights: keep the weights of each finished run, in the folder `weights`.
    """

    settings: Settings
    rows: Sequence[Row]
    seeds: Sequence[int]
    source: Source
    records: Records
    listener: Listener
    machine: Machine = field(default_factory=Machine)
    save_weights: bool = False

    def __post_init__(self) -> None:
        batch, processes = self.settings.batch_size, self.machine.processes
        if batch % processes:
            raise ValueError(f"batch_size must be a multiple of the {processes} processes, got {batch}")
        if batch > len(self.source.train):  # type: ignore[arg-type]
            images = len(self.source.train)  # type: ignore[arg-type]
            raise ValueError(f"batch_size must be at most the {images} images to train on, got {batch}")

    @property
    def runs(self) -> list[tuple[Row, int]]:
        return [(row, seed) for seed in self.seeds for row in self.rows]

    @property
    def unfinished(self) -> list[tuple[Row, int]]:
        return [(row, seed) for row, seed in self.runs if not self.records.finished(row, seed)]

    @property
    def steps_of_a_run(self) -> int:
        images, processes = len(self.source.train), self.machine.processes  # type: ignore[arg-type]
        return self.settings.epochs * (-(-images // processes) // (self.settings.batch_size // processes))

    def run(self) -> None:
        """Train what is unfinished.

        Raises:
            KeyboardInterrupt: somebody stopped it; what was finished is in the records, as after any other error.
            UnreadableImageError: a file is no image.
        """
        for row, seed in self.unfinished:
            with self._claimed(row, seed) as mine:
                if mine:
                    with _quiet():
                        self._run(row, seed)
                else:
                    self.listener.run_is_others(row, seed)

    @contextmanager
    def _claimed(self, row: Row, seed: int) -> Iterator[bool]:
        """The first of several processes claims a run for all of them."""
        if not is_first_process():
            yield not self.records.finished(row, seed)
            return
        with self.records.claimed(row, seed) as mine:
            if self.machine.processes > 1 and not mine:
                raise ValueError(f"another compare is at work in {self.records.path}; give this one another --out")
            yield mine

    def _run(self, row: Row, seed: int) -> None:
        run = Run(self.settings, row, seed, self.source, self.machine.workers)
        folder = self.records.folder_of(row, seed)
        checkpoint = folder / f"{CHECKPOINT}.ckpt"
        last = ModelCheckpoint(
            folder, CHECKPOINT, save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False
        )
        trainer = Trainer(
            accelerator=self.machine.accelerator,
            devices=self.machine.devices,
            num_nodes=self.machine.nodes,
            precision=self.settings.precision,  # type: ignore[arg-type]
            max_epochs=self.settings.epochs,
            check_val_every_n_epoch=self.settings.validate_every,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
            callbacks=[last, _Told(self.listener, row, seed)],
        )
        started = time.time()
        try:
            trainer.fit(run, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=True)
        except SystemExit:  # which Lightning makes of an interrupt
            if trainer.interrupted:
                raise KeyboardInterrupt from None
            raise
        except Exception as error:
            message = str(error).rpartition(f"{UnreadableImageError.__name__}: ")[2]
            if isinstance(error, UnreadableImageError):  # of a worker, it has the worker's traceback in it
                raise UnreadableImageError(message.strip()) from None
            raise
        result = self._result(run, trainer, started)
        if trainer.is_global_zero:
            if self.save_weights:
                self.records.save_weights(row, seed, run.network.state_dict())
            self.records.add(result)
            self.records.forget_unfinished(row, seed)
        self.listener.run_ends(result)

    def _result(self, run: Run, trainer: Trainer, started: float) -> Result:
        last = {name: values[-1][1] for name, values in run.curves.items()}
        return {
            "row": run.row.name,
            "seed": run.seed,
            **{name: last[name] for name in ("top1", "top5", "loss", "train_top1", "train_loss") if name in last},
            "step_ms": 1000 * statistics.median(run.step_seconds[1:] or run.step_seconds),
            "curves": run.curves,
            "processes": trainer.world_size,
            "machine": machine(str(run.device)) | {"lightning": metadata.version("lightning")},
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()),
            "seconds": time.time() - started,
        }


class _Told(Callback):
    """Tells a listener, and sees to it that all processes train the same run."""

    def __init__(self, listener: Listener, row: Row, seed: int) -> None:
        self.listener, self.row, self.seed = listener, row, seed

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        mine = (self.row.name, self.seed)
        first = trainer.strategy.broadcast(mine)
        if tuple(first) != mine:
            raise ValueError(
                f"processes must train the same run, and one trains {first} while another trains {mine}: do all nodes "
                "see the same --out?"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.listener.run_starts(self.row, self.seed, trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.listener.step_done()


def is_first_process() -> bool:
    """Of those that train together, by what their launcher told them."""
    return bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Lightning says to those who call it, which the user of a command has no hand in."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in NOT_FOR_USERS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
