"""Runs of a study in order: each row with the first seed, then each row with the second, and so on."""

from __future__ import annotations

import atexit
import logging
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import distributed

from ..bench.measure import machine
from .checkpoints import WholeCheckpoints, check, load_weights
from .distributed import Children, Machine, is_first_process, leave_group, without_signals
from .image_file import UnreadableImageError, unreadable
from .measures.choice import MEASURES
from .measures.images import Images, images_of
from .measures.trained import Trained
from .records import Records
from .result_lines import Result
from .rows import Row
from .settings import Settings
from .source import Source
from .training import Run

CHECKPOINT = "last"
# The workers of a killed process hold its claim until they notice, which they check every 5 seconds.
PATIENCE = 12.0
NOT_FOR_USERS = (
    ".*does not have many workers.*",
    ".*exists and is not empty.*",  # the checkpoint folder of a resumed run
    ".*dirpath has changed.*",  # the directory of the study was moved
    ".*number of training batches.*",  # below the interval of a logger, which is off
    ".*LeafSpec.*",  # caused by Lightning's own use of PyTorch
    ".*The epoch parameter in `scheduler.step.*",  # caused by SequentialLR up to PyTorch 2.8
    ".*AMP with fp16 is not supported on CPU.*",  # an error here
)


class Listener(Protocol):
    """Receiver of a study's progress."""

    def run_starts(self, row: Row, seed: int, steps_done: int) -> None: ...

    def run_is_others(self, row: Row, seed: int) -> None:
        """Note a run that another command trains or has finished."""

    def measure_starts(self, row: Row, seed: int, measure: str) -> None: ...

    def step_done(self) -> None: ...

    def run_ends(self, result: Result) -> None: ...


