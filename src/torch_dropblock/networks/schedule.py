"""`KeepProbSchedule`: set the strength of every layer of a model as a function of the training step.

A curve maps the progress of the training to the strength of the layers, both from 0 to 1. At strength s, a layer with
target keep_prob `target` has keep_prob `1 - s * (1 - target)`. All layers start and end together, and the ratios of
their drop rates stay constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from ..core import checks
from ..core.hints import hinted, warn
from ..layer.modules import DropBlockNd
from . import notices, sites
from .names import renamed
from .watch import Watch, shares_dropped

Curve = Callable[[float], float]


def linear(progress: float) -> float:
    """Increase linearly from 0 to 1, as in the paper."""
    return progress


def cosine(progress: float) -> float:
    """Increase along half a cosine, slowly at both ends."""
    return (1.0 - math.cos(math.pi * progress)) / 2


def constant(progress: float) -> float:
    """Stay at full strength from the first step."""
    return 1.0


def step(progress: float) -> float:
    """Stay off in the first half of the training and at full strength in the second."""
    return 0.0 if progress < 0.5 else 1.0


CURVES: dict[str, Curve] = {curve.__name__: curve for curve in (linear, cosine, constant, step)}


class KeepProbSchedule:
    """Change `keep_prob` of every DropBlock layer of a model from 1 to the layer's target during training.

    Use it like a scheduler of `torch.optim.lr_scheduler`: build it once, call `step()` after each step of the
    optimizer, save `state_dict()` in the checkpoint. Nothing else advances it: evaluation, a second forward pass and
    activation checkpointing leave it unchanged, and it is equal on every rank. A compiled model is not recompiled.

    Args:
        model: a network with DropBlock layers, inserted or its own; it may be wrapped or compiled.
        total_steps: the number of steps of the whole training; from then on layers are at full strength.
        curve: `"linear"` as in the paper, `"cosine"`, `"constant"`, `"step"`, or a function from progress in
            [0, 1] to strength in [0, 1].
        start_step: the number of steps already taken, to resume a training without a saved state. (To keep the
            layers off for the first tenth: `curve=lambda progress: max(0.0, (progress - 0.1) / 0.9)`.)
        grow_blocks: let the block size grow with the strength too, from 1 unit to the layer's own, as in darknet: it is
            the strength times the layer's own, rounded down to at least 1.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of its range, the model has no DropBlock layer, or the curve returns a
            strength outside [0, 1]; a function is tried at every hundredth.
        RuntimeError: inserted layers were lost; checked again at every step.

    Warns:
        UserWarning: inserted layers act inside an adapter, before it adds its own part, or are missing in a trace of
            `torch.fx`. This is checked at every step; each warning appears once.

    Source: section 3 of the paper, "Scheduled DropBlock".

    Examples:
        >>> from torch_dropblock import DropBlock2d
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), DropBlock2d(7, keep_prob=0.9))
        >>> schedule = KeepProbSchedule(model, total_steps=100)
        >>> for _ in range(50):
        ...     schedule.step()  # after optimizer.step()
        >>> model[1].keep_prob
        0.95
    """

    @hinted(
        'KeepProbSchedule(model, total_steps=1000, curve="cosine"): total_steps counts steps of the optimizer, '
        "epochs * len(loader), and what follows it is given by keyword"
    )
    def __init__(
        self,
        model: nn.Module,
        total_steps: int,
        *,
        curve: str | Curve = "linear",
        start_step: int = 0,
        grow_blocks: bool = False,
    ) -> None:
        self.model = model
        self.total_steps = checks.whole_number("total_steps", total_steps, at_least=1)
        self.curve = CURVES[_known(curve)] if isinstance(curve, str) else curve
        if not callable(self.curve):
            raise TypeError(f"curve must be one of {', '.join(CURVES)} or a function, got {curve!r}")
        for percent in range(101):  # fail now, not in the middle of a training
            _strength(self.curve, percent / 100)
        self.grow_blocks = checks.flag("grow_blocks", grow_blocks)
        self._present: tuple[list[sites.Site], int] = ([], 0)
        self._seen: dict[str, DropBlockNd] = {}
        self._known_to_be_off: set[str] = set()
        self._said: set[str] = set()
        self._known_to_be_past_the_end = False
        self._watch: Watch | None = None
        self.steps = checks.whole_number("start_step", start_step, at_least=0)
        sites.find_some(model)
        self._apply()
        self._watch_the_layers()

    def __repr__(self) -> str:
        return (
            f"KeepProbSchedule({type(self.model).__name__}, total_steps={self.total_steps}, "
            f"curve={self._curve_name!r}, {'grow_blocks=True, ' * self.grow_blocks}steps={self.steps}, "
            f"layers={len(self._seen)})"
        )

    @property
    def _curve_name(self) -> str:
        return str(getattr(self.curve, "__name__", type(self.curve).__name__))

    @property
    def progress(self) -> float:
        """Progress of the training, from 0 before the first step to 1 after the last."""
        return min(self.steps / self.total_steps, 1.0)

    @property
    def strength(self) -> float:
        """Present strength of the layers, a fraction of their full strength."""
        return _strength(self.curve, self.progress)

    def step(self) -> None:
        """Advance by one step of the optimizer.

        Warns:
            UserWarning: once for each layer: the model is in training mode but the layer is not, for example because
                the batch norm that it follows was put into evaluation mode. Once: more than total_steps steps were
                taken.
            IdleLayerWarning: once for each layer: it has not run in training mode between two steps, although
                something trained. After `torch.compile`, this appears only if no parameter of the model changes.
                `warnings.simplefilter("error", IdleLayerWarning)` turns it into an error; import it from
                `torch_dropblock.networks.watch`.
        """
        self.steps += 1
        try:
            self._apply()
            if self.model.training:
                self._warn_of_layers_that_are_off()
            if self._watch is None:  # this is a copy
                self._watch_the_layers()
            else:
                self._watch.stepped(self._seen, self._known_to_be_off)
        except Exception:
            self.steps -= 1
            raise
        if self.steps > self.total_steps and not self._known_to_be_past_the_end:
            self._known_to_be_past_the_end = True
            warn(
                f"the schedule has been stepped {self.steps} times, more than its total_steps={self.total_steps}: "
                "its layers are at full strength, and were so too early if the training is not over. total_steps "
                "counts steps of the optimizer, epochs * len(loader)"
            )

    def _watch_the_layers(self) -> None:
        self._watch = Watch(self.model, self.total_steps, is_on_the_way=self.strength < 1.0)
        self._watch.attach(self._seen.values())

    def _apply(self) -> None:
        present = sites.walk(self.model)  # includes the number of modules, since an adapter changes it
        if present != self._present:
            self._look_again()
            self._present = present
        strength = self.strength
        for site in present[0]:
            site.layer.set_strength(strength, grow_block=self.grow_blocks)

    def _look_again(self) -> None:
        """Find the layers again, and raise if one was lost: a recorded one, or one that this schedule has seen.

        If a copy replaced a part of the model, its new layers in the old places do not count as lost.
        """
        found = sites.find(self.model)
        there = {id(site.layer) for site in found.values()}
        seen = {id(layer) for layer in self._seen.values()}
        new = [f"{sites.canonical(name)}." for name, site in found.items() if id(site.layer) not in seen]
        gone = [
            name
            for name, layer in self._seen.items()
            if id(layer) not in there and not any(other.startswith(f"{sites.canonical(name)}.") for other in new)
        ]
        if gone:
            raise sites.LostSitesError(gone)
        self._seen = {name: site.layer for name, site in found.items()}
        if self._watch:
            self._watch.attach(self._seen.values())
        for notice in notices.of(self.model):
            if notice not in self._said:
                self._said.add(notice)
                warn(notice)

    def _warn_of_layers_that_are_off(self) -> None:
        off = {id(site.layer) for site in self._present[0] if not site.training}
        names = [name for name, layer in self._seen.items() if id(layer) in off] if off else []
        if not self._known_to_be_off.issuperset(names):
            warn(
                f"the model is in training mode, but {len(names)} of its {len(self._seen)} DropBlock layers are not "
                f"and drop nothing: {', '.join(names)}. An inserted layer drops while the module that it follows is in "
                "training mode, or from its own train() to its own eval()"
            )
        self._known_to_be_off.update(names)

    def stats(self) -> dict[str, float]:
        """Return keep_prob and the share that was really dropped, as flat names and numbers for a log.

        `dropped/<name>` is the share of a layer's units that it dropped in its last training pass, in this process, and
        `dropped` that of all these units together. `keep_prob/<name>` is the layer's present value, and `keep_prob` the
        mean over layers. So call it before `step()`.

        Layers note each pass at no cost to the device. If the layers are on a GPU, this call waits for it once.
        `dropped` is missing for layers that compiled code, a mode of PyTorch or a transform of `torch.func` ran, for
        those with a `forward` or `drop` of their own class, and for those that have not run since the last step but
        one.

        Examples:
            >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), DropBlock2d(7, keep_prob=0.9))
            >>> schedule = KeepProbSchedule(model, total_steps=100, start_step=50)
            >>> _ = model(torch.ones(64, 3, 30, 30))
            >>> {name: round(value, 2) for name, value in schedule.stats().items()}
            {'keep_prob': 0.95, 'keep_prob/1': 0.95, 'dropped': 0.05, 'dropped/1': 0.05}
        """
        keep_probs = {name: layer.keep_prob for name, layer in self._seen.items()}
        shares = shares_dropped(self._seen)
        units = {name: record.units for name in shares if (record := self._seen[name].record)}
        stats = {"keep_prob": sum(keep_probs.values()) / len(keep_probs)}
        stats |= {f"keep_prob/{name}": value for name, value in keep_probs.items()}
        if shares:
            stats["dropped"] = sum(shares[name] * units[name] for name in shares) / sum(units.values())
        return stats | {f"dropped/{name}": share for name, share in shares.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state for `load_state_dict`: the settings, the steps, and each layer's target keep_prob by name.

        Warns:
            UserWarning: once: the parameters of the model have changed many times, but the schedule was never stepped.
                In eager mode this warning already appears during training.
        """
        if self._watch:
            self._watch.warn_if_not_stepped()
        return self._state()

    def _state(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "total_steps": self.total_steps,
            "curve": self._curve_name,
            "grow_blocks": self.grow_blocks,
            "keep_prob": {name: site.layer.target_keep_prob for name, site in sites.find(self.model).items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a state: take its steps, its total steps and the target keep_prob of its layers.

        Names of layers may differ by a common prefix, or by parts that wrappers (DistributedDataParallel,
        `torch.compile`) and adapters (LoRA) add. The curve and `grow_blocks` are not loaded: this schedule keeps its
        own.

        Raises:
            TypeError, ValueError: it is not the state of a schedule, or its model has other layers; nothing is
                changed then.

        Warns:
            UserWarning: it is the state of a schedule with other settings or other keep_prob.
        """
        steps, total_steps, kept, saved = _read(state_dict)
        found, mine = sites.find(self.model), self._state()
        targets = renamed(saved, list(found))
        strength = _strength(self.curve, steps / total_steps)
        for name, value in {"total_steps": total_steps, "keep_prob": targets, **kept}.items():
            if mine[name] != value:
                goes_on = "its own" if name in kept else "that of the state"
                warn(
                    f"the schedule was built with {name}={mine[name]!r}, the state with {value!r}; it goes on with "
                    f"{goes_on}"
                )
        for site_name, site in found.items():
            site.layer.keep_prob = targets[site_name]
            site.layer.set_strength(strength, grow_block=self.grow_blocks)
        self.steps, self.total_steps = steps, total_steps
        self._watch_the_layers()


def _strength(curve: Curve, progress: float) -> float:
    progress = min(progress, 1.0)
    return checks.probability(f"the strength that curve returned for progress {progress:g}", curve(progress))


def _known(curve: str) -> str:
    if curve not in CURVES:
        raise ValueError(f"curve must be one of {', '.join(CURVES)} or a function of progress, got {curve!r}")
    return curve


def _read(state: object) -> tuple[int, int, dict[str, object], dict[str, float]]:
    """Return steps, total steps, the settings that are not loaded, and targets."""
    wanted = ("steps", "total_steps", "curve", "keep_prob")
    if not isinstance(state, dict) or any(name not in state for name in wanted) or not _by_name(state["keep_prob"]):
        raise TypeError(f"state_dict must be what KeepProbSchedule.state_dict() returned, got {state!r}")
    targets = {name: checks.probability(f"keep_prob of {name!r}", value) for name, value in state["keep_prob"].items()}
    steps = checks.whole_number("steps", state["steps"], at_least=0)
    kept = {"curve": str(state["curve"]), "grow_blocks": state.get("grow_blocks", False)}  # older states lack it
    return steps, checks.whole_number("total_steps", state["total_steps"], at_least=1), kept, targets


def _by_name(targets: object) -> bool:
    return type(targets) is dict and all(isinstance(name, str) for name in targets)
