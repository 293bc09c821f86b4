"""The layer inside `torch.compile`: drawing is an operator that the compiler does not look into, applying is not.

    rng_seed, keep_prob ── draw ────> mask, scale ── where, * ──> output      fused with what is around it
    rng_seed, keep_prob ── redraw ──> mask ───────── where, * ──> gradient    in the backward pass

γ is solved inside the operators, from the value that `keep_prob` has when they run: a schedule changes data, and
nothing is compiled again. Both are pure functions of the RNG seed, which is drawn in the graph by an operation that
the compiler knows to be random, so it neither merges nor repeats it. They are two, so that it does not merge them
either and keep the mask for the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import checks, sparse
from .checks import Rate
from .rng import draw_rng_seed
from .sparse import Blocks

SIGNATURE = (
    "(Tensor rng_seed, Tensor keep_prob, SymInt[] lead, SymInt[] size, SymInt[] block_size, str rate, "
    "bool share_channels, bool channels_last)"
)


@dataclass
class Draw:
    """What both operators are told beside the RNG seed and `keep_prob`."""

    lead: Sequence[int]
    size: Sequence[int]
    block_size: Sequence[int]
    rate: str
    share_channels: bool
    channels_last: bool

    def empty_mask(self, device: torch.device) -> Tensor:
        own_lead = (*self.lead[:-1], 1) if self.share_channels else tuple(self.lead)
        mask = sparse.empty_mask((*own_lead, *self.size), device, self.channels_last)
        return mask.view(torch.uint8)

    def mask(self, rng_seed: Tensor, keep_prob: Tensor) -> Tensor:
        if 0 in (*self.lead, *self.size):
            return self.empty_mask(rng_seed.device)
        number, rate = checks.probability("keep_prob", keep_prob.squeeze()), checks.rate(self.rate)
        shape = tuple(self.lead), tuple(self.size), tuple(self.block_size)
        blocks = Blocks.of(*shape, number, rate, self.share_channels)
        seeds = sparse.draw_seeds(rng_seed, blocks)
        return sparse.dropped_mask(seeds, blocks, rng_seed.device, self.channels_last).view(torch.uint8)


@torch.library.custom_op("torch_dropblock::draw", mutates_args=(), schema=SIGNATURE + " -> (Tensor, Tensor)")
def draw(rng_seed: Tensor, keep_prob: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """The mask, 1 where dropped and else 0, and the scale of what is kept, a tensor of no dimensions."""
    mask = Draw(*arguments).mask(rng_seed, keep_prob)
    return mask, sparse.scale_of(mask.view(torch.bool))


@torch.library.custom_op("torch_dropblock::redraw", mutates_args=(), schema=SIGNATURE + " -> Tensor")
def redraw(rng_seed: Tensor, keep_prob: Tensor, *arguments: Any) -> Tensor:
    """The mask that `draw` made of the same arguments."""
    return Draw(*arguments).mask(rng_seed, keep_prob)


@draw.register_fake
def _(rng_seed: Tensor, keep_prob: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    scale = torch.empty((), dtype=sparse.widest_float(rng_seed.device), device=rng_seed.device)
    return Draw(*arguments).empty_mask(rng_seed.device), scale


@redraw.register_fake
def _(rng_seed: Tensor, keep_prob: Tensor, *arguments: Any) -> Tensor:
    return Draw(*arguments).empty_mask(rng_seed.device)


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        rng_seed: Tensor,
        keep_prob: Tensor,
        block_size: tuple[int, ...],
        rate: str,
        share_channels: bool,
    ) -> Tensor:
        # that of the gradient is not known yet when the backward pass is traced
        ctx.options = rate, share_channels, _layout_of(input)
        ctx.block_size = block_size
        mask, scale = draw(rng_seed, keep_prob, *_shape_of(input, block_size), *ctx.options)
        ctx.save_for_backward(rng_seed, keep_prob, scale)
        return _scale_and_zero(input, mask, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rng_seed, keep_prob, scale = ctx.saved_tensors
        mask = redraw(rng_seed, keep_prob, *_shape_of(grad, ctx.block_size), *ctx.options)
        return _scale_and_zero(grad, mask, scale), None, None, None, None, None


def drop_block(
    input: Tensor,
    block_size: tuple[int, ...],
    keep_prob: float | Tensor,
    rate: Rate,
    share_channels: bool,
    inplace: bool,
    generator: torch.Generator | None,
) -> Tensor:
    """`functional.drop_block*d` for the compiler to trace; the value of a tensor `keep_prob` is checked as it runs."""
    if not isinstance(keep_prob, Tensor):
        keep_prob = torch.full((), keep_prob, dtype=torch.float64, device="cpu")
    rng_seed = draw_rng_seed(input.device, generator)
    output: Tensor = _Apply.apply(input, rng_seed, keep_prob, block_size, rate, share_channels)
    return input.copy_(output) if inplace else output


def _scale_and_zero(input: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
    """`sparse.masked` in the form that compiles best: on a CPU a condition read from bools is several times slower."""
    op = torch.float64 if input.dtype == torch.float64 else torch.float32
    return torch.where(mask.to(op) > 0.5, 0.0, input.to(op) * scale.to(op)).to(input.dtype)


def _shape_of(input: Tensor, block_size: tuple[int, ...]) -> tuple[Sequence[int], Sequence[int], tuple[int, ...]]:
    dims = len(block_size)
    return input.shape[:-dims], input.shape[-dims:], block_size


def _layout_of(input: Tensor) -> bool:
    """Whether the channels of `input` are innermost, so that the mask is read as `input` is."""
    if input.dim() not in sparse.CHANNELS_LAST or input.is_contiguous():
        return False
    return input.is_contiguous(memory_format=sparse.CHANNELS_LAST[input.dim()])
