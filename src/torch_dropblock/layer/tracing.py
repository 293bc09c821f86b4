"""Detect whether PyTorch runs operations directly on memory, or a transform, mode or compiler follows them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _disable_current_modes


def transformed() -> bool:
    """Return True under `torch.func` and forward mode, which need the key to be a tensor."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def functionalized() -> bool:
    """Return True if `torch.func.functionalize` is among the active transforms."""
    levels = torch._C._functorch.get_interpreter_stack() or []
    return any(level.key() == torch._C._functorch.TransformType.Functionalize for level in levels)


def followed(input: Tensor) -> bool:
    """Return True if a call must consist of operators alone: the host reads no value and writes to no memory.

    This holds if a compiler, a mode, a subclass or `functionalize` sees each operator, or if the input has no memory:
    a meta tensor, a fake one, a wrapper of another tensor.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return True
    if type(input).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return True
    if torch._C._are_functorch_transforms_active():
        return functionalized()
    return not input.data_ptr() and input.numel() > 0


@contextmanager
def left_alone() -> Iterator[None]:
    """Suspend all transforms and modes, so that operations inside run directly on values."""
    with temporarily_clear_interpreter_stack(), _disable_current_modes():
        yield


def not_under_jit_trace() -> None:
    """Raise if `torch.jit.trace` is active, before it records anything.

    It cannot record a function with its own derivative, and fails in the middle of one. It never frees the sizes that
    it has recorded by then, and they make the next trace of this thread fail too.
    """
    if torch._C._get_tracing_state() is not None:
        raise ValueError(
            "training must be False under torch.jit.trace, which cannot record a random mask, got True; call "
            "model.eval() before tracing, or before a tool that traces, such as a FLOP counter"
        )
