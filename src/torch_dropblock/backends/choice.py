"""Which path a call takes: chosen by the tensor at each call, said by `backend_report`, overruled by `use_backend`.

| name | what it is | for |
| --- | --- | --- |
| `"triton"` | `triton_launch.py`: a bit mask is drawn, the input is read once and written once | CUDA, with Triton |
| `"native"` | `native.c`: the seeds and values of `"sparse"`, bit for bit, in one pass | the CPU, where it was built |
| `"sparse"` | plain PyTorch operations | every device |
| `"reference"` | Algorithm 1 line by line, dense: the oracle | every device; never chosen by itself |
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..core import checks, reference
from ..core.geometry import Size, clamp
from ..core.rng import RngSeed, device_of
from ..core.seeds import Blocks
from . import native

PATHS = ("triton", "native", "sparse", "reference")
NAMES = ("auto", *PATHS)
ASKED_ONLY = "it is dense and slow: only use_backend('reference') takes it"
# each with an object of its own, since contexts that overlap end in any order
_asked: ContextVar[tuple[tuple[object, str], ...]] = ContextVar(
    "the backends that use_backend asks for", default=((None, "auto"),)
)


def _asked_name() -> str:
    return _asked.get()[-1][1]


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Take one path, whatever the tensor, for the calls of this thread (or task) inside.

    A gradient takes the path of its forward pass, wherever it is computed. Compiled code keeps the choice that was in
    force when it was compiled: put the first call of a compiled function inside, or `torch.compiler.reset()`.
    Masks of one RNG seed are the same bits for `"native"` and `"sparse"`, and others for each other path; their
    distribution is the same.

    Args:
        name: `"triton"`, `"native"`, `"sparse"` or `"reference"`; or `"auto"`, the default: Triton for CUDA tensors
            where it can be imported and the device is of compute capability 8.0 or more, the native library for CPU
            tensors where it was built and serves them, and else the sparse path.

    Raises:
        TypeError, ValueError: `name` is none of these. A call that the path cannot serve raises a ValueError too.

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
        _withdraw(mine)  # an interrupt may have cut the first short


def _withdraw(name: tuple[object, str]) -> None:
    _asked.set(tuple(asked for asked in _asked.get() if asked is not name))


@lru_cache(maxsize=1)
def triton_launch() -> ModuleType | str:
    """The module, or why it cannot be imported; imported when it is first needed."""
    try:
        from .triton import launch as triton_launch
    except (ImportError, RuntimeError, OSError) as error:
        reason = str(error).partition("\n")[0]
        return f"Triton cannot be imported ({reason})"
    return triton_launch


def why_not_triton(device: torch.device, size: Size | None = None) -> str:
    """Why Triton does not serve tensors on this device, with maps of this size; empty if it does."""
    kernel = triton_launch()
    return kernel if isinstance(kernel, str) else str(kernel.why_not(device, size))


def why_not_native(input: Tensor, blocks: Blocks) -> str:
    """Why the native library does not serve the input; empty if it does."""
    if input.device.type != "cpu":
        return f"it runs on the CPU, and the input is on {input.device}"
    if native.LIBRARY is None:
        return native.WHY_NOT
    if input.dtype not in native.DTYPES:
        return f"it takes float32, bfloat16 and float64, and the input is {str(input.dtype).removeprefix('torch.')}"
    if native.plan(input, input, blocks) is None:
        return "it takes plain tensors, contiguous or channels-last, with a γ between 0 and 1"
    return ""


def choose(input: Tensor, blocks: Blocks) -> str:
    """The path of a call in eager mode; where `"native"` does not serve a tensor, `"sparse"` makes the same bits."""
    asked = _asked_name()
    if asked == "auto":
        if input.device.type == "cpu":
            return "native"
        return "sparse" if input.device.type != "cuda" or why_not_triton(input.device, blocks.size) else "triton"
    reason = ""
    if asked == "triton":
        reason = why_not_triton(input.device, blocks.size)
    elif asked == "native":
        reason = why_not_native(input, blocks)
    if reason:
        raise _cannot_serve(asked, reason)
    return asked


def choose_compiled(device: torch.device) -> str:
    """The path of code that is being compiled: by what does not change from call to call."""
    asked = _asked_name()
    if asked == "native":
        return "sparse"  # the same bits; the application is the compiler's
    if asked == "triton" and (reason := why_not_triton(device)):
        raise _cannot_serve(asked, reason)
    if asked == "auto":
        return "triton" if device.type == "cuda" and not why_not_triton(device) else "sparse"
    return asked


# what torch.compiler.assume_constant_result does; that would import the whole compiler here, and Triton with it
choose_compiled._dynamo_marked_constant = True  # type: ignore[attr-defined]


def mean_gap(keep_prob: Tensor, device: torch.device, size: Size, block_size: Size, rate: str) -> Tensor | None:
    """What Triton draws gaps with, from a `keep_prob` on a device; None if another path is taken.

    Raises:
        TypeError: `keep_prob` is no floating-point tensor of no dimensions.
    """
    checks.scalar("keep_prob", keep_prob)
    if _asked_name() not in ("auto", "triton") or device.type != "cuda" or why_not_triton(device, size):
        return None
    kernel = triton_launch()
    gap: Tensor = kernel.mean_gap(keep_prob.to(device), size, clamp(size, block_size), rate)  # type: ignore[union-attr]
    return gap


def keeps_keep_prob(device: torch.device) -> bool:
    """Whether γ is solved on this device, so that a `keep_prob` for compiled code is best kept there."""
    return device.type == "cuda" and torch.cuda.is_available() and not why_not_triton(device)


def reference_kept(rng_seed: RngSeed, blocks: Blocks) -> Tensor:
    """The oracle's mask, True where kept, of shape `(*own_lead, *size)`; the RNG seed is read by the host."""
    generator = torch.Generator().manual_seed(int(rng_seed) & (2**63 - 1))
    seeds = reference.draw_seeds((1, blocks.planes().lead[0], *blocks.valid), blocks.gamma, generator)
    kept = reference.kept_mask(seeds, blocks.block).view(*blocks.own_lead, *blocks.size)
    return kept.to(device_of(rng_seed))


