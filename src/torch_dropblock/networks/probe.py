"""Find the modules of a model that return maps, and how these are laid out, by running it on inputs of several sizes.

An axis that follows the batch of the input is the batch. One that follows its height alone is the height, and so on.
One that stays is the channels. So (N, C, H, W), (N, H, W, C) and (N, prefix + H * W, C) differ without a look at any
class.
If a model takes one size alone, the modules inside with a known layout, such as convolutions, say which it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from ..core.geometry import Size
from ..layer.layouts import Layout, size_of, square_grid
from . import maps, raster
from .inputs import Inputs, InputSize, does_not_run
from .traces import Copy, Trace

# class and register tokens before those of a grid; a vision transformer has 0 to 8
MOST_PREFIX_TOKENS = 16
AXES_APART = ("channels_first", "channels_last")


class Map(NamedTuple):
    """The output of a module: a map of this spatial size in this layout."""

    layout: Layout
    size: Size
    shape: Size

    @property
    def is_a_point(self) -> bool:
        return set(self.size) == {1}


@dataclass
class Probe:
    """Results of the runs of a model.

    Attributes:
        trace: the calls at the size that was asked for.
        maps: the modules that return maps, each of one size, in the order in which they first end.
        modules: all modules that ran, by name.
        fixed: True if no output follows the size of the input, so that the layouts are those of modules inside.
        scrambled: modules that return tokens in another order than that of rows and columns.
    """

    trace: Trace
    modules: dict[str, nn.Module]
    maps: dict[str, Map] = field(default_factory=dict)
    fixed: bool = False
    scrambled: list[str] = field(default_factory=list)


def probe(model: nn.Module, input_size: InputSize, dims: int) -> Probe:
    """Run a model on inputs of this size, then with a doubled batch and with each side doubled.

    Raises:
        TypeError: `input_size` is not a shape, a tensor, or several of them.
        ValueError: the model cannot be copied, or does not run on an input of this size.
    """
    inputs = Inputs.of(model, input_size)
    batch = inputs.batch(dims)
    if batch is None:
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in inputs.tensors)
        raise ValueError(
            f"input_size must have the shape of a batch of inputs with {dims} spatial dimensions, as dims={dims} says, "
            f"got {shapes}"
        )
    runner, base = _first_run(model, inputs)
    sides = _runs_of_sides(runner, inputs, dims, base.stopped)
    more = _try(runner, inputs.with_batch_doubled(dims), base.stopped)
    modules = dict(model.named_modules())
    found = Probe(base, {name: modules[name] for name in base.calls})
    reader = _Reader(base, more, sides, modules, batch, inputs.image(dims))
    found.fixed = not reader.follows
    for name in base.calls:
        of_module = reader.map_of(name)
        if of_module and not of_module.is_a_point:
            found.maps[name] = of_module
    _drop_scrambled(found, model, inputs)
    return found


def _drop_scrambled(found: Probe, model: nn.Module, inputs: Inputs) -> None:
    """Leave out the grids of tokens that are not in the order of rows and columns."""
    grids: dict[Size, list[str]] = {}
    for name, site in found.maps.items():
        if site.layout not in AXES_APART:
            grids.setdefault(site.size, []).append(name)
    for grid in raster.scrambled(model, inputs, grids):
        for name in grids[grid]:
            del found.maps[name]
            found.scrambled.append(name)


def _first_run(model: nn.Module, inputs: Inputs) -> tuple[Copy, Trace]:
    without_values = Copy(model, on_meta=True)
    try:
        return without_values, without_values.run(inputs, partly=True)
    except Exception:  # noqa: BLE001 - whatever a forward raises without values; with values it is raised again
        real = Copy(model, on_meta=False)
    try:
        return real, real.run(inputs)
    except Exception as error:
        raise does_not_run(inputs.tensors, error) from error


def _runs_of_sides(runner: Copy, inputs: Inputs, dims: int, partly: bool) -> list[Trace]:
    """Return a run for each side, or none if the model takes one size alone."""
    for channels_last in (False, True):
        runs = []
        for side in range(dims):
            run = _try(runner, inputs.with_side_doubled(dims, side, channels_last), partly)
            if run is None:
                break
            runs.append(run)
        if len(runs) == dims:
            return runs
    return []


def _try(runner: Copy, inputs: Inputs, partly: bool) -> Trace | None:
    try:
        return runner.run(inputs, partly=partly)
    except Exception:  # noqa: BLE001 - a model may refuse a size by any error
        return None


class _Reader:
    """The layout of each module's output, from its sizes in all runs."""

    def __init__(
        self,
        base: Trace,
        more: Trace | None,
        sides: Sequence[Trace],
        modules: Mapping[str, nn.Module],
        batch: int,
        image: Size,
    ) -> None:
        self.base, self.more, self.sides, self.modules, self.batch = base, more, sides, modules, batch
        self.image, self.dims = image, len(image)
        self.follows = bool(sides) and any(
            self._roles(name, i) for name, calls in base.calls.items() for i in range(len(calls))
        )

    def map_of(self, name: str) -> Map | None:
        """Return the map of a module that returned a map of one size in all its calls."""
        calls = self.base.calls[name]
        found = {self._by_roles(name, i) if self.follows else self._by_type(name, i) for i in range(len(calls))}
        return found.pop() if len(found) == 1 else None

    def _shape(self, trace: Trace | None, name: str, call: int) -> Size | None:
        calls = trace.calls.get(name, []) if trace else []
        return calls[call].output.shape if len(calls) > call and calls[call].output else None  # type: ignore[union-attr]

    def _is_batched(self, name: str, call: int, shape: Size) -> bool:
        """Return True if the first axis is the batch, and no other axis follows it."""
        if not shape or shape[0] != self.batch:
            return False
        return not self.more or self._shape(self.more, name, call) == (2 * self.batch, *shape[1:])

    def _roles(self, name: str, call: int) -> list[tuple[int, ...]] | None:
        """Return, for each axis, the sides of the input with which it grows; None if there is no map."""
        shape = self._shape(self.base, name, call)
        larger = [self._shape(trace, name, call) for trace in self.sides]
        if shape is None or not self._is_batched(name, call, shape):
            return None
        if any(other is None or len(other) != len(shape) for other in larger):
            return None
        grows = [tuple(i for i, other in enumerate(larger) if other[axis] > n) for axis, n in enumerate(shape)]  # type: ignore[index]
        return grows if any(grows) else None

    def _by_roles(self, name: str, call: int) -> Map | None:
        roles = self._roles(name, call)
        if roles is None:
            return None
        shape = self._shape(self.base, name, call) or ()
        sides = [(i,) for i in range(self.dims)]
        if roles == [(), (), *sides]:
            return Map("channels_first", shape[2:], shape)
        if roles == [(), *sides, ()]:
            return Map("channels_last", shape[1:-1], shape)
        if self.dims > 1 and roles == [(), tuple(range(self.dims)), ()]:
            units = {(self._shape(trace, name, call) or (0, 0))[1] - shape[1] for trace in self.sides}
            return self._tokens(shape, units.pop()) if len(units) == 1 else None
        return None

    def _tokens(self, shape: Size, units: int) -> Map | None:
        """Return the grid of this many units in the proportions of the image."""
        scale = (units / math.prod(self.image)) ** (1 / self.dims)
        grid = tuple(round(side * scale) for side in self.image)
        if math.prod(grid) != units or not 0 <= shape[1] - units <= MOST_PREFIX_TOKENS:
            return None
        return Map(_layout_of_tokens(grid, shape[1]), grid, shape)

    # --- where the size of the input is fixed

    def _by_type(self, name: str, call: int) -> Map | None:
        shape = self._shape(self.base, name, call)
        if shape is None or not self._is_batched(name, call, shape):
            return None
        layout = self._known_layout(name, shape)
        if layout and len(shape) == self.dims + 2:
            size = size_of(shape, layout, self.dims)
            return Map(layout, size, shape) if maps.same_proportions(size, self.image) else None
        if layout == "channels_last" and len(shape) == 3:
            grids = [size for size in self._grids() if 0 <= shape[1] - math.prod(size) <= MOST_PREFIX_TOKENS]
            grid = max(grids, key=math.prod, default=None)
            return Map(_layout_of_tokens(grid, shape[1]), grid, shape) if grid else None
        return None

    def _known_layout(self, name: str, shape: Size) -> Layout | None:
        """Return the layout of the last module in this one that has a known layout and returned this shape."""
        for inner, calls in reversed(self.base.calls.items()):
            is_inside = inner == name or inner.startswith(f"{name}." if name else "")
            if is_inside and any(call.output and call.output.shape == shape for call in calls):
                if isinstance(self.modules[inner], maps.WITH_A_MAP):
                    return "channels_first"
                if maps.has_no_map(self.modules[inner]):
                    return "channels_last"
        return None

    def _grids(self) -> set[Size]:
        """Return the sizes of the maps that convolutions, norms and poolings returned."""
        known = [name for name in self.base.calls if isinstance(self.modules[name], maps.WITH_A_MAP)]
        calls = [call for name in known for call in self.base.calls[name]]
        return {call.output.shape[2:] for call in calls if call.output and len(call.output.shape) == self.dims + 2}


def _layout_of_tokens(grid: Size, tokens: int) -> Layout:
    return "tokens" if square_grid(tokens, len(grid)) == grid else grid
