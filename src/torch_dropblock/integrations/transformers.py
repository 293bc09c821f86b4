"""`DropBlockCallback`: handle the schedule, the log and the ranks of a training with the Hugging Face `Trainer`.

The `Trainer` itself saves the random state of each process and the step, from which the schedule follows. So this
callback needs no state of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..core.hints import hinted
from ..networks.schedule import Curve, KeepProbSchedule
from .common import check_options, generators_of, hash_of, log_lines, mask_generators, step_to

if TYPE_CHECKING:
    TrainerCallback: Any = object
else:
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise ImportError(
            'DropBlockCallback needs transformers: pip install "torch-dropblock[transformers]"'
        ) from error


class DropBlockCallback(TrainerCallback):  # type: ignore[misc]
    """Schedule the DropBlock layers of a model that the Hugging Face `Trainer` trains, and log what they drop.

        model = ResNetForImageClassification(ResNetConfig())
        insert_dropblock(model, "*.stages.[23].*.normalization", keep_prob=0.9)
        Trainer(model, args, train_dataset=images, callbacks=[DropBlockCallback()]).train()

    Changes `keep_prob` of each layer from 1 to the layer's target, by a `KeepProbSchedule` that steps once for each
    step of the optimizer. `train(resume_from_checkpoint=...)` resumes it at the step of the checkpoint. Each logged
    step gets `KeepProbSchedule.stats()` under `dropblock/`. If several processes train on shards of the data, each
    draws its own masks. `schedule` is None until a training begins. docs/trainers.md has more.

    Args:
        curve: as for `KeepProbSchedule`.
        total_steps: the number of steps of the whole training; None takes the trainer's `state.max_steps`.
        grow_blocks: as for `KeepProbSchedule`.

    Raises:
        TypeError, ValueError: as for `KeepProbSchedule`; errors in arguments are raised at once, errors in the model
            when a training begins.
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

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **others: Any) -> None:
        total = state.max_steps if self.total_steps is None else self.total_steps
        options: Any = {"curve": self.curve, "grow_blocks": self.grow_blocks}
        self.schedule = KeepProbSchedule(model, total, start_step=state.global_step, **options)
        if args.process_index > 0:  # a resumed training then gets the states that it has saved for each process
            generators = generators_of(model)
            for i in mask_generators(generators):
                generators[i].manual_seed(hash_of(f"{torch.initial_seed()} {args.process_index}".encode()))

    # Steps are counted when the next one begins, so that a log has the keep_prob with which a step was taken.

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if self.schedule is not None:
            step_to(self.schedule, state.global_step)

    on_train_end = on_step_begin

    def on_log(self, args: Any, state: Any, control: Any, *, logs: dict[str, Any], **others: Any) -> None:
        if self.schedule is not None and "loss" in logs:  # neither an evaluation nor the summary of the training
            lines = log_lines(self.schedule)
            logs.update(lines)
            state.log_history[-1].update(lines)
