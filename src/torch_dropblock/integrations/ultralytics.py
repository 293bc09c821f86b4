"""`add_dropblock`: put layers into the network that an Ultralytics trainer trains, and schedule and log them.

    YOLO ── add_dropblock ──> callbacks
    yaml ── trainer ──> network ──> EMA ── checkpoints, validation, export      (without layers)
                           └── the pretraining routine ends: insert, schedule

`YOLO.train` builds another network from the yaml, so layers of the `YOLO` object's own network would not be trained.
Its EMA is a copy of that network, from which all checkpoints come.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from ..networks.insertion import dropblock_layers, remove_dropblock
from ..networks.schedule import Curve, KeepProbSchedule
from .common import check_options, log_lines


def add_dropblock(
    model: Any, insert: Callable[[nn.Module], object], *, curve: str | Curve = "linear", grow_blocks: bool = False
) -> DropBlockCallbacks:
    """Train an Ultralytics model with DropBlock layers, which no checkpoint contains.

        model = YOLO("yolo11n.yaml")
        add_dropblock(model, lambda network: insert_dropblock(network, "model.8", block_size=3, keep_prob=0.9))
        model.train(data="coco8.yaml", epochs=100)

    The layers are inserted when the trainer has made its network and its EMA. So validation, `best.pt`, `last.pt`,
    `fuse()` and export have the plain network. `keep_prob` of each layer goes from 1 to the layer's target, batch by
    batch. `results.csv` and the loggers of Ultralytics get `KeepProbSchedule.stats()` of each epoch's last batch under
    `dropblock/`. To resume, call this again for `YOLO("last.pt")`, with the same arguments, then
    `train(resume=True)`: the strength goes on where it was. docs/trainers.md has more.

    Args:
        model: a `YOLO` object, or another model of Ultralytics; it gets callbacks.
        insert: a function that puts layers into the network, such as a call of `insert_dropblock` or
            `insert_dropblock_stages`. If it must reach several processes, Ultralytics pickles it.
        curve: as for `KeepProbSchedule`.
        grow_blocks: as for `KeepProbSchedule`.

    Returns:
        The callbacks; their `schedule` and `layers` are those of the training, None and empty before.

    Raises:
        TypeError: `model` takes no callbacks, or `insert` is no function.
        TypeError, ValueError: `curve` or `grow_blocks`, as for `KeepProbSchedule`.
        ValueError: when the training begins: `insert` has put no layer into the network.
    """
    check_options(curve, grow_blocks=grow_blocks)
    if not callable(insert):
        raise TypeError(f"insert must be a function that puts layers into a network, got {insert!r}")
    if not hasattr(model, "add_callback"):
        raise TypeError(f"model must be a model of Ultralytics such as YOLO, got {type(model).__name__}")
    callbacks = DropBlockCallbacks(insert, curve, grow_blocks)
    for event in EVENTS:
        model.add_callback(event, getattr(callbacks, event))
    return callbacks


EVENTS = ("on_pretrain_routine_end", "on_train_epoch_start", "on_train_batch_end", "on_train_epoch_end", "teardown")


class DropBlockCallbacks:
    """The callbacks of `add_dropblock`, named as Ultralytics' events.

    Attributes:
        schedule: the schedule of the training.
        layers: its layers, by name.
    """

    def __init__(self, insert: Callable[[nn.Module], object], curve: str | Curve, grow_blocks: bool = False) -> None:
        self.insert, self.curve, self.grow_blocks = insert, curve, grow_blocks
        self.schedule: KeepProbSchedule | None = None
        self.layers: dict[str, nn.Module] = {}
        self._network: nn.Module | None = None
        self._lines: dict[str, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return the options alone: a copy, as for several processes, does not take the training."""
        return {"insert": self.insert, "curve": self.curve, "grow_blocks": self.grow_blocks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def on_pretrain_routine_end(self, trainer: Any) -> None:
        network = trainer.model
        while hasattr(network, "module") or hasattr(network, "_orig_mod"):  # DDP, torch.compile
            network = network.module if hasattr(network, "module") else network._orig_mod
        self.insert(network)
        self._network, self.schedule, self._lines = network, None, {}
        self.layers = dropblock_layers(network)
        self._schedule(trainer, trainer.start_epoch)

    def on_train_epoch_start(self, trainer: Any) -> None:
        if dropblock_layers(trainer.ema.ema):  # the trainer has recovered from NaN, and made its EMA again
            remove_dropblock(trainer.ema.ema)
        self._schedule(trainer, trainer.epoch)

    def _schedule(self, trainer: Any, epoch: int) -> None:
        """Make the schedule, again if an epoch is repeated or the number of batches or epochs has changed."""
        batches = len(trainer.train_loader)
        steps, total = epoch * batches, max(trainer.epochs, epoch + 1) * batches
        if self._network is not None and (
            self.schedule is None or (self.schedule.steps, self.schedule.total_steps) != (steps, total)
        ):
            options: Any = {"curve": self.curve, "grow_blocks": self.grow_blocks}
            self.schedule = KeepProbSchedule(self._network, total, start_step=steps, **options)

    def on_train_batch_end(self, trainer: Any) -> None:
        if self.schedule is not None:
            if self.schedule.steps % len(trainer.train_loader) == len(trainer.train_loader) - 1:
                self._lines = log_lines(self.schedule)
            self.schedule.step()

    def on_train_epoch_end(self, trainer: Any) -> None:
        """Log with the learning rates, which go to every logger; the columns of the CSV must stay the same."""
        if self.schedule is not None:
            names = ["", *(f"/{name}" for name in self.layers)]
            columns = [f"dropblock/{kind}{name}" for kind in ("keep_prob", "dropped") for name in names]
            trainer.lr.update({column: self._lines.get(column, math.nan) for column in columns})

    def teardown(self, trainer: Any) -> None:
        """Take the layers out, after a failure too: the `YOLO` object may still have this network."""
        if self._network is not None:
            remove_dropblock(self._network)
