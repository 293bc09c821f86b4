"""One run: a row trained with one random seed, by Lightning.

The random seed, the epoch and the rank determine every random number of a run: order and augmentation of the images,
and what is dropped. A run resumed at the end of an epoch therefore gives the result of an uninterrupted run.
"""

from __future__ import annotations

import hashlib
import math
import time
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from ..networks.schedule import KeepProbSchedule
from . import networks, regularisers
from .batches import PADDING, Arrays, Batches
from .rows import Row
from .settings import MILESTONES, WARMUP, Settings
from .source import Source

# with fewer classes, top-5 accuracy says little
CLASSES_FOR_TOP5 = 20


class Run(LightningModule):
    """The network of a row, with its training, its validation and its metrics."""

    def __init__(self, settings: Settings, row: Row, seed: int, source: Source, workers: int) -> None:
        super().__init__()
        self.settings, self.row, self.seed, self.source, self.workers = settings, row, seed, source, workers
        torch.manual_seed(seed)
        network = networks.build(settings.model, source.classes, source.channels, source.side)
        self.network = network.to(memory_format=torch.channels_last)
        if row.noise:
            last = networks.side_of_last_map(settings.model, source.side)
            block_size = row.noise.block_size or min(7, last)
            regularisers.insert(self.network, row.noise.kind, row.noise.keep_prob, block_size, row.noise.rate)
        self.loss = nn.CrossEntropyLoss(label_smoothing=row.label_smoothing)
        self.schedule: KeepProbSchedule | None = None
        # in the checkpoint: [epoch, value] by name, seconds per step by epoch, and total seconds
        self.curves: dict[str, list[list[float]]] = {}
        self.step_seconds: list[float] = []
        self._seconds_before, self._started = 0.0, time.monotonic()
        shape = (1, source.channels, 1, 1)
        self.register_buffer("mean", torch.tensor(source.mean).view(shape) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(source.std).view(shape) * 255, persistent=False)
        ks = {"top1": 1} | ({"top5": 5} if source.classes >= CLASSES_FOR_TOP5 else {})
        accuracies = {
            # the inputs are valid, and on a GPU each check would wait for the device
            name: MulticlassAccuracy(
                source.classes, top_k=k, average="micro", ignore_index=PADDING, validate_args=False
            )
            for name, k in ks.items()
        }
        # keep NaN: a training that diverged has a loss of NaN
        train_loss, self.val_loss = (MeanMetric(nan_strategy="disable") for _ in range(2))
        # no ignore_index: training has no padding, and ignoring would wait for a GPU in each step
        train_top1 = MulticlassAccuracy(source.classes, average="micro", validate_args=False)
        self.train_metrics = MetricCollection({"loss": train_loss, "top1": train_top1}, prefix="train_")
        self.val_metrics = MetricCollection(dict(accuracies))

    def forward(self, images: Tensor) -> Tensor:
        pixels = (images.float() - self.mean) / self.std  # type: ignore[operator]
        logits: Tensor = self.network(pixels.to(memory_format=torch.channels_last))
        return logits.float()

    # --- training ----------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        if self.row.noise:
            steps = int(self.trainer.estimated_stepping_batches)
            self.schedule = KeepProbSchedule(
                self.network, steps, curve=self.row.noise.curve, start_step=self.trainer.global_step
            )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss: Tensor = self.loss(logits, labels)
        self.train_metrics["loss"].update(loss.detach())
        self.train_metrics["top1"].update(logits.detach(), labels)
        return loss

    def on_train_epoch_start(self) -> None:
        self._epoch_started = time.perf_counter()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.schedule:
            self.schedule.step()
        if self.trainer.is_last_batch:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds = time.perf_counter() - self._epoch_started
            self.step_seconds.append(seconds / self.trainer.num_training_batches)

    def on_train_epoch_end(self) -> None:
        self._note(self.train_metrics.compute())
        self.train_metrics.reset()

    def _note(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.curves.setdefault(name, []).append([self.trainer.current_epoch + 1, value.item()])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["measured"] = self.measured

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        measured = checkpoint["measured"]
        self.curves, self.step_seconds = measured["curves"], measured["step_seconds"]
        self._seconds_before = measured["seconds"]

    @property
    def measured(self) -> dict[str, Any]:
        return {"curves": self.curves, "step_seconds": self.step_seconds, "seconds": self.seconds}

    @property
    def seconds(self) -> float:
        """Training time in seconds, without the time lost to interruptions."""
        return self._seconds_before + time.monotonic() - self._started

    def configure_optimizers(self) -> Any:
        settings = self.settings
        optimizer = torch.optim.SGD(
            self.parameters(),
            settings.highest_learning_rate,
            momentum=0.9,
            weight_decay=settings.weight_decay,
            nesterov=True,
        )
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = max(1, round(WARMUP * steps))
        rise = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
        fall: torch.optim.lr_scheduler.LRScheduler
        if settings.decay == "cosine":
            fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warmup))
        else:
            milestones = [round(part * steps) - warmup for part in MILESTONES]
            fall = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
        scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, fall], [warmup])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # --- validation --------------------------------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        """Copy the running statistics of the first process, which are saved, to the others."""
        if self.trainer.world_size > 1:
            for buffer in self.network.buffers():
                distributed.broadcast(buffer, 0)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        real = labels != PADDING
        if real.any():
            self.val_loss.update(nn.functional.cross_entropy(logits[real], labels[real], reduction="none"))
        self.val_metrics.update(logits, labels)

    def on_validation_epoch_end(self) -> None:
        self._note({"loss": self.val_loss.compute(), **self.val_metrics.compute()})
        self.val_loss.reset()
        self.val_metrics.reset()

    # --- images ------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[Any] | Batches:
        """Build the loader of an epoch, and seed PyTorch's generator for it from the numbers hashed here."""
        trainer, images = self.trainer, self.source.train
        order: DistributedSampler[Any] = DistributedSampler(
            images, trainer.world_size, trainer.global_rank, seed=self.seed
        )
        order.set_epoch(trainer.current_epoch)
        number = hashed(self.seed, trainer.current_epoch, trainer.global_rank)
        torch.manual_seed(number)
        if isinstance(images, Arrays):
            indices = torch.tensor(list(order))
            whole = indices[: len(indices) // self._batch_size * self._batch_size]
            return Batches(images, whole, self._batch_size, self._root_device, self.source.augmentation_of(self.row))
        return self._loader(
            self.source.train_of(self.row), sampler=order, drop_last=True, worker_init_fn=partial(_seed_worker, number)
        )

    def val_dataloader(self) -> DataLoader[Any] | Batches:
        images, rank, world = self.source.val, self.trainer.global_rank, self.trainer.world_size
        if isinstance(images, Arrays):
            indices = torch.arange(math.ceil(len(images) / world)) * world + rank
            order = torch.where(indices < len(images), indices, PADDING)
            return Batches(images, order, self._batch_size, self._root_device)
        return self._loader(Shard(self.source.val_as_is(), rank, world))

    @property
    def _batch_size(self) -> int:
        return self.settings.batch_size // self.trainer.world_size

    @property
    def _root_device(self) -> torch.device:
        device: torch.device = self.trainer.strategy.root_device
        return device

    def _loader(self, images: Dataset[Any], **options: Any) -> DataLoader[Any]:
        return DataLoader(
            images,
            self._batch_size,
            num_workers=self.workers,
            pin_memory=self._root_device.type == "cuda",
            # each iterator draws a seed for its workers, and Lightning makes more iterators than epochs
            generator=torch.Generator(),
            **options,
        )


def _seed_worker(number: int, worker: int) -> None:
    torch.manual_seed(hashed(number, worker))


class Shard(Dataset[tuple[Tensor, int]]):
    """Every `world`-th image, starting at `rank`; shorter shards are filled with an image labelled `PADDING`."""

    def __init__(self, images: Dataset[Any], rank: int, world: int) -> None:
        self.images, self.rank, self.world = images, rank, world

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.world)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        at = index * self.world + self.rank
        image, label = self.images[min(at, len(self.images) - 1)]  # type: ignore[arg-type]
        return image, label if at < len(self.images) else PADDING  # type: ignore[arg-type]


def hashed(*numbers: int) -> int:
    """Hash numbers to 32 bits, the size of NumPy's random seed."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:4], "big")