@dataclass
class Study:
    """A study, which trains each row with each random seed unless that run is already finished.

    Args:
        settings: settings of all runs.
        rows: rows, including the baseline.
        seeds: random seeds.
        source: the images.
        records: the directory.
        machine: hardware to train on.
        listener: receiver of the progress.
        save_weights: keep the weights of each trained run, in the folder `weights`.

    What is measured of each trained network is an attribute of the records.
    """

    settings: Settings
    rows: Sequence[Row]
    seeds: Sequence[int]
    source: Source
    records: Records
    listener: Listener
    machine: Machine = field(default_factory=Machine)
    save_weights: bool = False
    _children: Children = field(default_factory=Children, init=False, repr=False)
    _images: Images | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        batch, processes = self.settings.batch_size, self.machine.processes
        if batch % processes:
            raise ValueError(f"--batch-size must be a multiple of the {processes} processes, got {batch}")
        if batch > len(self.source.train):  # type: ignore[arg-type]
            images = len(self.source.train)  # type: ignore[arg-type]
            raise ValueError(f"--batch-size must be at most the {images} images to train on, got {batch}")
        for row in self.rows:
            self.source.augmentation_of(row)
        for result in self.records.results():
            if result.get("images", self.source.counts) != self.source.counts:
                raise ValueError(
                    f"{self.records.path} holds runs made with other images, {_counted(result['images'])}, and now it "
                    f"is {_counted(self.source.counts)}: use another --out"
                )

    @property
    def runs(self) -> list[tuple[Row, int]]:
        return [(row, seed) for seed in self.seeds for row in self.rows]

    @property
    def unfinished(self) -> list[tuple[Row, int]]:
        return [run for run in self.runs if not self.records.finished(*run)]

    @property
    def steps_of_a_run(self) -> int:
        images, processes = len(self.source.train), self.machine.processes  # type: ignore[arg-type]
        return self.settings.epochs * (-(-images // processes) // (self.settings.batch_size // processes))

    def run(self) -> None:
        """Train the unfinished runs. Finished ones are in the records after any error.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM stopped the study.
            UnreadableImageError: a file cannot be read as an image.
        """
        if self.machine.processes > 1 and not distributed.is_initialized():
            # at exit, not here: NCCL may wait for processes that go on, which would delay an error message
            atexit.register(leave_group)
        try:
            skipped = [run for run in self.unfinished if not self._mine(*run)]
            # the commands that held them may have been stopped meanwhile
            for run in skipped:
                if not self.records.finished(*run):
                    self._mine(*run, patience=PATIENCE)
        except KeyboardInterrupt:
            self._children.end()
            raise

    def _mine(self, row: Row, seed: int, patience: float = 0.0) -> bool:
        """Train a run, unless another command does."""
        with self._claimed(row, seed, patience) as mine:
            if mine:
                with _quiet():
                    self._run(row, seed)
            elif not patience:
                self.listener.run_is_others(row, seed)
        return mine

    @contextmanager
    def _claimed(self, row: Row, seed: int, patience: float) -> Iterator[bool]:
        """Claim a run; the first of several processes claims it for all."""
        together = self.machine.processes > 1
        if together and not is_first_process():
            yield not self.records.finished(row, seed)
            return
        with self.records.claimed(row, seed, PATIENCE if together else patience) as mine:
            if together and not mine:
                raise ValueError(
                    f"--out must be a folder that no other command uses if several processes train a run, got "
                    f"{self.records.path}"
                )
            yield mine

    def _run(self, row: Row, seed: int) -> None:
        """Train a network and measure it, or measure one whose weights were saved."""
        run = Run(self.settings, row, seed, self.source, self.machine.workers)
        folder = self.records.folder_of(row, seed)
        checkpoint = folder / f"{CHECKPOINT}.ckpt"
        known = checkpoint if checkpoint.exists() else None
        trainer = self._trainer(folder, _Reporter(self.listener, row, seed, resumes=known is not None))
        result = self.records.result(row, seed)
        if result is None:
            self._train(run, trainer, known)
            result = self._result(run, trainer)
            if is_first_process() and self.save_weights:
                self.records.save_weights(row, seed, run.network.state_dict())
        elif is_first_process():
            load_weights(run.network, self.records.weights_of(row, seed))
        if is_first_process():
            measures = result.get("measures", {}) | self._measures(run, trainer, self.records.missing(result))
            self.records.add(result | ({"measures": measures} if measures else {}))
        self.listener.run_ends(result)

    def _train(self, run: Run, trainer: Trainer, known: Path | None) -> None:
        if known:
            check(known, run)
        try:
            trainer.fit(run, ckpt_path=known, weights_only=True)
        except SystemExit:  # Lightning raises it on an interrupt
            if trainer.interrupted:
                raise KeyboardInterrupt from None
            raise
        except UnreadableImageError as error:  # from a worker, the message includes its traceback
            first = UnreadableImageError(str(error).rpartition(f"{UnreadableImageError.__name__}: ")[2].strip())
            raise unreadable(self.source.files) or first from None  # all at once, not one per run
        finally:
            self._children.of(trainer)

    def _measures(self, run: Run, trainer: Trainer, names: Sequence[str]) -> dict[str, Any]:
        """Measure a trained network in the precision of its training."""
        if not names:
            return {}
        device, precision = trainer.strategy.root_device, trainer.precision_plugin
        self._images = self._images or images_of(self.source, device, self.machine.workers)
        network = precision.convert_module(run).to(device).eval()
        drops = run.row.noise is not None and run.row.noise.keep_prob < 1.0
        trained = Trained(network, self._images, drops, run.seed, precision.forward_context)
        measures = {}
        for name in names:
            self.listener.measure_starts(run.row, run.seed, name)
            measures[name] = MEASURES[name](trained)
        return measures

    def _trainer(self, folder: Path, told: Callback) -> Trainer:
        last = ModelCheckpoint(
            folder, CHECKPOINT, save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False
        )
        try:
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
                plugins=[WholeCheckpoints(), *self.machine.environment()],
                callbacks=[last, told],
            )
        except (
            MisconfigurationException,
            RuntimeError,
        ) as error:  # RuntimeError: bad variables of a cluster
            raise ValueError(str(error)) from error
        if trainer.precision != self.settings.precision:  # Lightning falls back to another with only a warning
            wanted = self.settings.precision
            raise ValueError(f"--precision {wanted} needs a GPU; on this accelerator it would be {trainer.precision}")
        return without_signals(trainer)

    def _result(self, run: Run, trainer: Trainer) -> Result:
        last = {name: values[-1][1] for name, values in run.curves.items()}
        return {
            "row": run.row.name,
            "seed": run.seed,
            **{name: last[name] for name in ("top1", "top5", "loss", "train_top1", "train_loss") if name in last},
            "step_ms": 1000 * statistics.median(run.step_seconds[1:] or run.step_seconds),
            "curves": run.curves,
            "images": self.source.counts,
            "processes": trainer.world_size,
            "machine": machine(str(trainer.strategy.root_device)) | {"lightning": metadata.version("lightning")},
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()),
            "seconds": run.seconds,
        }


def _counted(images: dict[str, int]) -> str:
    return "{train:,} to train on and {val:,} to validate on, of {classes} classes".format_map(images)


class _Reporter(Callback):
    """Report to a listener, and check that all processes train the same run from the same epoch."""

    def __init__(self, listener: Listener, row: Row, seed: int, resumes: bool) -> None:
        self.listener, self.row, self.seed, self.resumes = listener, row, seed, resumes

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check before the checkpoint is read: processes that have one would wait for those that do not."""
        if trainer.world_size == 1:
            return
        mine = f"{self.row.name} with seed {self.seed} from {'a checkpoint' if self.resumes else 'the start'}"
        all_of_them: list[Any] = [None] * trainer.world_size
        distributed.all_gather_object(all_of_them, mine)
        different = sorted(set(all_of_them))
        if len(different) > 1:
            raise ValueError(
                f"all processes must train the same run, these train {' and '.join(different)}: --out must be a "
                "folder that all nodes see"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.listener.run_starts(self.row, self.seed, trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.listener.step_done()


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide Lightning's messages for developers; users of the command can do nothing about them."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in NOT_FOR_USERS:
                warnings.filterwarnings("ignore", message)
            warnings.filterwarnings("ignore", module=r"PIL\.")  # about each file's size and metadata
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
