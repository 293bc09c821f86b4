"""The layer inside `torch.compile`: drawing is an opaque operator, applying is visible to the compiler.

    key, keep_prob ── draw ──> mask, scale, table ── where, * ──> output      fused with its neighbours
    key ───────────── redraw ──> mask ────────────── where, * ──> gradient    in the backward pass

`draw` solves γ from the value that `keep_prob` has when it runs: a schedule changes data, so nothing is recompiled.
The graph draws the key by an operation that the compiler treats as random, so it neither merges nor repeats it.
`draw` and `redraw` are separate operators; one operator, called twice with equal arguments, would be merged, and the
mask would be kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backends import choice, native, packed, reference, sparse, triton
from ..core import checks, noise
from ..core.blocks import Blocks
from ..core.checks import Rate
from ..core.keys import as_tensor, draw_key
from ..core.seeds import TABLE, draw_seeds, table_of
from .tracing import transformed

MASK, ALL = "Tensor", "(Tensor, Tensor, Tensor)"
NOISE = "(Tensor key, SymInt[] shape, ScalarType dtype) -> Tensor"
SIGNATURE = (
    "(Tensor key, Tensor keep_prob, {}SymInt[] lead, SymInt[] size, SymInt[] block_size, str rate, "
    "bool share_channels, bool channels_last, str backend='sparse') -> {}"
)


@dataclass
class Draw:
    """Arguments shared by both operators, beside the key and `keep_prob`."""

    lead: Sequence[int]
    size: Sequence[int]
    block_size: Sequence[int]
    rate: str
    share_channels: bool
    channels_last: bool
    backend: str = "sparse"

    @property
    def is_empty(self) -> bool:
        return 0 in (*self.lead, *self.size)

    @property
    def own_lead(self) -> tuple[int, ...]:
        return (*self.lead[:-1], 1) if self.share_channels else tuple(self.lead)

    @property
    def order(self) -> str:
        """Order of the bits of the mask, see `packed.py`."""
        return "channels" if self.channels_last else "string" if self.backend == "triton" else "planes"

    def empty_mask(self, device: torch.device) -> Tensor:
        shape = packed.shape(self.own_lead, tuple(self.size), self.order)
        return torch.empty(shape, dtype=torch.int32, device=device)

    def empty_scale(self, device: torch.device) -> Tensor:
        return torch.empty((), dtype=sparse.widest_float(device), device=device)

    def empty_table(self, device: torch.device) -> Tensor:
        return torch.empty(TABLE, dtype=torch.float64, device=device if self.backend == "triton" else "cpu")

    def empty(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mask, the scale and the table, without values."""
        return self.empty_mask(device), self.empty_scale(device), self.empty_table(device)

    def blocks(self, keep_prob: Tensor) -> tuple[Blocks, Tensor | None]:
        """Return the blocks and the table of a keep_prob; check its value unless only a GPU holds it."""
        lead, size, block_size = tuple(self.lead), tuple(self.size), tuple(self.block_size)
        if keep_prob.numel() > 1:  # of a layer whose block grows
            keep_prob, block_size = keep_prob[0], tuple(map(int, keep_prob[1:].tolist()))
        rate, blocks = checks.rate(self.rate), Blocks.of(lead, size, block_size, self.share_channels)
        if keep_prob.device.type != "cpu" and self.backend == "triton":
            return blocks, triton.solved_table(keep_prob, size, blocks.block, rate, blocks.streams.length)
        value = checks.probability("keep_prob", keep_prob.squeeze())
        return blocks, table_of(blocks.size, blocks.block, blocks.streams.length, value, rate)

    def mask(self, key: Tensor, blocks: Blocks, table: Tensor | None, count: bool = False) -> tuple[Tensor, Tensor]:
        """Return the mask and its scale; the scale may be uninitialised unless `count` is True."""
        if table is None:
            return self.empty_mask(key.device).fill_(-1), self.empty_scale(key.device).fill_(0.0)
        if self.backend == "triton":
            launch: Any = triton.launcher()
            given = None if count else self.empty_scale(key.device)
            drawn = launch.draw(key, blocks, triton.on(key.device, table), scale=given)
            words = launch.channels_inside(drawn) if self.channels_last else drawn.words.view(torch.int32)
            return words, drawn.scale
        if self.backend == "native" and native.serves_mask(blocks):
            mask = self.empty_mask(key.device)
            return mask, torch.tensor(native.draw_mask(mask, self.order, key, blocks, table), dtype=torch.float64)
        if self.backend == "reference":
            dropped = ~reference.kept(key, blocks, table)
        else:
            dropped = sparse.dropped_mask(draw_seeds(key, blocks, table), blocks, key.device, self.channels_last)
        scale = sparse.scale_of(dropped) if count else self.empty_scale(key.device)
        return packed.pack(dropped, len(self.size), self.order), scale

    def dropped(self, mask: Tensor) -> Tensor:
        return packed.unpack(mask, self.own_lead, tuple(self.size), self.order)


