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
from typing import Any

import torch
from torch import Tensor

from . import checks, geometry, sparse
from .checks import Rate
from .rng import draw_rng_seed
from .sparse import Blocks


@torch.library.custom_op("torch_dropblock::draw", mutates_args=())
def draw(
    rng_seed: Tensor,
    keep_prob: Tensor,
    lead: Sequence[int],
    size: Sequence[int],
    block_size: Sequence[int],
    rate: str,
    share_channels: bool,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    """The mask, True where dropped, and the scale of what is kept, a tensor of no dimensions."""
    blocks = _blocks(keep_prob, lead, size, block_size, rate, share_channels)
    mask = sparse.dropped_mask(sparse.draw_seeds(rng_seed, blocks), blocks, rng_seed.device, channels_last)
    return mask, sparse.scale_of(mask)


@torch.library.custom_op("torch_dropblock::redraw", mutates_args=())
def redraw(
    rng_seed: Tensor,
    keep_prob: Tensor,
    lead: Sequence[int],
    size: Sequence[int],
    block_size: Sequence[int],
    rate: str,
    share_channels: bool,
    channels_last: bool,
) -> Tensor:
    """The mask that `draw` made of the same arguments."""
    blocks = _blocks(keep_prob, lead, size, block_size, rate, share_channels)
    return sparse.dropped_mask(sparse.draw_seeds(rng_seed, blocks), blocks, rng_seed.device, channels_last)


@draw.register_fake
def _(
    rng_seed: Tensor,
    keep_prob: Tensor,
    lead: Sequence[int],
    size: Sequence[int],
    block_size: Sequence[int],
    rate: str,
    share_channels: bool,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    mask = _empty_mask(rng_seed.device, lead, size, share_channels, channels_last)
    return mask, torch.empty((), dtype=sparse.widest_float(rng_seed.device), device=rng_seed.device)


@redraw.register_fake
def _(
    rng_seed: Tensor,
    keep_prob: Tensor,
    lead: Sequence[int],
    size: Sequence[int],
    block_size: Sequence[int],
    rate: str,
    share_channels: bool,
    channels_last: bool,
) -> Tensor:
    return _empty_mask(rng_seed.device, lead, size, share_channels, channels_last)


def _empty_mask(
    device: torch.device, lead: Sequence[int], size: Sequence[int], share_channels: bool, channels_last: bool
) -> Tensor:
    own_lead = (*lead[:-1], 1) if share_channels else lead
    return sparse.empty_mask((*own_lead, *size), device, channels_last)


def _blocks(
    keep_prob: Tensor,
    lead: Sequence[int],
    size: Sequence[int],
    block_size: Sequence[int],
    rate: str,
    share_channels: bool,
) -> Blocks:
    block = geometry.clamp(tuple(size), tuple(block_size))
    gamma = geometry.gamma(tuple(size), block, checks.probability("keep_prob", keep_prob), checks.rate(rate))
    return Blocks(tuple(lead), tuple(size), block, gamma, shared=(len(lead) - 1,) if share_channels else ())


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
        ctx.options = block_size, rate, share_channels
        mask, scale = draw(rng_seed, keep_prob, *_shape_of(input, block_size), rate, share_channels, _layout_of(input))
        ctx.save_for_backward(rng_seed, keep_prob, scale)
        return _scale_and_zero(input, mask, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rng_seed, keep_prob, scale = ctx.saved_tensors
        block_size, rate, share_channels = ctx.options
        mask = redraw(rng_seed, keep_prob, *_shape_of(grad, block_size), rate, share_channels, _layout_of(grad))
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


def _scale_and_zero(input: Tensor, dropped: Tensor, scale: Tensor) -> Tensor:
    op = torch.float64 if input.dtype == torch.float64 else torch.float32
    return torch.where(dropped, 0, (input.to(op) * scale.to(op)).to(input.dtype))


def _shape_of(input: Tensor, block_size: tuple[int, ...]) -> tuple[Sequence[int], Sequence[int], tuple[int, ...]]:
    dims = len(block_size)
    return input.shape[:-dims], input.shape[-dims:], block_size


def _layout_of(input: Tensor) -> bool:
    """Whether the channels of `input` are innermost, so that the mask is read as `input` is."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if input.dim() not in formats or input.is_contiguous():
        return False
    return input.is_contiguous(memory_format=formats[input.dim()])
