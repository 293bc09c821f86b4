"""`Watch`: warn if a network trains but its schedule is not stepped, or the layers of the schedule do not run.

    layers, in eager mode ── a training pass ──> Watch <── step, state_dict ── schedule
                                                   └── warns, once of each

Compiled code never calls it: there the version counters of PyTorch show whether the parameters change. The schedule
removes it from the layers after the first steps of a training, so that later steps cost nothing.
"""

from __future__ import annotations

import itertools
import sys
import weakref

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..core.hints import warn

# after this many steps (FEW) or passes (MANY), a missing call is no accident
FEW, MANY = 10, 100


class Watch:
    """A callback that each layer of a schedule calls at each training pass, with itself as the argument.

    Args:
        model: the network that the schedule was built for.
        total_steps: total steps of the schedule.
        is_on_the_way: True if later steps of the schedule would change the strength.
        is_called: True if every layer calls it; a layer of a class with its own `drop` does not.
    """

    def __init__(self, model: nn.Module, total_steps: int, *, is_on_the_way: bool, is_called: bool) -> None:
        self.model = weakref.ref(model)
        self.total_steps = total_steps
        self.waits_for_a_step, self.is_called = is_on_the_way, is_called
        self.many = min(total_steps, MANY)
        self.passes, self.steps = 0, 0
        self.counted: int | None = None
        self.look_at = self.many + 1
        self.before = _versions(model)
        self.nodes = _autograd_nodes()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Copy as None: a copy of a layer or of a schedule has no watch."""
        return type(None), ()

    def __call__(self, layer: object) -> None:
        if self.counted is None:
            self.counted = id(layer)
        if self.counted == id(layer):
            self.passes += 1
            if self.passes >= self.look_at:  # then count updates: with accumulated batches a step has several passes
                self.look_at *= 2
                self.warn_if_not_stepped()

    def stepped(self) -> bool:
        """Count a step of the schedule, and return True once the watch is finished."""
        self.waits_for_a_step = False
        nodes = _autograd_nodes()
        if nodes != self.nodes:  # something trains; otherwise the user may just be plotting the curve
            self.steps += 1
            self.nodes = nodes
        if self.steps < min(self.total_steps, FEW):
            return False
        if not self.passes and self._nothing_ran():
            warn(
                f"the schedule has been stepped {self.steps} times while something trained, but its DropBlock layers "
                "have run 0 times: another network is trained, or one that does not call them. A trainer that builds "
                "a network of its own leaves inserted layers behind: insert into that one, and build the schedule "
                "of it"
            )
        return True

    def warn_if_not_stepped(self) -> None:
        if self.waits_for_a_step and self._updates() >= self.many:
            self.waits_for_a_step = False
            trained = f"trained for {self.passes} passes" if self.passes else f"been updated {self._updates()} times"
            warn(
                f"the network has {trained}, but its schedule of total_steps={self.total_steps} has been stepped 0 "
                "times, so its layers stay where they are; call schedule.step() after each optimizer.step(), or after "
                "each epoch if total_steps counts epochs"
            )

    def _updates(self) -> int:
        """Return the number of updates of the parameters by an optimizer, or slightly more."""
        model = self.model()
        now = [] if model is None else _versions(model)
        pairs = zip(now, self.before, strict=False)
        return max((new - old for (new, learns), (old, _) in pairs if learns), default=0)

    def _nothing_ran(self) -> bool:
        """Return True if 0 passes mean that no layer ran; compiled code runs layers but counts no passes."""
        if self.is_called and not _compiled_graphs():
            return True
        model = self.model()
        return (
            model is not None and _versions(model) == self.before and any(p.requires_grad for p in model.parameters())
        )


def _versions(model: nn.Module) -> list[tuple[int, bool]]:
    """Return, for each parameter and buffer, PyTorch's count of writes into it and its `requires_grad`."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return [(0 if is_lazy(t) or t.is_inference() else t._version, t.requires_grad) for t in tensors]


def _autograd_nodes() -> int:
    """Return a number that grows while this thread builds graphs for backward passes."""
    return torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]


def _compiled_graphs() -> int:
    """Return the number of graphs that `torch.compile` has made in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo.counters["stats"]["unique_graphs"] if dynamo else 0
