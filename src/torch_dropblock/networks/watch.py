"""`Watch`: do the layers of a schedule run, and is the schedule stepped, while a network trains?

    layers, in eager mode ── a training pass ──> Watch <── step, state_dict ── schedule
                                                   └── warns, once of each

Compiled code never calls it: there the version counters of PyTorch tell whether the parameters change. It leaves the
layers after the first steps of a training, so that from then on it costs nothing.
"""

from __future__ import annotations

import itertools
import sys
import weakref

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..core.hints import warn

# so many steps or passes of a training are no accident
FEW, MANY = 10, 100


class Watch:
    """Called by each layer of a schedule at each training pass, with the layer.

    Args:
        model: the network that the schedule was built for.
        total_steps: those of the schedule.
        is_on_the_way: whether strength would change if the schedule was stepped.
        is_called: whether every layer calls it; one of a class with a `drop` of its own does not.
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
        """A copy of a layer or of a schedule has none."""
        return type(None), ()

    def __call__(self, layer: object) -> None:
        if self.counted is None:
            self.counted = id(layer)
        if self.counted == id(layer):
            self.passes += 1
            if self.passes >= self.look_at:  # updates, since accumulated batches are several to a step
                self.look_at *= 2
                self.warn_if_not_stepped()

    def stepped(self) -> bool:
        """Take note of a step of the schedule, and return whether there is no more to find out."""
        self.waits_for_a_step = False
        nodes = _autograd_nodes()
        if nodes != self.nodes:  # something trains: the curve is not only looked at
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
        """How often an optimizer has written into the parameters, or a little more often."""
        model = self.model()
        now = [] if model is None else _versions(model)
        pairs = zip(now, self.before, strict=False)
        return max((new - old for (new, learns), (old, _) in pairs if learns), default=0)

    def _nothing_ran(self) -> bool:
        """Whether 0 passes are not those of code that counts none, as compiled code."""
        if self.is_called and not _compiled_graphs():
            return True
        model = self.model()
        return (
            model is not None and _versions(model) == self.before and any(p.requires_grad for p in model.parameters())
        )


def _versions(model: nn.Module) -> list[tuple[int, bool]]:
    """PyTorch's count of the writes into each parameter, and buffer, and whether it is a parameter that learns."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return [(0 if is_lazy(t) or t.is_inference() else t._version, t.requires_grad) for t in tensors]


def _autograd_nodes() -> int:
    """A number that grows while graphs for backward passes are built in this thread."""
    return torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]


def _compiled_graphs() -> int:
    """How many graphs `torch.compile` has made in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo.counters["stats"]["unique_graphs"] if dynamo else 0
