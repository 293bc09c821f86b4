"""`dropblock_summary`: show which DropBlock layers drop, and how much."""

from __future__ import annotations

import copy
import html
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..core import checks, geometry
from ..core.geometry import Size
from ..core.hints import hinted
from . import maps, modes, notices, sites, summary_table
from .inputs import does_not_run

COLUMNS = ("after module", "map", "block", "keep_prob", "target", "γ", "drops", "mode", "ran", "check")
WORDS = {"after module", "mode", "ran", "check"}


@dataclass(frozen=True)
class Row:
    """A layer of a model at one size of its feature map, in a forward pass.

    `size`, `block`, `gamma` and `share_dropped` are None if the layer did not run. `block` is clamped to `size`;
    `gamma` and `share_dropped` hold in training for the present `keep_prob`. `channels_last` is True if the module
    returns (N, ..., C), or seems to. `same_map_as` names a module whose layer drops from the same map.
    """

    name: str
    size: Size | None
    block: Size | None
    is_clamped: bool
    keep_prob: float
    target_keep_prob: float
    gamma: float | None
    share_dropped: float | None
    training: bool
    channels_last: bool = False
    same_map_as: str | None = None

    @classmethod
    def of(cls, name: str, site: sites.Site, size: Size | None, recorder: _Recorder) -> Row:
        layer = site.layer
        present = (layer.keep_prob, layer.target_keep_prob)
        if size is None:
            return cls(name, None, None, False, *present, None, None, recorder.training)
        wanted = checks.block_size(layer.block_size, layer.dims)
        block = geometry.clamp(size, wanted)
        gamma = geometry.seed_probability(size, block, layer.keep_prob, layer.rate)
        dropped = 1.0 - geometry.expected_keep_rate(size, block, gamma)
        probe = recorder.probe
        doubts = (probe.channels_last, probe.same_map_as)
        return cls(
            name, size, block, any(map(int.__lt__, block, wanted)), *present, gamma, dropped, recorder.training, *doubts
        )

    @property
    def drops(self) -> bool:
        """True if the next forward pass drops something here."""
        return self.size is not None and self.training and self.keep_prob < 1.0

    @property
    def is_one_unit(self) -> bool:
        """True if the map is a single unit, so that the layer drops whole channels."""
        return self.size is not None and set(self.size) == {1}

    @property
    def is_doubtful(self) -> bool:
        """True if DropBlock is wrong or useless here."""
        return self.channels_last or self.is_one_unit or self.same_map_as is not None

    def cells(self) -> tuple[str, ...]:
        size, block = ("×".join(map(str, axes)) if axes else "-" for axes in (self.size, self.block))
        gamma = "-" if self.gamma is None else f"{self.gamma:.4g}"
        share = "-" if self.share_dropped is None else f"{self.share_dropped:.1%}"
        return (
            self.name,
            size,
            block + "*" * self.is_clamped,
            f"{self.keep_prob:.4g}",
            f"{self.target_keep_prob:.4g}",
            gamma,
            share,
            "train" if self.training else "eval",
            "no" if self.size is None else "yes",
            ", ".join(["last"] * self.channels_last + ["1"] * self.is_one_unit + ["twice"] * bool(self.same_map_as)),
        )


@dataclass(frozen=True)
class Summary:
    """The layers of a model as a table: `str` for a terminal, HTML in a notebook, and `rows` for a program."""

    rows: tuple[Row, ...]
    notices: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", (*_notes(self.rows), *self.notices))

    def __str__(self) -> str:
        return self.text(summary_table.WIDTH)

    def text(self, width: int) -> str:
        """Return the table for a terminal of `width` columns, without columns that carry no information."""
        columns = list(zip(COLUMNS, *(row.cells() for row in self.rows), strict=True))
        silent = {
            "target": all(row.target_keep_prob == row.keep_prob for row in self.rows),
            "ran": all(row.size is not None for row in self.rows),
            "check": not any(row.is_doubtful for row in self.rows),
        }
        header, *rows = zip(*(column for column in columns if not silent.get(column[0])), strict=True)
        return summary_table.text(header, rows, self.notes, width, WORDS)

    def _repr_html_(self) -> str:
        def line(tag: str, cells: Sequence[str]) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(line("td", row.cells()) for row in self.rows)
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return f"<table><thead>{line('th', COLUMNS)}</thead><tbody>{body}</tbody></table>{notes}"