@dataclass(frozen=True)
class BackendReport:
    """The path that a call takes, and for each path why it is taken or not; `str` of it is made for people."""

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
    """Which path a call in eager mode takes for this input here and now, and why not the others.

    Args:
        input: feature maps of `dims` spatial dimensions, as for `drop_block2d`.
        block_size: as for `drop_block2d`.
        dims: 1, 2 or 3.
        keep_prob: as for `drop_block2d`.
        share_channels: as for `drop_block2d`.

    Raises:
        TypeError, ValueError: as `drop_block2d`, and where `use_backend` asks for a path that cannot serve.

    Examples:
        >>> report = backend_report(torch.ones(4, 8, 28, 28), 7)
        >>> report.reasons["triton"]  # doctest: +SKIP
        'it runs on CUDA devices, and the input is on cpu'
    """
    if dims not in (1, 2, 3):
        raise ValueError(f"dims must be 1, 2 or 3, got {dims!r}")
    input = checks.feature_map(input, dims)
    size = checks.positive_ints("block_size", block_size, dims)
    keep = checks.probability("keep_prob", keep_prob)
    lead, spatial = tuple(input.shape[:-dims]), tuple(input.shape[-dims:])
    blocks = Blocks.of(lead, spatial, size, keep, "exact", checks.flag("share_channels", share_channels))
    taken, asked = choose(input, blocks), _asked_name()
    if taken == "native" and why_not_native(input, blocks):
        taken = "sparse"
    reasons = {
        "triton": why_not_triton(input.device, spatial),
        "native": why_not_native(input, blocks),
        "sparse": "",
        "reference": ASKED_ONLY,
    }
    if asked != "auto":
        reasons = {name: why or f"use_backend({asked!r}) asks for another" for name, why in reasons.items()}
        reasons[taken] = f"use_backend({asked!r}) asks for it"
    else:
        reasons = {name: why or f"{taken} comes first" for name, why in reasons.items()}
        reasons[taken] = "the first that serves this tensor"
    dtype = str(input.dtype).removeprefix("torch.")
    return BackendReport(taken, f"{dtype} of shape {tuple(input.shape)} on {input.device}", reasons)


def _cannot_serve(name: str, reason: str) -> ValueError:
    return ValueError(f"use_backend({name!r}) asks for a path that cannot serve this input: {reason}")
