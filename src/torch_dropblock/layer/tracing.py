"""How PyTorch carries out the operations of a call: on memory at once, or followed by something else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _disable_current_modes


def transformed() -> bool:
    """Whether `torch.func` or forward mode is at work, which need the key to be a tensor."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def functionalized() -> bool:
    """Whether `torch.func.functionalize` is among the transforms at work."""
    levels = torch._C._functorch.get_interpreter_stack() or []
    return any(level.key() == torch._C._functorch.TransformType.Functionalize for level in levels)


def followed(input: Tensor) -> bool:
    """Whether a call must be made of operators alone, without a value that the host reads or memory it writes to.

    That is so where a compiler, a mode, a subclass or `functionalize` sees each operator, and where the input has no
    memory: a meta tensor, a fake one, a wrapper of another tensor.
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
    """Let no transform and no mode see what is done on numbers inside."""
    with temporarily_clear_interpreter_stack(), _disable_current_modes():
        yield


def not_under_jit_trace() -> None:
    """Refuse to drop under `torch.jit.trace` before it notes anything: what it noted of a failed call, it never frees.

    It cannot record a function with a derivative of its own, and it fails in the middle of one. The sizes that it keeps
    by then make the next trace of this thread fail too.
    """
    if torch._C._get_tracing_state() is not None:
        raise ValueError(
            "training must be False under torch.jit.trace, which cannot record a random mask, got True; call "
            "model.eval() before tracing, or before a tool that traces, such as a FLOP counter"
        )
