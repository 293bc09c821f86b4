"""Set modes of modules and restore them, by contexts that may overlap and that an interrupt may end."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn


@dataclass
class _Asked:
    wanted: bool
    before: bool  # the mode to restore


# open contexts by id of module, in order of their start; a context keeps its modules alive, so ids stay valid
_open: dict[int, dict[Hold, _Asked]] = {}
_lock = threading.RLock()


class Hold:
    """Set modes of modules with `take` and restore them with `give_back`.

    A module is in training mode while any open hold requests it. When the last hold ends, in any order, its own mode
    is restored. An interrupt can cut `give_back` short, so callers call it twice, the second time in its own
    `finally`. Restoring twice does no harm.
    """

    def __init__(self, wanted: Iterable[tuple[nn.Module, bool]]) -> None:
        self._wanted = list(wanted)

    def take(self) -> None:
        with _lock:
            # read all modes first: a compiled module shares its mode with the module it wraps
            modes = [module.training for module, _ in self._wanted]
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
    if module.training != training:  # the comparison is cheap, `nn.Module.__setattr__` is not
        module.training = training
