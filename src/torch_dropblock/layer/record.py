"""`Record`: what a layer did in its last training pass in eager mode.

    layer ── a pass begins ──> Record <── the call, by reference ── drop
                                 └── dropped(): the share, read on demand

Recording costs the host a fraction of a microsecond and the device nothing: the backends count the kept units anyway,
for the normalisation. Compiled code calls no record.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .eager import Call


class Record:
    """A record of one layer.

    Args:
        on_many: called once `limit` passes have begun since the last step, with their number; returns the next limit.
        limit: the first limit.

    Attributes:
        passes: passes since the last step.
        call: the last call if it dropped anything.
    """

    def __init__(self, on_many: Callable[[int], int], limit: int) -> None:
        self.on_many, self.limit = on_many, limit
        self.passes, self.units = 0, 0
        self.keep_prob: float | Tensor | None = None
        self.call: Call | None = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Copy as None: a copy of a layer has no record."""
        return type(None), ()

    def begin(self, keep_prob: float | Tensor, units: int) -> None:
        """Begin a training pass."""
        self.keep_prob, self.units, self.call = keep_prob, units, None
        self.passes += 1
        if self.passes >= self.limit:
            self.limit = self.on_many(self.passes)

    def step(self) -> None:
        """Begin the next step of the training; forget a pass before the last step."""
        if not self.passes:
            self.keep_prob = self.call = None
        self.passes = 0

    def dropped(self) -> float | Tensor | None:
        """Return the share dropped in the last pass, or None if it is not known.

        A tensor is on the device that has drawn the mask, so that the host need not wait here.
        """
        if self.keep_prob is None or not self.units:
            return None
        if self.keep_prob == 1.0:
            return 0.0
        if self.call is None:  # operators that a mode or a compiler follows
            return None
        if self.call.table is None:
            return 1.0
        scale = self.call.scale
        if isinstance(scale, float):
            return 1.0 - 1.0 / scale if scale else 1.0  # 0 if chance dropped every unit
        return None if scale is None else 1.0 - 1.0 / scale
