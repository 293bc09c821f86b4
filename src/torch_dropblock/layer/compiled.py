"""The layer inside `torch.compile`: drawing is an operator of `operators.py`, applying is visible to the compiler.

    key, keep_prob ── draw ──> mask, scale, table ── where, * ──> output      fused with its neighbours
    key ───────────── redraw ──> mask ────────────── where, * ──> gradient    in the backward pass

The graph draws the key by an operation that the compiler treats as random, so it neither merges nor repeats it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import choice, sparse
from ..core.checks import Rate
from ..core.keys import as_tensor, draw_key
from . import operators
from .operators import Draw
from .tracing import transformed


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        key: Tensor,
        keep_prob: Tensor,
        block_size: tuple[int, ...],
        rate: str,
        share_channels: bool,
        backend: str,
    ) -> Tensor:
        arguments = _arguments(input, block_size, rate, share_channels, backend)
        # the input's memory format, since the gradient's is not known when the backward pass is traced
        ctx.block_size, ctx.options = block_size, arguments[3:]
        draw, ctx.redraw = operators.serving(key, keep_prob, backend)
        mask, scale, table = draw(key, keep_prob, *arguments)
        ctx.save_for_backward(key, scale, *operators.needed_again(keep_prob, table, backend))
        return _scale_and_zero(input, mask, scale, Draw(*arguments))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        key, scale, keep_prob, table = ctx.saved_tensors
        arguments = *_shape_of(grad, ctx.block_size), *ctx.options
        mask = ctx.redraw(key, keep_prob, table, *arguments)
        return _scale_and_zero(grad, mask, scale, Draw(*arguments)), None, None, None, None, None, None


def drop_block(
    input: Tensor,
    block_size: tuple[int, ...],
    keep_prob: float | Tensor,
    rate: Rate,
    share_channels: bool,
    inplace: bool,
    generator: torch.Generator | None,
    key: int | Tensor | None,
) -> Tensor:
    """Drop blocks like `functional.drop_block*d`, traceable by the compiler; tensor values are checked at run time."""
    backend = choice.serving_compiled(input.device)
    if not isinstance(keep_prob, Tensor):
        # a CUDA graph cannot hold a tensor of the CPU
        device = input.device if backend == "triton" else torch.device("cpu")
        keep_prob = torch.full((), keep_prob, dtype=torch.float64, device=device)
    key = draw_key(input.device, generator) if key is None else as_tensor(key, input.device)
    apply = _apply if transformed() else _Apply.apply
    output: Tensor = apply(input, key, keep_prob, block_size, rate, share_channels, backend)
    return input.copy_(output) if inplace else output


def _apply(input: Tensor, key: Tensor, keep_prob: Tensor, *options: Any) -> Tensor:
    """Drop under `torch.func` and forward mode, for which `_Apply` has no rules; PyTorch differentiates it."""
    arguments = _arguments(input, *options)
    mask, scale, _ = operators.serving(key, keep_prob, arguments[-1])[0](key, keep_prob, *arguments)
    return _scale_and_zero(input, mask, scale, Draw(*arguments))


def _arguments(
    input: Tensor, block_size: tuple[int, ...], rate: str, share_channels: bool, backend: str
) -> tuple[Any, ...]:
    """Return the fields of `Draw`."""
    # a shared mask has one channel, so its bits lie by planes
    channels_last = _channels_innermost(input, len(block_size)) and not share_channels
    return *_shape_of(input, block_size), rate, share_channels, channels_last, backend


def _scale_and_zero(input: Tensor, mask: Tensor, scale: Tensor, draw: Draw) -> Tensor:
    """Scale the input and zero dropped units, like `sparse.masked`, in operations that the compiler fuses."""
    op = torch.float64 if input.dtype == torch.float64 else torch.float32
    output = torch.where(draw.dropped(mask), 0.0, input.to(op) * scale.to(op))
    # PyTorch 2.11 loses the gradient of a function whose last operation is a no-op
    return output if output.dtype == input.dtype else output.to(input.dtype)


def _shape_of(input: Tensor, block_size: tuple[int, ...]) -> tuple[Sequence[int], Sequence[int], tuple[int, ...]]:
    dims = len(block_size)
    return input.shape[:-dims], input.shape[-dims:], block_size


def _channels_innermost(input: Tensor, dims: int) -> bool:
    """Return True if `input` is batched with channels innermost, so that its mask should have the same memory order."""
    if input.dim() != dims + 2 or input.dim() not in sparse.CHANNELS_LAST or input.is_contiguous():
        return False
    return input.is_contiguous(memory_format=sparse.CHANNELS_LAST[input.dim()])
