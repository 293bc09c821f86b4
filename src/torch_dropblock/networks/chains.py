"""Find the repeated blocks of a network in a trace: modules of one class that are called in a chain.

A class has blocks if one of them takes what another returned, and returns a map of the same shape. Then all of its
modules count, also those that change the shape. Of nested blocks the outer ones count: a residual block, not the
convolutions with their norms in it. A stage of a network gives way to its blocks: what it returns is what its last
block returns.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from torch import nn

from .probe import Probe

Kind = tuple[type, ...]


class Chains:
    """The modules that may be blocks, and which of them takes the output of which."""

    def __init__(self, found: Probe) -> None:
        self.calls, self.returned = found.trace.calls, found.trace.returned
        self.kinds = {
            name: _kind(found.modules[name])
            for name in found.maps
            if name and _has_weights(found.modules[name]) and {self._output(name)} != self.returned
        }
        self.sizes = {name: found.maps[name].size for name in self.kinds}
        self.links: Callable[[str], list[str]] = self._repeats
        self.producers: dict[int, list[str]] = {}
        for name in self.kinds:
            self.producers.setdefault(self._output(name), []).append(name)

    def blocks(self) -> list[str]:
        """Return the names of the blocks, in the order of the forward pass; none if nothing is repeated.

        The first rule that finds blocks at the network's smallest maps is taken, or else the first that finds any.
        """
        found = [
            (names, links) for links in (self._repeats, self._mixed, self._begins) if (names := self._outermost(links))
        ]
        smallest = min(map(self._units, self.kinds), default=0)
        deep = [(names, links) for names, links in found if min(map(self._units, names)) < 2 * smallest]
        names, self.links = next(iter([*deep, *found]), ([], self._repeats))
        return names

    def without_strays(self, names: Sequence[str]) -> list[str]:
        """Leave out what is a chain elsewhere only, such as a stem, and chains inside of what stands between blocks.

        A block of another kind in a sequence of blocks stays.
        """
        kinds = {self.kinds[name] for name in names if self.links(name)}
        sequences = {_parent(name) for name in names if self.kinds[name] in kinds} - {""}
        kept = [name for name in names if not kinds or self.kinds[name] in kinds or _parent(name) in sequences]
        counted = Counter((_parent(name), self.kinds[name]) for name in kept)
        parents = [place for place, blocks in counted.items() if blocks > 1]

        def is_between(name: str) -> bool:
            above = _ancestors(_parent(name))
            return any(parent in above[1:] and kind != self.kinds[name] for parent, kind in parents)

        return [name for name in kept if not is_between(name)]

    def _units(self, name: str) -> int:
        return math.prod(self.sizes[name])

    def _output(self, name: str) -> int:
        output = self.calls[name][0].output
        return output.id if output else 0

    def _before(self, name: str, *, same_shape: bool, same_kind: bool = True) -> list[str]:
        """Return the modules, of the same kind, from which a module takes its input, perhaps of its output's shape."""
        call = self.calls[name][0]
        return [
            other
            for taken in call.inputs
            if not same_shape or (call.output and taken.shape == call.output.shape)
            for other in self.producers.get(taken.id, ())
            if not (same_kind and self.kinds[other] != self.kinds[name])
            and not _is_inside(other, name)
            and not _is_inside(name, other)
        ]

    def _repeats(self, name: str) -> list[str]:
        """Return the modules before this one, with the same parent and a map of the same shape."""
        return [other for other in self._before(name, same_shape=True) if _parent(other) == _parent(name)]

    def _mixed(self, name: str) -> list[str]:
        """Return the modules before this one, of any kind: blocks of two classes that take turns."""
        before = self._before(name, same_shape=True, same_kind=False)
        return [other for other in before if _parent(other) == _parent(name)]

    def _begins(self, name: str) -> list[str]:
        """Return the modules before this one, if one of them keeps the shape that it gets: stages of one block each."""
        if self.kinds[name][0] is nn.Sequential:  # a stage, or part of one
            return []
        first = self.calls[name][0].inputs
        return [
            other
            for other in self._before(name, same_shape=False)
            if any(taken.shape == first[0].shape for taken in self.calls[other][0].inputs)
        ]

    def _outermost(self, links: Callable[[str], list[str]]) -> list[str]:
        linked = {name: others for name in self.kinds if (others := links(name))}
        kinds = {self.kinds[name] for name in linked}
        stages = {name for name in self.kinds if self.kinds[name] in kinds and self._gives_way(name, linked)}
        while True:
            modules = [name for name in self.kinds if self.kinds[name] in kinds and name not in stages]
            outer = _outer(modules)
            in_chains = {self.kinds[name] for name in outer if not outer.isdisjoint(linked.get(name, ()))}
            failing = {self.kinds[name] for name in outer} - in_chains
            if not failing:
                return [name for name in modules if name in outer]
            kinds -= failing

    def _gives_way(self, name: str, linked: dict[str, list[str]]) -> bool:
        """Return True if a module returns what the last of a chain inside it returns."""
        return any(
            _is_inside(inner, name) and any(_is_inside(other, name) for other in linked[inner])
            for inner in self.producers[self._output(name)]
            if inner in linked
        )


def _kind(module: nn.Module) -> Kind:
    """Return the class of a module; a plain `Sequential` is of the kind of its members."""
    members = module.children() if type(module) is nn.Sequential else ()
    return (type(module), *map(type, members))


def _has_weights(module: nn.Module) -> bool:
    return bool(module._modules) and any(parameter.dim() > 1 for parameter in module.parameters())


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _ancestors(name: str) -> list[str]:
    """Return a name, that of the module above, and so on up to the model's own."""
    parts = name.split(".") if name else []
    return [".".join(parts[:end]) for end in range(len(parts), -1, -1)]


def _is_inside(name: str, other: str) -> bool:
    return name.startswith(f"{other}.")


def _outer(names: Iterable[str]) -> set[str]:
    """Return the names that are not inside another of them."""
    every = set(names)
    return {name for name in every if not any(_is_inside(name, other) for other in every)}
