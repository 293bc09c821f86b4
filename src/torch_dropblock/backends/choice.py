"""Choose the backend of a call by its tensor; `backend_report` shows the choice and `use_backend` overrides it.

Each backend is a module with two functions. `why_not(input, blocks)` returns None if the backend serves the input,
otherwise the reason. `drop(input, output, key, blocks, table, scale)` drops. All backends make the same mask of a key.

| name | description | serves |
| --- | --- | --- |
| `"triton"` | draws a mask of bits, then reads the input once and writes the output once | CUDA, with Triton |
| `"native"` | C: one pass over memory | the CPU, if it was built |
| `"sparse"` | plain PyTorch operations | every device |
| `"reference"` | Algorithm 1 line by line, dense: the oracle | every device, only if requested |
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import checks
from ..core.blocks import Blocks
from . import native, reference, sparse, triton

BACKENDS: dict[str, Any] = {"triton": triton, "native": native, "sparse": sparse, "reference": reference}
NAMES = ("auto", *BACKENDS)
# backends per device type, in order of preference
CHOSEN = {"cpu": ("native", "sparse"), "cuda": ("triton", "sparse")}
ASKED_ONLY = "it is dense and slow: only use_backend('reference') takes it"
# each name has its own object, since overlapping contexts may end in any order
_asked: ContextVar[tuple[tuple[object, str], ...]] = ContextVar(
    "the backends that use_backend asks for", default=((None, "auto"),)
)


def _asked_name() -> str:
    return _asked.get()[-1][1]


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Use one backend for all calls of this thread (or task) inside the context.

    A gradient uses the backend of its forward pass, even outside the context. Compiled code keeps the choice made at
    compilation: put the first call of a compiled function inside, or call `torch.compiler.reset()`.
    Every backend gives the same mask for a key, bit for bit.

    Args:
        name: `"triton"`, `"native"`, `"sparse"`, `"reference"`, or the default `"auto"`. `"auto"` takes Triton for
            CUDA tensors if it can be imported and the device has compute capability 8.0 or more. It takes the native
            library for CPU tensors if it was built and serves them. Otherwise it takes the sparse backend.

    Raises:
        TypeError, ValueError: `name` is none of these. A call that the backend cannot serve raises a ValueError too.

    Examples:
        >>> x = torch.ones(4, 8, 28, 28)
        >>> with use_backend("sparse"):
        ...     y = drop_block2d(x, 7)
    """
    if name not in NAMES:
        error = ValueError if isinstance(name, str) else TypeError
        raise error(f"name must be one of {', '.join(map(repr, NAMES))}, got {name!r}")
    mine = (object(), name)
    try:
        try:
            _asked.set((*_asked.get(), mine))
            yield
        finally:
            _withdraw(mine)
    finally:
        _withdraw(mine)  # an interrupt may have cut the first call short


def _withdraw(name: tuple[object, str]) -> None:
    _asked.set(tuple(asked for asked in _asked.get() if asked is not name))


def asked_for(input: Tensor, blocks: Blocks) -> str:
    """Return the backend requested by `use_backend`, or "auto".

    Raises:
        ValueError: the requested backend does not serve the input.
    """
    asked = _asked_name()
    if asked != "auto" and (reason := BACKENDS[asked].why_not(input, blocks)):
        raise _cannot_serve(asked, reason)
    return asked


def serving(asked: str, input: Tensor, blocks: Blocks) -> str:
    """Return the backend for a tensor: the requested one, or for "auto" the first that serves it.

    If the requested backend does not serve a gradient, `"sparse"` does, with the same mask.
    """
    names = CHOSEN.get(input.device.type, ()) if asked == "auto" else (asked,)
    return next((name for name in names if BACKENDS[name].why_not(input, blocks) is None), "sparse")


def serving_compiled(device: torch.device) -> str:
    """Return the backend for code under compilation, chosen only by facts that are the same in every call."""
    asked = _asked_name()
    if asked == "auto":
        if device.type == "cuda":
            return "sparse" if triton.why_not_on(device) else "triton"
        return "native" if device.type == "cpu" and native.LIBRARY else "sparse"
    if asked == "triton" and (reason := triton.why_not_on(device)):
        raise _cannot_serve(asked, reason)
    if asked == "native" and not (device.type == "cpu" and native.LIBRARY):
        return "sparse"
    return asked


# the effect of torch.compiler.assume_constant_result, without importing the compiler, and Triton with it
serving_compiled._dynamo_marked_constant = True  # type: ignore[attr-defined]


def solves_gamma(device: torch.device) -> bool:
    """Return True if γ is solved on this device, so that a `keep_prob` for compiled code should be there too."""
    return device.type == "cuda" and torch.cuda.is_available() and triton.why_not_on(device) is None


@dataclass(frozen=True)
class BackendReport:
    """The backend of a call, and for each backend the reason for or against it; print it to read it."""

    backend: str
    input: str
    reasons: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.backend}, for {self.input}"]
        lines += [f"  {'→' if name == self.backend else ' '} {name:9} {why}" for name, why in self.reasons.items()]
        return "\n".join(lines)


def backend_report(
    input: Tensor,
    block_size: Any = 7,
    *,
    dims: int = 2,
    keep_prob: float = 0.9,
    share_channels: bool = False,
) -> BackendReport:
    """Report which backend a call in eager mode would use now for this input, and why it would not use the others.

    Args:
        input: feature maps of `dims` spatial dimensions, as for `drop_block2d`.
        block_size: as for `drop_block2d`.
        dims: number of spatial dimensions, 1, 2 or 3.
        keep_prob: as for `drop_block2d`.
        share_channels: as for `drop_block2d`.

    Raises:
        TypeError, ValueError: as for `drop_block2d`, or if `use_backend` requests a backend that cannot serve the
            input.

    Examples:
        >>> report = backend_report(torch.ones(4, 8, 28, 28), 7)
        >>> report.reasons["triton"]  # doctest: +SKIP
        'it runs on CUDA devices, and the input is on cpu'
    """
    checks.spatial_dims(dims)
    input = checks.feature_map(input, dims)
    size = checks.block_size(block_size, dims)
    checks.probability("keep_prob", keep_prob)
    lead, spatial = tuple(input.shape[:-dims]), tuple(input.shape[-dims:])
    blocks = Blocks.of(lead, spatial, size, checks.flag("share_channels", share_channels))
    asked = asked_for(input, blocks)
    taken = serving(asked, input, blocks)
    reasons = {name: backend.why_not(input, blocks) for name, backend in BACKENDS.items()}
    reasons["reference"] = ASKED_ONLY
    if asked == "auto":
        reasons = {name: why or f"{taken} comes first" for name, why in reasons.items()}
        reasons[taken] = "the first that serves this tensor"
    else:
        reasons = {name: why or f"use_backend({asked!r}) asks for another" for name, why in reasons.items()}
        reasons[taken] = f"use_backend({asked!r}) asks for it"
    dtype = str(input.dtype).removeprefix("torch.")
    return BackendReport(taken, f"{dtype} of shape {tuple(input.shape)} on {input.device}", reasons)


def _cannot_serve(name: str, reason: str) -> ValueError:
    return ValueError(f"use_backend({name!r}) requests a backend that cannot serve this input: {reason}")
