"""`DropBlockCallback`: handle the schedule, the random state and the ranks of a training with Lightning.

    batch  ── an optimizer stepped ──> schedule
    save   ── schedule, random state ──> checkpoint ──> restored where Lightning draws the same numbers again
    ranks  ── in a training batch, each rank has its own random stream ──> different masks on each

Lightning draws from the global generators when it makes the iterators of the data, once before `on_train_start` and
then at the start of each epoch. In a resumed run, Lightning makes its iterator before a callback can act, from a random
state that is not the checkpoint's. So this callback makes the iterator again. Earlier draws, such as those that make
the datasets, are the same as in the first run.
"""

from __future__ import annotations

import importlib
import math
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.hints import hinted, warn
from ..networks.schedule import Curve, KeepProbSchedule
from .common import check_options, generators_of, hash_of, log_lines, mask_generators


def _callback_of_each_framework() -> type:
    """Return a base class with the `Callback` of each installed Lightning package, since a Trainer may be from either.

    The second import costs 0.2 s, the first 4 s.
    """
    bases, errors = [], []
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            bases.append(importlib.import_module(name).Callback)
        except ImportError as error:  # noqa: PERF203
            errors.append(error)
    if not bases:
        raise ImportError('DropBlockCallback needs Lightning: pip install "torch-dropblock[lightning]"') from errors[0]
    return type("Callback", tuple(bases), {})


_Callback: Any = object if TYPE_CHECKING else _callback_of_each_framework()


