"""Modes of modules that contexts set and give back: contexts may overlap, and an interrupt may end any of them."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn


@dataclass
class _Asked:
    wanted: bool
    before: bool  # the mode to give back


# by module, the contexts that are open, in the order in which they began; a context keeps its modules alive
_open: dict[int, dict[Hold, _Asked]] = {}
_lock = threading.RLock()


class Hold:
    """Set modes of modules with `take`, and let go of them with `give_back`.

    A module trains while any open hold wants it to. It gets its own mode back with the last hold, in whatever order
    they end. An interrupt can cut `give_back` short, so callers call it twice, the second time in a `finally` of its
    own: what has been given back already stays as it is.
    """

    def __init__(self, wanted: Iterable[tuple[nn.Module, bool]]) -> None:
        self._wanted = list(wanted)

    def take(self) -> None:
        with _lock:
            modes = [module.training for module, _ in self._wanted]  # a compiled module shares that of another
            for (module, wanted), before in zip(self._wanted, modes, strict=True):
                asked = _open.setdefault(id(module), {})
                asked[self] = _Asked(wanted, before)
                _set(module, any(other.wanted for other in asked.values()))

    def give_back(self) -> None:
        with _lock:
            for module, _ in self._wanted:
                asked = _open.get(id(module), {})
                if self in asked:
                    contexts = list(asked)
                    later = contexts[contexts.index(self) + 1 :]
                    if later:
                        asked[later[0]].before = asked[self].before
                    else:
                        _set(module, asked[self].before)
                    del asked[self]
                if not asked:
                    _open.pop(id(module), None)


def _set(module: nn.Module, training: bool) -> None:
    if module.training != training:  # which costs little, unlike `nn.Module.__setattr__`
        module.training = training
