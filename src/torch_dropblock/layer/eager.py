"""The layer as one differentiable operation, linear in its input: all of its derivatives are itself.

What is saved for the backward pass is the RNG seed; the same seeds are drawn from it again, by the same path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backends import choice, native, sparse
from ..core import checks, reference
from ..core import seeds as drawing
from ..core.rng import RngSeed, device_of
from ..core.seeds import Blocks
from . import tracing


@dataclass
class Scale:
    """The normalisation of one mask, counted when the mask is first used; and what draws the mask.

    `gap` is -1 / log(1 - γ) where γ is known to the device alone. Triton counts again with each mask.
    """

    value: float | Tensor | None = None
    backend: str = "native"
    gap: Tensor | None = None


def drop(input: Tensor, rng_seed: RngSeed, blocks: Blocks, scale: Scale, inplace: bool = False) -> Tensor:
    """The operation on numbers."""
    if input.is_neg() or not input.data_ptr() or torch._C._len_torch_dispatch_stack():
        return _by_operators(input, rng_seed, blocks, scale, inplace)
    # Allocated before anything small, which would take part of the memory that the last output gave back: a third
    # fewer page faults for outputs of 25 MB, no difference for 13 MB.
    output = input if inplace else torch.empty_like(input)
    if scale.backend == "triton":
        choice.triton_launch().drop(input, output, rng_seed, blocks, scale.gap)  # type: ignore[union-attr]
        return output
    if scale.backend == "reference":
        return output.copy_(reference.drop_block(input, choice.reference_kept(rng_seed, blocks)))
    plan = native.plan(input, output, blocks) if scale.backend == "native" else None
    if plan is None or isinstance(scale.value, Tensor):
        seeds = drawing.draw_seeds(rng_seed, blocks)
        scale.value = sparse.apply_blocks(input, output, seeds, blocks, scale.value)
    else:
        scale.value = plan.drop(input, output, rng_seed, scale.value)
    return output


def _by_operators(input: Tensor, rng_seed: RngSeed, blocks: Blocks, scale: Scale, inplace: bool) -> Tensor:
    """`drop` of a tensor whose memory is not there, does not hold its values, or is followed by something else."""
    with tracing.left_alone():
        dropped, factor = _mask(rng_seed, blocks, scale)
    output = input if inplace else torch.empty_like(input)
    return output.copy_(sparse.masked(input, dropped, factor))


def _mask(rng_seed: RngSeed, blocks: Blocks, scale: Scale) -> tuple[Tensor, Tensor]:
    """True where dropped, and the scale, as tensors."""
    if scale.backend == "triton":
        mask: Any = choice.triton_launch().draw(rng_seed, blocks, scale.gap)  # type: ignore[union-attr]
        return mask.dense(), mask.scale
    if scale.backend == "reference":
        dropped = ~choice.reference_kept(rng_seed, blocks)
    else:
        dropped = sparse.dropped_mask(drawing.draw_seeds(rng_seed, blocks), blocks, device_of(rng_seed))
    return dropped, sparse.scale_of(dropped)


class ApplyBlocks(torch.autograd.Function):
    """`ApplyBlocks.apply(input, rng_seed, blocks, scale, inplace)`."""

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if not tracing.transformed():
            return Plain.apply(*args)
        # `functionalize` has no rule for a Function
        return _by_operators(*args) if tracing.functionalized() else super().apply(*args)

    @staticmethod
    def forward(input: Tensor, rng_seed: RngSeed, blocks: Blocks, scale: Scale, inplace: bool) -> Tensor:
        return drop(input, rng_seed, blocks, scale, inplace)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, rng_seed, ctx.blocks, ctx.scale, ctx.inplace = inputs
        ctx.rng_number = None if isinstance(rng_seed, Tensor) else rng_seed
        if ctx.rng_number is None:
            ctx.save_for_backward(rng_seed)
            ctx.save_for_forward(rng_seed)
        if ctx.inplace:
            ctx.mark_dirty(input)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rng_seed = _rng_seed_of(ctx)
        grad = grad if grad.layout is torch.strided else grad.to_dense()
        if torch._C._functorch.is_legacy_batchedtensor(grad):
            return _of_several(grad, rng_seed, ctx.blocks, ctx.scale), None, None, None, None
        again = ApplyBlocks.apply if torch.is_grad_enabled() or tracing.transformed() else drop
        return again(grad, rng_seed, ctx.blocks, ctx.scale, False), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        result: Tensor = ApplyBlocks.apply(tangent, _rng_seed_of(ctx), ctx.blocks, ctx.scale, ctx.inplace)
        return result

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        input: Tensor,
        rng_seed: RngSeed,
        blocks: Blocks,
        scale: Scale,
        inplace: bool,
    ) -> tuple[Tensor, int]:
        """The mapped dimension becomes one more leading one.

        A mapped RNG seed (`randomness="different"`) asks for planes of their own, one that is not
        (`randomness="same"`) for one mask repeated. The count is over all of them together.
        """
        input_dim, seed_dim = in_dims[0], in_dims[1]
        if input_dim is None:
            input = input.expand(info.batch_size, *input.shape)
        else:
            input = input.movedim(input_dim, 0)
        if isinstance(rng_seed, Tensor) and seed_dim is not None:
            rng_seed = rng_seed.select(seed_dim, 0)
        if inplace:
            checks.writable(input)  # what the function saw of it was one slice
        blocks = blocks.batched(info.batch_size, shared=seed_dim is None)
        return ApplyBlocks.apply(input, rng_seed, blocks, scale, inplace), 0


class Plain(torch.autograd.Function):
    """`ApplyBlocks` where nothing is transformed: PyTorch calls a function of this form in a quarter of the time."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        output = drop(*args)
        ApplyBlocks.setup_context(ctx, args, output)
        return output

    backward = ApplyBlocks.backward


def _of_several(grads: Tensor, rng_seed: RngSeed, blocks: Blocks, scale: Scale) -> Tensor:
    """The gradients of `is_grads_batched=True`, through one mask.

    `torch.autograd` maps over them by a `vmap` of its own, older than that of `torch.func`, of which a Function is told
    nothing: here it is left, for what it maps over to become one more leading dimension, and entered again.
    """
    level = torch._C._vmapmode_decrement_nesting() + 1
    try:
        together = torch._remove_batch_dim(grads, level, 0, 0)
        blocks = blocks.batched(len(together), shared=True)
        return torch._add_batch_dim(ApplyBlocks.apply(together, rng_seed, blocks, scale, False), 0, level)
    finally:
        torch._C._vmapmode_increment_nesting()


def _rng_seed_of(ctx: Any) -> RngSeed:
    rng_seed: RngSeed = ctx.saved_tensors[0] if ctx.rng_number is None else ctx.rng_number
    return rng_seed
