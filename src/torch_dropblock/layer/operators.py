"""The operators that draw in compiled code, which the compiler does not look into.

`draw` solves γ from the value that `keep_prob` has when it runs: a schedule changes data, so nothing is recompiled. The
host makes the table for a value that was noted with its tensor; Triton solves γ for others on a GPU.
`draw` and `redraw` are separate operators; one operator, called twice with equal arguments, would be merged, and the
mask would be kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from ..backends import native, packed, reference, sparse, triton
from ..core import checks, noise
from ..core.blocks import Blocks
from ..core.seeds import TABLE, draw_seeds, table_of

MASK, ALL = "Tensor", "(Tensor, Tensor, Tensor)"
NOISE = "(Tensor key, SymInt[] shape, ScalarType dtype) -> Tensor"
SIGNATURE = (
    "(Tensor key, {}, SymInt[] lead, SymInt[] size, SymInt[] block_size, str rate, "
    "bool share_channels, bool channels_last, str backend='sparse') -> {}"
)


def note(keep_prob: Tensor, value: float) -> Tensor:
    """Note the value of a `keep_prob` with the tensor, so that the host need not wait for the device that holds it."""
    if not torch.compiler.is_dynamo_compiling():  # which cannot trace it
        vars(keep_prob)["noted"] = value, keep_prob._version
    return keep_prob


def noted(keep_prob: Tensor) -> float | None:
    """Return the value that was noted with a tensor, None if there is none or the tensor may be another by now."""
    value, version = vars(keep_prob).get("noted", (None, None))
    if value is None or keep_prob.is_inference() or version != keep_prob._version:
        return None
    return float(value)


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

    @classmethod
    def of(cls, lead: Sequence[int], size: Sequence[int], block_size: Sequence[int], *options: Any) -> Draw:
        """Return the one that was made before with equal arguments, whose sizes are numbers and not symbols."""
        return _draw_of(tuple(lead), tuple(size), tuple(block_size), *options)

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

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of the words of the mask."""
        return packed.shape(self.own_lead, tuple(self.size), self.order)

    def empty_mask(self, device: torch.device) -> Tensor:
        return torch.empty(self.shape, dtype=torch.int32, device=device)

    def empty_scale(self, device: torch.device) -> Tensor:
        return torch.empty((), dtype=sparse.widest_float(device), device=device)

    def empty_table(self, device: torch.device) -> Tensor:
        return torch.empty(TABLE, dtype=torch.float64, device=device if self.backend == "triton" else "cpu")

    def empty(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mask, the scale and the table, without values."""
        return self.empty_mask(device), self.empty_scale(device), self.empty_table(device)

    def blocks(self, keep_prob: Tensor) -> tuple[Blocks, Tensor | None]:
        """Return the blocks and the table of a keep_prob; check its value unless it is noted or only a GPU holds it."""
        lead, size, block_size = tuple(self.lead), tuple(self.size), tuple(self.block_size)
        if keep_prob.numel() > 1:  # of a layer whose block grows
            keep_prob, block_size = keep_prob[0], tuple(map(int, keep_prob[1:].tolist()))
        rate, blocks = checks.rate(self.rate), Blocks.of(lead, size, block_size, self.share_channels)
        on_device = keep_prob.device.type != "cpu" and self.backend == "triton"
        # a graph is replayed with other values at the same address
        value = None if on_device and torch.cuda.is_current_stream_capturing() else noted(keep_prob)
        if value is None and not on_device:
            value = checks.probability("keep_prob", keep_prob.squeeze())
        where = blocks.size, blocks.block, blocks.streams.length
        table = None if value is None else table_of(*where, value, rate)
        if table is None and on_device:  # also for a keep_prob of 0, for which the host has no table
            table = triton.solved_table(keep_prob, size, blocks.block, rate, blocks.streams.length)
        return blocks, table

    def mask(
        self, key: Tensor, blocks: Blocks, table: Tensor | None, count: bool = False, copy: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the mask and its scale; unless `count` is True, the second is any tensor.

        `copy` is memory for a copy of the table, which Triton makes.
        """
        if table is None:
            return self.empty_mask(key.device).fill_(-1), self.empty_scale(key.device).fill_(0.0)
        if self.backend == "triton":
            launch: Any = triton.launcher()
            table = triton.on(key.device, table)
            scale = None if count else table  # nothing is counted for a scale that is given, whatever it is
            if self.channels_last:
                words, counted = launch.draw_channels(key, blocks, table, scale=scale, copy=copy)
                return words, counted
            drawn = launch.draw(key, blocks, table, scale=scale, copy=copy)
            return drawn.words.view(torch.int32), drawn.scale
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


@lru_cache(maxsize=1024)
def _draw_of(*arguments: Any) -> Draw:
    return Draw(*arguments)


def _draw(key: Tensor, keep_prob: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    how = Draw.of(*arguments)
    if how.is_empty:
        mask, scale, nothing = how.empty(key.device)
        return mask, scale.fill_(1.0), nothing.fill_(1.0)
    blocks, table = how.blocks(keep_prob)
    if how.backend == "triton" and table is not None:
        solved = table.device.type != "cpu"
        copy = table if solved else how.empty_table(key.device)  # an operator may not return a tensor that it keeps
        return *how.mask(key, blocks, table, count=True, copy=None if solved else copy), copy
    nothing = how.empty_table(key.device)  # `redraw` makes no use of it
    if nothing.device.type == "cpu":
        nothing.fill_(1.0)
    return *how.mask(key, blocks, table, count=True), nothing


def _redraw(key: Tensor, keep_prob: Tensor | None, table: Tensor | None, *arguments: Any) -> Tensor:
    how = Draw.of(*arguments)
    if how.is_empty:
        return how.empty_mask(key.device)
    if keep_prob is not None:
        return how.mask(key, *how.blocks(keep_prob))[0]
    blocks = Blocks.of(tuple(how.lead), tuple(how.size), tuple(how.block_size), how.share_channels)
    return how.mask(key, blocks, table)[0]


def _drawn(key: Tensor, keep_prob: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    triton.prepare(key.device)  # each trace comes here before its code runs
    return Draw(*arguments).empty(key.device)


def _redrawn(key: Tensor, keep_prob: Tensor | None, table: Tensor | None, *arguments: Any) -> Tensor:
    return Draw(*arguments).empty_mask(key.device)


def _draw_mapped(
    operator: Any, info: Any, in_dims: tuple[Any, ...], keys: Tensor, keep_prob: Tensor, *arguments: Any
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, None, None]]:
    """Draw a mask for each mapped key under `torch.vmap`; units are counted over all masks, as in eager mode."""
    if in_dims[1] is not None:
        raise ValueError("keep_prob cannot be mapped over")
    drawn = [operator(key, keep_prob, *arguments) for key in keys.unbind(in_dims[0])]
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
    drawing = SIGNATURE.format("Tensor keep_prob", ALL), _draw, _drawn
    drawing_again = SIGNATURE.format("Tensor? keep_prob, Tensor? table", MASK), _redraw, _redrawn
    for name, (signature, function, fake) in (
        ("draw", drawing),
        ("redraw", drawing_again),
        ("draw_by_host", drawing),
        ("redraw_by_host", drawing_again),
        ("normal", (NOISE, noise.normal, _made)),  # its integers would overflow in loops that the compiler writes
    ):
        tags = [torch.Tag.pt2_compliant_tag, *[torch.Tag.cudagraph_unsafe] * name.endswith("by_host")]
        OPERATORS.define(name + signature, tags=tags)  # type: ignore[no-untyped-call]
        OPERATORS.impl(name, function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"torch_dropblock::{name}", fake, lib=OPERATORS)
    for name in ("draw", "draw_by_host"):
        mapped = partial(_draw_mapped, getattr(torch.ops.torch_dropblock, name).default)
        torch.library.register_vmap(f"torch_dropblock::{name}", mapped, lib=OPERATORS)
    torch.library.register_vmap("torch_dropblock::normal", _noise_mapped, lib=OPERATORS)
# returns the mask (words of `packed.py`), the scale of the kept units, and the table for `redraw` on a GPU
draw = torch.ops.torch_dropblock.draw.default
# returns the mask that `draw` made, from its `keep_prob` or its table, see `needed_again`
redraw = torch.ops.torch_dropblock.redraw.default
# the same two, whose host reads `keep_prob` at each call: a CUDA graph would repeat the value that it was captured with
draw_by_host = torch.ops.torch_dropblock.draw_by_host.default
redraw_by_host = torch.ops.torch_dropblock.redraw_by_host.default
# returns the noise of a key, in eager mode too, for the sake of `torch.vmap`
normal = torch.ops.torch_dropblock.normal.default


def needed_again(keep_prob: Tensor, table: Tensor, backend: str) -> tuple[Tensor | None, Tensor | None]:
    """Return what `redraw` needs: `keep_prob`, whose table the host keeps, or the table that Triton made of it.

    A layer writes a new `keep_prob` to the same memory on a GPU, since CUDA graphs remember addresses.
    """
    return (None, table) if backend == "triton" and keep_prob.device.type != "cpu" else (keep_prob, None)


def serving(key: Tensor, keep_prob: Tensor, backend: str) -> tuple[Any, Any]:
    """Return the two operators for these devices: those of the host where only the host of a GPU can solve γ."""
    if key.device.type != "cpu" and (keep_prob.device.type == "cpu" or backend != "triton"):
        return draw_by_host, redraw_by_host
    return draw, redraw
