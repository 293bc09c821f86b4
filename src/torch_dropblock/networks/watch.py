"""`Watch`: what the layers of a schedule do while a network trains, and warnings if that cannot be right.

    layers, in eager mode ── a training pass ──> records <── step, state_dict, stats ── schedule
                                                   └── warns, once of each

Compiled code has no records: there the version counters of PyTorch show whether the parameters change.
"""

from __future__ import annotations

import itertools
import sys
import weakref
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..core.hints import warn
from ..layer.modules import DropBlockNd
from ..layer.record import Record

# after this many steps (FEW) or passes (MANY), a missing call is no accident
FEW, MANY = 10, 100


class IdleLayerWarning(UserWarning):
    """A DropBlock layer in training mode did not run between two steps of its schedule."""


class Watch:
    """The records of the layers of a schedule.

    Args:
        model: the network that the schedule was built for.
        total_steps: total steps of the schedule.
        is_on_the_way: True if later steps of the schedule would change the strength.
    """

    def __init__(self, model: nn.Module, total_steps: int, *, is_on_the_way: bool) -> None:
        self.model = weakref.ref(model)
        self.total_steps = total_steps
        self.waits_for_a_step = is_on_the_way
        self.many = min(total_steps, MANY)
        self.before = _versions(model)
        self.nodes, self.steps = _autograd_nodes(), 0
        self.records: set[Record] = set()
        self.known_to_be_idle: set[str] = set()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Copy as None: the copy of a schedule makes a watch at its next step."""
        return type(None), ()

    def attach(self, layers: Iterable[DropBlockNd]) -> None:
        """Give each layer a record, unless it has one of this watch or its class drops in a way of its own."""
        for layer in layers:
            kind = type(layer)
            is_plain = kind.drop is DropBlockNd.drop and kind.forward is DropBlockNd.forward
            if is_plain and layer.record not in self.records:
                layer.record = Record(self._many_passes, self.many + 1)
                self.records.add(layer.record)

    def stepped(self, layers: Mapping[str, DropBlockNd], off: Collection[str]) -> None:
        """Begin the next step, and warn of layers that have not run since the last one.

        Args:
            layers: the layers of the schedule, by name.
            off: names of layers that the schedule has warned of.
        """
        self.waits_for_a_step = False
        # a later schedule of the same layers has replaced their records
        mine = {name: layer.record for name, layer in layers.items() if layer.record in self.records}
        idle = [name for name, record in mine.items() if record and not record.passes and name not in off]
        for record in self.records:
            record.step()
        nodes = _autograd_nodes()
        if nodes == self.nodes:  # nothing trains: the user may be plotting the curve
            return
        self.nodes, self.steps = nodes, self.steps + 1
        if _compiled_graphs():
            if self.steps == min(self.total_steps, FEW) and self._is_unchanged():
                self._warn_that_nothing_ran()
        elif self.steps > 1 and not self.known_to_be_idle.issuperset(idle):  # before, another network may have trained
            self.known_to_be_idle.update(idle)
            if len(idle) == len(layers):
                self._warn_that_nothing_ran()
            else:
                warn(
                    f"{len(idle)} of {len(layers)} DropBlock layers have not run in training mode between two steps of "
                    f"the schedule: {', '.join(idle)}. Ignore this if the network calls them in some of its steps only",
                    IdleLayerWarning,
                )

    def _warn_that_nothing_ran(self) -> None:
        warn(
            f"the schedule has been stepped {self.steps} times while something trained, but its DropBlock layers have "
            "not run in training mode: another network is trained, or this one in evaluation mode. A trainer that "
            "builds a network of its own leaves inserted layers behind: insert into that one, and build the schedule "
            "of it",
            IdleLayerWarning,
        )

    def warn_if_not_stepped(self) -> None:
        passes = max((record.passes for record in self.records), default=0)
        if self.waits_for_a_step and self._updates() >= self.many:
            self.waits_for_a_step = False
            trained = f"trained for {passes} passes" if passes else f"been updated {self._updates()} times"
            warn(
                f"the network has {trained}, but its schedule of total_steps={self.total_steps} has been stepped 0 "
                "times, so its layers stay where they are; call schedule.step() after each optimizer.step(), or after "
                "each epoch if total_steps counts epochs"
            )

    def _many_passes(self, passes: int) -> int:
        """Count updates: with accumulated batches a step has several passes."""
        self.warn_if_not_stepped()
        return passes * 2

    def _updates(self) -> int:
        """Return the number of updates of the parameters by an optimizer, or slightly more."""
        model = self.model()
        now = [] if model is None else _versions(model)
        pairs = zip(now, self.before, strict=False)
        return max((new - old for (new, learns), (old, _) in pairs if learns), default=0)

    def _is_unchanged(self) -> bool:
        """Return True if no parameter or buffer has changed, though some could."""
        model = self.model()
        return (
            model is not None and _versions(model) == self.before and any(p.requires_grad for p in model.parameters())
        )


def shares_dropped(layers: Mapping[str, DropBlockNd]) -> dict[str, float]:
    """Return the share that each layer dropped in its last pass, where it is known; waits for each device once."""
    records = {name: layer.record for name, layer in layers.items()}
    shares = {name: record.dropped() for name, record in records.items() if record}
    known = {name: share for name, share in shares.items() if isinstance(share, float)}
    tensors = {name: share for name, share in shares.items() if isinstance(share, Tensor)}
    for device in {share.device for share in tensors.values()}:
        there = [name for name, share in tensors.items() if share.device == device]
        known.update(zip(there, torch.stack([tensors[name] for name in there]).tolist(), strict=True))
    return {name: known[name] for name in layers if name in known}


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
