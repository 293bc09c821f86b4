"""The layer inside `torch.compile`: drawing is an operator that the compiler does not look into, applying is not.

    rng_seed, keep_prob ── draw ────> mask, scale, density ── where, * ──> output      fused with what is around it
    rng_seed, density ──── redraw ──> mask ────────────────── where, * ──> gradient    in the backward pass

The density of seeds is solved inside `draw`, from the value that `keep_prob` has when it runs: a schedule changes data,
and nothing is compiled again. Both are pure functions of the RNG seed, which is drawn in the graph by an operation
that the compiler knows to be random, so it neither merges nor repeats it. They are two, so that it does not merge them
either and keep the mask for the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backends import choice, sparse
from ..backends.triton.plan import mean_gap_of
from ..core import checks, seeds
from ..core.checks import Rate
from ..core.geometry import clamp, gamma
from ..core.rng import draw_rng_seed
from ..core.seeds import Blocks
from .tracing import transformed

MASK, ALL = "Tensor", "(Tensor, Tensor, Tensor)"
SIGNATURE = (
    "(Tensor rng_seed, Tensor {}, SymInt[] lead, SymInt[] size, SymInt[] block_size, str rate, "
    "bool share_channels, bool channels_last, str backend='sparse') -> {}"
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
    backend: str = "sparse"

    @property
    def nothing(self) -> bool:
        """Whether the input has no elements."""
        return 0 in (*self.lead, *self.size)

    @property
    def own_lead(self) -> tuple[int, ...]:
        return (*self.lead[:-1], 1) if self.share_channels else tuple(self.lead)

    def empty_mask(self, device: torch.device) -> Tensor:
        if self.backend == "triton":
            if self.channels_last:
                words = (*self.own_lead[:-1], *self.size, (self.own_lead[-1] + 31) // 32)
            else:
                words = ((math.prod(self.own_lead) * math.prod(self.size) + 63) // 64 * 2,)
            return torch.empty(words, dtype=torch.int32, device=device)
        mask = sparse.empty_mask((*self.own_lead, *self.size), device, self.channels_last)
        return mask.view(torch.uint8)

    def empty(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """The mask, the scale and the density, without values."""
        scale = torch.empty((), dtype=sparse.widest_float(device), device=device)
        density = torch.empty(1, dtype=torch.float64, device=device if self.backend == "triton" else "cpu")
        return self.empty_mask(device), scale, density

    def density(self, keep_prob: Tensor, device: torch.device) -> Tensor:
        """γ; for the GPU kernel -1 / log(1 - γ), solved where `keep_prob` is."""
        rate, size = checks.rate(self.rate), tuple(self.size)
        block = clamp(size, tuple(self.block_size))
        kernel: Any = choice.triton_launch() if self.backend == "triton" else None
        if kernel and keep_prob.device.type != "cpu":
            gap: Tensor = kernel.mean_gap(keep_prob.to(device), size, block, rate)
            return gap
        number = gamma(size, block, checks.probability("keep_prob", keep_prob.squeeze()), rate)
        if kernel:
            return torch.full((1,), mean_gap_of(number), dtype=torch.float64, device=device)
        return torch.tensor([number], dtype=torch.float64)

    def mask(self, rng_seed: Tensor, density: Tensor, count: bool = False) -> tuple[Tensor, Tensor]:
        """The mask; and its scale, which has a value if it is to `count`."""
        lead, size, block_size = tuple(self.lead), tuple(self.size), tuple(self.block_size)
        if self.backend == "triton":
            kernel: Any = choice.triton_launch()
            blocks = Blocks.of(lead, size, block_size, math.nan, "exact", self.share_channels)  # γ is on the device
            drawn = kernel.draw(rng_seed, blocks, density, count=count)
            words = kernel.channels_inside(drawn) if self.channels_last else drawn.words.view(torch.int32)
            return words, drawn.scale
        shared = (len(lead) - 1,) if self.share_channels else ()
        blocks = Blocks(lead, size, clamp(size, block_size), density.item(), shared)
        device = rng_seed.device
        if self.backend == "reference":
            dropped = ~choice.reference_kept(rng_seed, blocks)
            mask = sparse.empty_mask(tuple(dropped.shape), device, self.channels_last).copy_(dropped)
        else:
            mask = sparse.dropped_mask(seeds.draw_seeds(rng_seed, blocks), blocks, device, self.channels_last)
        scale = sparse.scale_of(mask) if count else self.empty(device)[1]
        return mask.view(torch.uint8), scale

    def dropped(self, mask: Tensor, op: torch.dtype) -> Tensor:
        """The condition in the form that compiles best: on a CPU one read from bools is several times slower."""
        if self.backend != "triton":
            return mask.to(op) > 0.5
        shifts = torch.arange(32, dtype=torch.int32, device=mask.device)
        bits = mask.unsqueeze(-1).bitwise_right_shift(shifts).bitwise_and(1)
        if not self.channels_last:
            units = math.prod(self.own_lead) * math.prod(self.size)
            return bits.view(-1)[:units].view(*self.own_lead, *self.size) != 0
        return bits.flatten(-2)[..., : self.lead[-1]].movedim(-1, len(self.lead) - 1) != 0


def _draw(rng_seed: Tensor, keep_prob: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    how = Draw(*arguments)
    if how.nothing:
        mask, scale, density = how.empty(rng_seed.device)
        return mask, scale.fill_(1.0), density.fill_(0.0)
    density = how.density(keep_prob, rng_seed.device)
    return *how.mask(rng_seed, density, count=True), density


def _redraw(rng_seed: Tensor, density: Tensor, *arguments: Any) -> Tensor:
    how = Draw(*arguments)
    return how.empty_mask(rng_seed.device) if how.nothing else how.mask(rng_seed, density)[0]


def _drawn(rng_seed: Tensor, keep_prob: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return Draw(*arguments).empty(rng_seed.device)


def _redrawn(rng_seed: Tensor, density: Tensor, *arguments: Any) -> Tensor:
    return Draw(*arguments).empty_mask(rng_seed.device)


def _draw_mapped(
    info: Any, in_dims: tuple[Any, ...], rng_seeds: Tensor, keep_prob: Tensor, *arguments: Any
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, None, None]]:
    """`torch.vmap` with other masks for each: counted together, as in eager mode."""
    if in_dims[1] is not None:
        raise ValueError("keep_prob cannot be mapped over")
    drawn = [draw(rng_seed, keep_prob, *arguments) for rng_seed in rng_seeds.unbind(in_dims[0])]
    masks, scales, densities = zip(*drawn, strict=True)
    return (torch.stack(masks), len(scales) / torch.stack(scales).reciprocal().sum(), densities[0]), (0, None, None)


# What `torch.library.custom_op` makes, without its checks at every call, which take as long as the seeds. Where this
# module was imported before they are there, and go with the first library.
if not hasattr(torch.ops.torch_dropblock, "draw"):
    OPERATORS = torch.library.Library("torch_dropblock", "DEF")  # type: ignore[no-untyped-call]
    for name, signature, function, fake in (
        ("draw", SIGNATURE.format("keep_prob", ALL), _draw, _drawn),
        ("redraw", SIGNATURE.format("density", MASK), _redraw, _redrawn),
    ):
        OPERATORS.define(name + signature, tags=torch.Tag.pt2_compliant_tag)  # type: ignore[no-untyped-call]
        OPERATORS.impl(name, function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"torch_dropblock::{name}", fake, lib=OPERATORS)
    torch.library.register_vmap("torch_dropblock::draw", _draw_mapped, lib=OPERATORS)
# the mask, 1 where dropped and else 0; the scale of what is kept; and the density that `redraw` wants
draw = torch.ops.torch_dropblock.draw.default
# the mask that `draw` made
redraw = torch.ops.torch_dropblock.redraw.default


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
        backend: str,
    ) -> Tensor:
        arguments = _arguments(input, block_size, rate, share_channels, backend)
        # the memory format of the gradient is not known yet when the backward pass is traced
        ctx.block_size, ctx.options = block_size, arguments[3:]
        mask, scale, density = draw(rng_seed, keep_prob, *arguments)
        ctx.save_for_backward(rng_seed, density, scale)
        return _scale_and_zero(input, mask, scale, Draw(*arguments))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rng_seed, density, scale = ctx.saved_tensors
        arguments = *_shape_of(grad, ctx.block_size), *ctx.options
        mask = redraw(rng_seed, density, *arguments)
        return _scale_and_zero(grad, mask, scale, Draw(*arguments)), None, None, None, None, None, None


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
    backend = choice.choose_compiled(input.device)
    if not isinstance(keep_prob, Tensor):
        # a CUDA graph has no place for a tensor of the CPU
        device = input.device if backend == "triton" else torch.device("cpu")
        keep_prob = torch.full((), keep_prob, dtype=torch.float64, device=device)
    rng_seed = draw_rng_seed(input.device, generator)
    apply = _apply if transformed() else _Apply.apply
    output: Tensor = apply(input, rng_seed, keep_prob, block_size, rate, share_channels, backend)
    return input.copy_(output) if inplace else output


def _apply(input: Tensor, rng_seed: Tensor, keep_prob: Tensor, *options: Any) -> Tensor:
    """For `torch.func` and forward mode, which `_Apply` has no rules for: PyTorch derives it, and keeps the mask."""
    arguments = _arguments(input, *options)
    mask, scale, _ = draw(rng_seed, keep_prob, *arguments)
    return _scale_and_zero(input, mask, scale, Draw(*arguments))


def _arguments(
    input: Tensor, block_size: tuple[int, ...], rate: str, share_channels: bool, backend: str
) -> tuple[Any, ...]:
    """What both operators are told beside the RNG seed and the density: the fields of `Draw`."""
    packed_alike = backend == "triton" and share_channels  # a shared mask has one channel
    channels_last = _channels_innermost(input, len(block_size)) and not packed_alike
    return *_shape_of(input, block_size), rate, share_channels, channels_last, backend


def _scale_and_zero(input: Tensor, mask: Tensor, scale: Tensor, draw: Draw) -> Tensor:
    """`sparse.masked` for the compiler to look into."""
    op = torch.float64 if input.dtype == torch.float64 else torch.float32
    output = torch.where(draw.dropped(mask, op), 0.0, input.to(op) * scale.to(op))
    # PyTorch 2.11 loses the gradient of a function whose last operation does nothing
    return output if output.dtype == input.dtype else output.to(input.dtype)


def _shape_of(input: Tensor, block_size: tuple[int, ...]) -> tuple[Sequence[int], Sequence[int], tuple[int, ...]]:
    dims = len(block_size)
    return input.shape[:-dims], input.shape[-dims:], block_size


def _channels_innermost(input: Tensor, dims: int) -> bool:
    """Whether `input` has samples and channels, and these innermost, so that the mask is read as `input` is."""
    if input.dim() != dims + 2 or input.dim() not in sparse.CHANNELS_LAST or input.is_contiguous():
        return False
    return input.is_contiguous(memory_format=sparse.CHANNELS_LAST[input.dim()])