class DropBlockCallback(_Callback):  # type: ignore[misc]
    """Schedule the DropBlock layers of a LightningModule, and make its training resume exactly from a checkpoint.

        class Net(LightningModule):
            def __init__(self):
                super().__init__()
                self.net = torchvision.models.resnet50()
                insert_dropblock_resnet(self.net)
            ...

        Trainer(max_epochs=270, callbacks=[DropBlockCallback()])

    Changes `keep_prob` of each layer from 1 to the layer's target, by a `KeepProbSchedule` that steps once after each
    batch in which an optimizer stepped. `schedule` is None until a training begins. Checkpoints include the schedule
    and the random state (Python, NumPy, PyTorch). If several processes train on shards of the data, each draws its own
    masks. The loggers of the trainer get `KeepProbSchedule.stats()` under `dropblock/`, every `log_every_n_steps`.
    docs/lightning.md lists the guarantees.

    Args:
        curve: as for `KeepProbSchedule`.
        total_steps: the number of steps of the whole training; None takes the trainer's estimate.
        grow_blocks: as for `KeepProbSchedule`.

    Raises:
        TypeError, ValueError: as for `KeepProbSchedule`; errors in arguments are raised at once, errors in the model
            when a training begins. Also if `total_steps` is None and the trainer has no estimate.
    """

    @hinted('its options are keywords: DropBlockCallback(curve="linear", total_steps=None)')
    def __init__(
        self, *, curve: str | Curve = "linear", total_steps: int | None = None, grow_blocks: bool = False
    ) -> None:
        check_options(curve, total_steps, grow_blocks)
        self.curve = curve
        self.grow_blocks = grow_blocks
        self.total_steps = total_steps
        self.schedule: KeepProbSchedule | None = None
        self._loaded: dict[str, Any] | None = None
        self._evaluates = False
        self._generators: list[torch.Generator] = []
        self._global_step = 0
        self._epoch_ended = False
        self._resume: tuple[dict[str, Any], dict[str, Any]] | None = None
        self._replica: int | None = None
        self._rank_seed: int | None = None
        self._batches = 0
        self._shared: dict[int, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return the options alone: a copy does not take the training and its network."""
        return {"curve": self.curve, "total_steps": self.total_steps, "grow_blocks": self.grow_blocks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __repr__(self) -> str:
        schedule = f", schedule={self.schedule!r}" if self.schedule else ""
        return f"DropBlockCallback(curve={self.curve!r}, total_steps={self.total_steps!r}{schedule})"

    # --- the schedule ------------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        self._evaluates = stage != "fit"
        if not self._evaluates:  # a finder (of batch size or learning rate) saves and restores before training starts
            self.schedule = self._loaded = None

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        loaded, self._loaded = self._loaded, None
        # with several optimizers a batch has several steps, with accumulation a step has several batches
        done = min(trainer.global_step, trainer.fit_loop.total_batch_idx + 1)
        total = _steps_of(trainer) if self.total_steps is None else self.total_steps
        options: Any = {"curve": self.curve, "grow_blocks": self.grow_blocks}
        self.schedule = KeepProbSchedule(pl_module, total, start_step=done, **options)
        self._generators = generators_of(pl_module)
        self._rank_seed, self._batches, self._epoch_ended, self._resume = None, 0, False, None
        if loaded is not None:
            self._apply(loaded)
            self._restore(loaded["random"], trainer)
        self._set_ranks_apart(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._give_back()
        self._epoch_ended = trainer.is_last_batch
        if self.schedule is not None and trainer.global_step != self._global_step:
            self._log(trainer, self.schedule)
            self.schedule.step()

    def _log(self, trainer: Any, schedule: KeepProbSchedule) -> None:
        """Log as often as the trainer does, and at the same steps."""
        interval = trainer.log_every_n_steps
        if trainer.loggers and trainer.is_global_zero and interval and (schedule.steps + 1) % interval == 0:
            lines = log_lines(schedule)
            for logger in trainer.loggers:
                logger.log_metrics(lines, step=schedule.steps)

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        schedule = self.schedule
        if schedule and self.total_steps is None and schedule.steps < schedule.total_steps and not trainer.should_stop:
            warn(
                f"the training ended after {schedule.steps} steps, but the trainer expected "
                f"total_steps={schedule.total_steps}: the DropBlock layers ended at strength {schedule.strength:.4g} "
                "and not at 1; give DropBlockCallback its total_steps"
            )

    # --- the checkpoint ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        if self._loaded is not None or self.schedule is None:
            return self._loaded or {}
        return {
            "schedule": self.schedule.state_dict(),
            "random": self._resume[0] if self._resume else self._random_state(),
            "rank_seed": self._rank_seed,
            "batches": self._batches,
            "epoch_ended": self._epoch_ended,
        }

    def on_load_checkpoint(self, trainer: Any, pl_module: nn.Module, checkpoint: dict[str, Any]) -> None:
        self._global_step = checkpoint["global_step"]  # if restored within a batch, the batch counts from here

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state at once during a training (restored by a finder or a rollback), otherwise when one starts.

        An evaluation restores only the weights, so that an earlier training keeps its state.
        """
        if self._evaluates:
            return
        if self.schedule is None:
            self._loaded = state_dict
        else:
            self._apply(state_dict)
            self._set_random_state(state_dict["random"])

    def _apply(self, state: dict[str, Any]) -> None:
        """Load a state, except for the generators."""
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self._rank_seed, self._batches = state["rank_seed"], state["batches"]
        self._epoch_ended = state["epoch_ended"]

    def _random_state(self) -> dict[str, Any]:
        """Return plain values and tensors, which `torch.load` reads with `weights_only=True`."""
        kind, keys, *rest = np.random.get_state()
        return {
            "python": random.getstate(),
            "numpy": (str(kind), np.asarray(keys).tolist(), *rest),
            "torch": [self._shared.get(i, g.get_state()) for i, g in enumerate(self._generators)],
        }

    def _set_random_state(self, state: dict[str, Any]) -> None:
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        for i, (generator, saved) in enumerate(zip(self._generators, state["torch"], strict=False)):
            # the machine may have other devices; within a batch, a rank returns later to the shared state
            if i in self._shared:
                self._shared[i] = saved.cpu()
            else:
                generator.set_state(saved.cpu())

    def _restore(self, state: dict[str, Any], trainer: Any) -> None:
        """Keep a random state for the next epoch or batch; at an epoch's end, first remake the iterator from it."""
        after = state
        if self._epoch_ended:
            self._set_random_state(state)
            _make_iterator_again(trainer)
            after = self._random_state()
        self._resume = state, after

    def on_train_epoch_start(self, trainer: Any, pl_module: nn.Module) -> None:
        if self._resume:
            loop = trainer.fit_loop
            goes_on = loop.restarting or getattr(loop, "is_resuming", False)  # the loop keeps its iterator
            self._set_random_state(self._resume[1 if goes_on or trainer.current_epoch == 0 else 0])

    # --- the ranks ---------------------------------------------------------------------------------------------------

    def _set_ranks_apart(self, trainer: Any) -> None:
        """Give each rank with its own data its own masks; a group of tensor-parallel ranks shares data and masks."""
        shards = trainer.distributed_sampler_kwargs or {"num_replicas": 1}
        self._replica = shards["rank"] if shards["num_replicas"] > 1 else None
        if self._replica is not None and self._rank_seed is None:
            state = bytes(torch.get_rng_state().tolist())  # drawing a number would change later draws
            self._rank_seed = trainer.strategy.broadcast(hash_of(state))

    def on_train_batch_start(self, trainer: Any, pl_module: nn.Module, batch: Any, batch_idx: int) -> None:
        if self._resume and not self._epoch_ended:
            self._set_random_state(self._resume[0])
        self._resume = None
        if self._replica is not None:
            seed = hash_of(f"{self._rank_seed} {self._replica} {self._batches}".encode())
            self._shared = {i: self._generators[i].get_state() for i in mask_generators(self._generators)}
            for i in self._shared:
                self._generators[i].manual_seed(seed)
        self._batches += 1
        self._global_step = trainer.global_step

    def _give_back(self) -> None:
        """Restore the shared random state outside training batches: samplers without a seed rely on it."""
        for i, state in self._shared.items():
            self._generators[i].set_state(state)
        self._shared = {}

    # a batch that is skipped or fails has no `on_train_batch_end`

    def on_train_epoch_end(self, trainer: Any, pl_module: nn.Module) -> None:
        self._give_back()
        self._epoch_ended = True

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        self._give_back()


def _steps_of(trainer: Any) -> int:
    steps = trainer.estimated_stepping_batches
    schedulers = [c for c in trainer.callbacks if hasattr(c, "get_accumulate_grad_batches")]
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    if schedulers and epochs != -1 and batches < math.inf:  # the trainer's estimate uses the present accumulation only
        taken = [schedulers[-1].get_accumulate_grad_batches(epoch) for epoch in range(max(epochs, 1))]
        steps = sum(math.ceil(batches / accumulated) for accumulated in taken)
        steps = steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)
    if not 0 < steps < math.inf:  # -1 for a dataset of unknown length
        raise ValueError(
            "the trainer has no estimate of its number of steps (estimated_stepping_batches is "
            f"{steps}): give it max_steps, or DropBlockCallback its total_steps"
        )
    return int(steps)


def _make_iterator_again(trainer: Any) -> None:
    fetcher = getattr(trainer.fit_loop, "_data_fetcher", None)
    if fetcher is None:
        warn(
            "this version of Lightning is not known to torch-dropblock: the batches of the epoch that begins may come "
            "in another order than in a training that was not interrupted"
        )
    elif not any(hasattr(loader, "load_state_dict") for loader in fetcher.combined_loader.flattened):
        iter(fetcher)