@hinted("the shape of an input comes second, batch first: dropblock_summary(model, (1, 3, 224, 224))")
def dropblock_summary(
    model: nn.Module, input_size: Sequence[int] | Sequence[Sequence[int]] | Tensor | Sequence[Tensor]
) -> Summary:
    """Show for every DropBlock layer of a model whether it drops now, and how much.

    The model runs once, on zeros, in evaluation mode and without gradients. Its parameters, its modes and the random
    state do not change. The table describes the modes that the layers had before this run.

    Args:
        model: a network with DropBlock layers, inserted or its own; it may be wrapped or compiled. If the model is
            sharded, every rank must call this function.
        input_size: shape of the model's input with its batch, such as (1, 3, 224, 224); a sequence of shapes for
            several inputs; or the input itself, for a model that does not take floating-point numbers.

    Returns:
        A table to print; a notebook shows it as HTML. It has a row for each layer and each size of its feature map,
        with these columns:

        - the module that the layer acts after, or the layer itself;
        - its map, and its block, with * if it is clamped to the map;
        - its `keep_prob` now, and its target under a schedule;
        - γ and the expected share dropped, at the present keep_prob;
        - its mode, and whether it ran;
        - objections to a layer there: channels last, a map of one unit, or a map from which another layer drops.

        In text, equal rows are merged and columns without information are left out.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of its range, the model has no DropBlock
            layer, or it does not run on an input of this shape.
        RuntimeError: inserted layers were lost.

    Examples:
        >>> from torch_dropblock import DropBlock2d
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), DropBlock2d(7, keep_prob=0.9), nn.ReLU())
        >>> print(dropblock_summary(model, (1, 3, 30, 30)))
        after module    map  block  keep_prob         γ  drops  mode
        ─────────────────────────────────────────────────────────────
        1             28×28    7×7        0.9  0.003534  10.0%  train
        <BLANKLINE>
        The layer drops.
    """
    found = sites.find_some(model)
    inputs = _inputs(model, input_size)
    if any(map(is_lazy, itertools.chain(model.parameters(), model.buffers()))):
        model = copy.deepcopy(model)  # lazy parameters take the shapes of this input: only in a copy
        found = sites.find(model)
    seen: dict[int, maps.Seen] = {}
    recorders = {name: _Recorder(site, maps.Probe(name, site.layer, seen, inputs)) for name, site in found.items()}
    hold = modes.Hold((module, False) for module in sites.all_modules(model))
    try:
        try:
            hold.take()
            for recorder in recorders.values():
                recorder.module.register_forward_hook(recorder, with_kwargs=True)
            _run(model, inputs)
        finally:
            _undo(recorders, hold)
    finally:
        _undo(recorders, hold)  # an interrupt may have cut the first call short
    return Summary(
        tuple(row for name, site in found.items() for row in recorders[name].rows(name, site)),
        tuple(notices.of(model)),
    )


def _undo(recorders: dict[str, _Recorder], hold: modes.Hold) -> None:
    for recorder in recorders.values():
        sites.unhook(recorder.module, recorder)
    hold.give_back()


def _inputs(model: nn.Module, input_size: object) -> list[Tensor]:
    if isinstance(input_size, Tensor):
        return [input_size]
    if not isinstance(input_size, Sequence) or isinstance(input_size, str) or not input_size:
        raise TypeError(f"input_size must be the shape of an input, such as (1, 3, 224, 224), got {input_size!r}")
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    several = input_size if all(isinstance(shape, Sequence | Tensor) for shape in input_size) else [input_size]
    return [
        shape
        if isinstance(shape, Tensor)
        else torch.zeros(checks.positive_ints("input_size", shape, len(shape)), dtype=like.dtype, device=like.device)
        for shape in several
    ]


class _Recorder:
    """A forward hook that probes the map of a layer, after the layer's own hook has run."""

    def __init__(self, site: sites.Site, probe: maps.Probe) -> None:
        self.module = site.module
        self.training = site.training
        self.probe = probe

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        self.probe(module, args, kwargs, output)
        self.training = self.training and not output.is_quantized  # quantised modules cannot be trained

    def rows(self, name: str, site: sites.Site) -> list[Row]:
        return [Row.of(name, site, size, self) for size in dict.fromkeys(self.probe.sizes) or [None]]


def _run(model: nn.Module, inputs: list[Tensor]) -> None:
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module  # the wrapper would wait for the other ranks
    device = inputs[0].device
    own = [device] if device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=own):
            if any(map(sites.is_compiled, model.modules())):
                # compiled code ignores hooks added after compilation
                with torch.compiler.set_stance("force_eager"):
                    model(*inputs)
            else:
                model(*inputs)
    except Exception as error:
        raise does_not_run(inputs, error) from error


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    names, dropping = {row.name for row in rows}, {row.name for row in rows if row.drops}
    doubtful = {row.name for row in rows if row.is_doubtful}
    if len(names) == 1:
        told = "The layer drops" if dropping else "The layer drops nothing now"
        yield told + ("; look at the column check." if doubtful else ".")
    else:
        told = f"{len(dropping)} of {len(names)} layers drop"
        yield told + (f"; for {len(doubtful)} of them look at the column check." if doubtful else ".")
    if any(row.training and row.keep_prob == 1.0 > row.target_keep_prob for row in rows):
        yield "keep_prob is 1 where a schedule has not begun."
    if not all(row.training for row in rows):
        yield "mode: layers drop only in training mode; an inserted layer has the mode of its module."
    if any(row.size is None for row in rows):
        yield "ran: evaluation does not call that module; if training does not either, its layer does nothing."
    if any(row.is_clamped for row in rows):
        yield "*: the block is clamped to the map, where it is larger."
    yield from _doubts(rows)


def _doubts(rows: Sequence[Row]) -> Iterator[str]:
    last = next((row for row in rows if row.channels_last), None)
    if last:
        yield (
            f"last: the channels come last, as in {last.name}, or look like it: the layer takes them for a side of "
            "the map. Name modules that return (N, C, ...)."
        )
    if any(row.is_one_unit for row in rows):
        yield "1: the map has one unit, so the layer drops whole channels, as Dropout would."
    twice = next((row for row in rows if row.same_map_as is not None), None)
    if twice:
        yield f"twice: two layers drop from one map, as those of {twice.same_map_as} and {twice.name} do. Keep one."