def _draw(key: Tensor, keep_prob: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    how = Draw(*arguments)
    if how.is_empty:
        mask, scale, nothing = how.empty(key.device)
        return mask, scale.fill_(1.0), nothing.fill_(1.0)
    blocks, table = how.blocks(keep_prob)
    mask, scale = how.mask(key, blocks, table, count=True)
    if table is None or table.device.type == "cpu":
        # An operator may not return a tensor that it keeps, and `redraw` makes no use of this one.
        table = how.empty_table(key.device).fill_(1.0)
    return mask, scale, table


def _redraw(key: Tensor, keep_prob: Tensor, table: Tensor | None, *arguments: Any) -> Tensor:
    how = Draw(*arguments)
    if how.is_empty:
        return how.empty_mask(key.device)
    if table is None or keep_prob.device.type == "cpu":
        return how.mask(key, *how.blocks(keep_prob))[0]
    blocks = Blocks.of(tuple(how.lead), tuple(how.size), tuple(how.block_size), how.share_channels)
    return how.mask(key, blocks, table)[0]


def _drawn(key: Tensor, keep_prob: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return Draw(*arguments).empty(key.device)


def _redrawn(key: Tensor, keep_prob: Tensor, table: Tensor | None, *arguments: Any) -> Tensor:
    return Draw(*arguments).empty_mask(key.device)


def _draw_mapped(
    info: Any, in_dims: tuple[Any, ...], keys: Tensor, keep_prob: Tensor, *arguments: Any
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, None, None]]:
    """Draw a mask for each mapped key under `torch.vmap`; units are counted over all masks, as in eager mode."""
    if in_dims[1] is not None:
        raise ValueError("keep_prob cannot be mapped over")
    drawn = [draw(key, keep_prob, *arguments) for key in keys.unbind(in_dims[0])]
    masks, scales, tables = zip(*drawn, strict=True)
    return (torch.stack(masks), len(scales) / torch.stack(scales).reciprocal().sum(), tables[0]), (0, None, None)


def _made(key: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device=key.device)


def _noise_mapped(
    info: Any, in_dims: tuple[Any, ...], keys: Tensor, shape: Sequence[int], dtype: torch.dtype
) -> tuple[Tensor, int]:
    return torch.stack([normal(key, shape, dtype) for key in keys.unbind(in_dims[0])]), 0


# `torch.library.custom_op` would add checks at every call that take as long as the drawing. If this module was imported
# before, its operators exist already and live as long as that first library.
if not hasattr(torch.ops.torch_dropblock, "draw"):
    OPERATORS = torch.library.Library("torch_dropblock", "DEF")  # type: ignore[no-untyped-call]
    for name, signature, function, fake in (
        ("draw", SIGNATURE.format("", ALL), _draw, _drawn),
        ("redraw", SIGNATURE.format("Tensor? table, ", MASK), _redraw, _redrawn),
        ("normal", NOISE, noise.normal, _made),  # its integers would overflow in loops that the compiler writes
    ):
        OPERATORS.define(name + signature, tags=torch.Tag.pt2_compliant_tag)  # type: ignore[no-untyped-call]
        OPERATORS.impl(name, function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"torch_dropblock::{name}", fake, lib=OPERATORS)
    torch.library.register_vmap("torch_dropblock::draw", _draw_mapped, lib=OPERATORS)
    torch.library.register_vmap("torch_dropblock::normal", _noise_mapped, lib=OPERATORS)
# returns the mask (words of `packed.py`), the scale of the kept units, and the table for `redraw` on a GPU
draw = torch.ops.torch_dropblock.draw.default
# returns the mask that `draw` made
redraw = torch.ops.torch_dropblock.redraw.default
# returns the noise of a key, in eager mode too, for the sake of `torch.vmap`
normal = torch.ops.torch_dropblock.normal.default


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
        mask, scale, table = draw(key, keep_prob, *arguments)
        # the host has a cache of tables; a GPU would have to solve γ again
        ctx.save_for_backward(key, keep_prob, scale, table if backend == "triton" else None)
        return _scale_and_zero(input, mask, scale, Draw(*arguments))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        key, keep_prob, scale, table = ctx.saved_tensors
        arguments = *_shape_of(grad, ctx.block_size), *ctx.options
        mask = redraw(key, keep_prob, table, *arguments)
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
    mask, scale, _ = draw(key, keep_prob, *arguments)
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
