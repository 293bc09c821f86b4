"""Notice that a training steps an optimizer while the layers of a schedule never run."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from .modules import DropBlockNd

# fewer may come before the first forward pass, as where a schedule is built in the middle of a step
STEPS = 3
_steps_of_optimizers = 0


def _count(*_: Any) -> None:
    global _steps_of_optimizers
    if not torch.compiler.is_compiling():  # a count would be compiled again for each value
        _steps_of_optimizers += 1


@cache
def _watch_optimizers() -> None:
    register_optimizer_step_post_hook(_count)


class Idle:
    """Whether a training goes on without the layers, as where a trainer builds a network of its own."""

    def __init__(self) -> None:
        _watch_optimizers()
        self._steps = 0
        self._first = _steps_of_optimizers
        self._settled = False

    def step(self, layers: Iterable[DropBlockNd]) -> str:
        """Count a step of the schedule; return a warning when it is due, once."""
        self._steps += 1
        if self._settled or min(self._steps, _steps_of_optimizers - self._first) < STEPS:
            return ""
        self._settled = True
        if any(layer.has_run for layer in layers):
            return ""
        return (
            f"the schedule was stepped {self._steps} times and optimizers stepped, but none of its DropBlock layers "
            "ever ran in training: the network that is trained is not the schedule's. A trainer that builds a network "
            "of its own, as Ultralytics' does, needs the layers and the schedule in that one"
        )
