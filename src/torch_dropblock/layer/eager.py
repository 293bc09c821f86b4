"""The layer in eager mode: one differentiable operation, linear in its input, so that each derivative is itself.

Only the key is saved for the backward pass, which draws the same seeds from it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backends import sparse, triton
from ..backends.choice import BACKENDS, serving
from ..core import checks
from ..core.blocks import Blocks
from ..core.keys import Key, device_of
from ..core.seeds import draw_seeds
from . import tracing


@dataclass
class Call:
    """Parameters of one call of the layer, without its input and its key.

    Attributes:
        blocks: where blocks may fall.
        table: the distribution of the number of seeds per stream, see `seeds.py`; None if everything is dropped.
        asked: the requested backend, or "auto".
        scale: the normalisation, once a backend has counted it and needs no second count.
    """

    blocks: Blocks
    table: Tensor | None
    asked: str = "auto"
    scale: float | Tensor | None = None


def drop(input: Tensor, key: Key, call: Call, inplace: bool = False) -> Tensor:
    """Drop blocks from the values of a tensor, without autograd."""
    if input.is_neg() or not input.data_ptr() or torch._C._len_torch_dispatch_stack():
        return _by_operators(input, key, call, inplace)
    # Allocate the output first, since small tensors would split the memory that the last output freed: a third
    # fewer page faults for outputs of 25 MB, no difference for 13 MB.
    output = input if inplace else torch.empty_like(input)
    if call.table is None:
        return output.zero_()
    backend = BACKENDS[serving(call.asked, input, call.blocks)]
    call.scale = backend.drop(input, output, key, call.blocks, call.table, call.scale)
    return output


def _by_operators(input: Tensor, key: Key, call: Call, inplace: bool) -> Tensor:
    """Drop by PyTorch operators: the tensor has no memory of its values, or its operators are traced."""
    if call.table is None:
        return input.zero_() if inplace else torch.zeros_like(input)
    with tracing.left_alone():
        if call.table.device.type == "cpu":
            dropped = sparse.dropped_mask(draw_seeds(key, call.blocks, call.table), call.blocks, device_of(key))
            scale = sparse.scale_of(dropped)
        else:
            mask: Any = triton.launcher().draw(key, call.blocks, call.table)
            dropped, scale = mask.dense(), mask.scale
    output = input if inplace else torch.empty_like(input)
    return output.copy_(sparse.masked(input, dropped, scale))


class ApplyBlocks(torch.autograd.Function):
    """`ApplyBlocks.apply(input, key, call, inplace)`."""

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if not tracing.transformed():
            return Plain.apply(*args)
        # `functionalize` has no rule for a Function
        return _by_operators(*args) if tracing.functionalized() else super().apply(*args)

    @staticmethod
    def forward(input: Tensor, key: Key, call: Call, inplace: bool) -> Tensor:
        return drop(input, key, call, inplace)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, key, ctx.call, ctx.inplace = inputs
        ctx.key = None if isinstance(key, Tensor) else key
        if ctx.key is None:
            ctx.save_for_backward(key)
            ctx.save_for_forward(key)
        if ctx.inplace:
            ctx.mark_dirty(input)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        key = _key_of(ctx)
        grad = grad if grad.layout is torch.strided else grad.to_dense()
        if torch._C._functorch.is_legacy_batchedtensor(grad):
            return _of_several(grad, key, ctx.call), None, None, None
        again = ApplyBlocks.apply if torch.is_grad_enabled() or tracing.transformed() else drop
        return again(grad, key, ctx.call, False), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        result: Tensor = ApplyBlocks.apply(tangent, _key_of(ctx), ctx.call, ctx.inplace)
        return result

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], input: Tensor, key: Key, call: Call, inplace: bool
    ) -> tuple[Tensor, int]:
        """Make the mapped dimension an additional leading one.

        With a mapped key (`randomness="different"`) every slice gets planes of its own; otherwise
        (`randomness="same"`) all share one mask. Units are counted over all slices together.
        """
        input_dim, key_dim = in_dims[0], in_dims[1]
        if input_dim is None:
            input = input.expand(info.batch_size, *input.shape)
        else:
            input = input.movedim(input_dim, 0)
        if isinstance(key, Tensor) and key_dim is not None:
            key = key.select(key_dim, 0)
        if inplace:
            checks.writable(input)  # the first check saw only one slice
        return ApplyBlocks.apply(input, key, _batched(call, info.batch_size, shared=key_dim is None), inplace), 0


class Plain(torch.autograd.Function):
    """`ApplyBlocks` for calls outside `torch.func`: PyTorch calls a function of this form in a quarter of the time."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        output = drop(*args)
        ApplyBlocks.setup_context(ctx, args, output)
        return output

    backward = ApplyBlocks.backward


def _batched(call: Call, batch: int, *, shared: bool) -> Call:
    return Call(call.blocks.batched(batch, shared=shared), call.table, call.asked, call.scale)


def _of_several(grads: Tensor, key: Key, call: Call) -> Tensor:
    """Return the gradients of `is_grads_batched=True`, through one mask.

    `torch.autograd` maps over them by its own older `vmap`, which does not support Functions. So leave that `vmap`,
    make the mapped dimension an additional leading one, and enter the `vmap` again.
    """
    level = torch._C._vmapmode_decrement_nesting() + 1
    try:
        together = torch._remove_batch_dim(grads, level, 0, 0)
        call = _batched(call, len(together), shared=True)
        return torch._add_batch_dim(ApplyBlocks.apply(together, key, call, False), 0, level)
    finally:
        torch._C._vmapmode_increment_nesting()


def _key_of(ctx: Any) -> Key:
    key: Key = ctx.saved_tensors[0] if ctx.key is None else ctx.key
    return key
