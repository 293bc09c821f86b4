"""`drop_block1d`, `drop_block2d` and `drop_block3d`: check, draw a key, apply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import unwrap
from typing import Any

import torch
import torch.fx
from torch import Tensor

from ..backends import choice, triton
from ..core import checks
from ..core.blocks import Blocks
from ..core.checks import BlockSize, Rate
from ..core.hints import hinted
from ..core.keys import as_tensor, device_for_keys, draw_key, draw_key_number
from ..core.seeds import table_of
from . import compiled, layouts, tracing, variants
from .eager import ApplyBlocks, Call
from .layouts import Layout
from .record import Record
from .variants import Variant


@hinted(checks.SWAPPED.format(call="drop_block1d(input, 5, keep_prob=0.9)"))
def drop_block1d(
    input: Tensor,
    block_size: BlockSize,
    *,
    keep_prob: float | Tensor = 0.9,
    rate: Rate = "exact",
    share_channels: bool = False,
    share_batch: bool = False,
    scale_by_keep: bool = True,
    with_noise: bool = False,
    training: bool = True,
    inplace: bool = False,
    layout: Layout = "channels_first",
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
) -> Tensor:
    """Drop contiguous stretches of signals of shape (N, C, L) or (C, L); otherwise like `drop_block2d`.

    Examples:
        >>> drop_block1d(torch.ones(4, 8, 100), 5, keep_prob=0.9).shape
        torch.Size([4, 8, 100])
    """
    options = (share_batch, scale_by_keep, with_noise)
    return _drop_block(
        1, input, block_size, keep_prob, rate, share_channels, options, training, inplace, layout, generator, key
    )


@hinted(checks.SWAPPED.format(call="drop_block2d(input, 7, keep_prob=0.9)"))
def drop_block2d(
    input: Tensor,
    block_size: BlockSize,
    *,
    keep_prob: float | Tensor = 0.9,
    rate: Rate = "exact",
    share_channels: bool = False,
    share_batch: bool = False,
    scale_by_keep: bool = True,
    with_noise: bool = False,
    training: bool = True,
    inplace: bool = False,
    layout: Layout = "channels_first",
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
) -> Tensor:
    """Drop contiguous blocks of feature maps and scale the rest by the number of units over the number kept.

    Every sample and channel has its own blocks, and every block lies whole inside the map. A dropped unit becomes 0,
    even if it held inf or NaN, and so does its gradient. Kept units are counted over the whole tensor, so a tensor of
    ones keeps its mean.

    Args:
        input: feature maps of shape (N, C, H, W) or (C, H, W); float16, bfloat16, float32 or float64, any strides.
        block_size: height and width of a block, one for both or two: units, clamped to the map, or a share of the map
            such as `"30%"`, rounded down to at least 1.
        keep_prob: probability that a unit is kept, in [0, 1]; a float, or a floating-point tensor of no dimensions.
            In compiled code a float is a constant, and each new value recompiles; a new value of a tensor does not.
            If Triton draws the mask, the host does not wait for a tensor on a GPU: γ is solved there. Its value at
            that time, or at the replay of a CUDA graph, is clamped to [0, 1].
        rate: `"exact"` keeps `keep_prob` of the units on average; `"paper"` uses the paper's γ, which keeps more.
        share_channels: one mask per sample for all of its channels.
        share_batch: one mask for all samples, that of a batch of one.
        scale_by_keep: scale the kept units; if False they stay as they are.
        with_noise: standard normal noise where dropped, which also follows from the key; where units share a mask, they
            share the noise. Its gradient is 0. With `scale_by_keep=False` this is what timm's `with_noise` does.
        training: if False, return `input` itself, without checks. With `keep_prob` 1, `input` is also returned, after
            the checks.
        inplace: write into `input`.
        layout: `"channels_first"`; `"channels_last"` for (N, H, W, C); `"tokens"` for (N, prefix + H·W, C), a square
            grid behind class and register tokens, which are not dropped; or the size of a grid that is not square.
            The mask of a key is that of the same maps with channels first.
        generator: source of randomness, on the device of `input`; PyTorch's default one if None. Use it only in eager
            mode, and not with activation checkpointing, which restores only the default generator. Processes with
            equal seeds draw equal masks: `torch.manual_seed(seed + rank)` gives each its own.
        key: 64 bits, an int or an int64 tensor of no dimensions, which determine the mask on every device; then no
            generator is used. `drop_block_mask` returns the mask of a key. If None, a key is drawn.

    Returns:
        A tensor of the shape, dtype and memory format of `input`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of its range, or `input` has the wrong number of dimensions. Or `inplace=True` is
            used on a leaf that requires grad, a view of one, or a tensor whose elements may share memory.

    Source: Ghiasi, Lin, Le, "DropBlock", NeurIPS 2018, algorithm 1.

    Examples:
        >>> x = torch.ones(64, 128, 28, 28)
        >>> y = drop_block2d(x, 7, keep_prob=0.9)
        >>> round((y == 0).float().mean().item(), 2), round(y.mean().item(), 4)
        (0.1, 1.0)
    """
    options = (share_batch, scale_by_keep, with_noise)
    return _drop_block(
        2, input, block_size, keep_prob, rate, share_channels, options, training, inplace, layout, generator, key
    )


@hinted(checks.SWAPPED.format(call="drop_block3d(input, (3, 5, 5), keep_prob=0.9)"))
def drop_block3d(
    input: Tensor,
    block_size: BlockSize,
    *,
    keep_prob: float | Tensor = 0.9,
    rate: Rate = "exact",
    share_channels: bool = False,
    share_batch: bool = False,
    scale_by_keep: bool = True,
    with_noise: bool = False,
    training: bool = True,
    inplace: bool = False,
    layout: Layout = "channels_first",
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
) -> Tensor:
    """Drop contiguous blocks of volumes of shape (N, C, D, H, W) or (C, D, H, W); otherwise like `drop_block2d`.

    Examples:
        >>> drop_block3d(torch.ones(2, 4, 8, 16, 16), (3, 5, 5), keep_prob=0.9).shape
        torch.Size([2, 4, 8, 16, 16])
    """
    options = (share_batch, scale_by_keep, with_noise)
    return _drop_block(
        3, input, block_size, keep_prob, rate, share_channels, options, training, inplace, layout, generator, key
    )


# without the hints for wrong calls, which calls from this library do not need
DROP_BLOCK: dict[int, Callable[..., Tensor]] = {
    1: unwrap(drop_block1d),
    2: unwrap(drop_block2d),
    3: unwrap(drop_block3d),
}


def drop_block_mask(
    shape: Sequence[int],
    block_size: BlockSize,
    *,
    dims: int = 2,
    keep_prob: float = 0.9,
    rate: Rate = "exact",
    share_channels: bool = False,
    share_batch: bool = False,
    key: int | Tensor | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return the mask of a key: True where `drop_block1d`, `drop_block2d` or `drop_block3d` keeps a unit.

    Args:
        shape: shape of the input, (N, C, *S) or (C, *S) with `dims` spatial dimensions.
        block_size: as for `drop_block2d`.
        dims: number of spatial dimensions, 1, 2 or 3.
        keep_prob: probability that a unit is kept, in [0, 1].
        rate: as for `drop_block2d`.
        share_channels: one mask per sample for all of its channels, repeated in the result.
        share_batch: one mask for all samples, repeated in the result.
        key: 64 bits, as for `drop_block2d`; drawn from PyTorch's generator of the device if None.
        device: device of the result; the CPU if None.

    Returns:
        A bool tensor of shape `shape`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of its range, or `shape` has the wrong number of dimensions.

    Examples:
        >>> x = torch.rand(4, 8, 28, 28) + 1
        >>> kept = drop_block_mask(x.shape, 7, keep_prob=0.9, key=42)
        >>> torch.equal(drop_block2d(x, 7, keep_prob=0.9, key=42) != 0, kept)
        True
    """
    checks.spatial_dims(dims)
    size = checks.sizes("shape", shape)
    if len(size) not in (dims + 1, dims + 2):
        raise ValueError(f"shape must have {dims + 1} or {dims + 2} dimensions, got {size}")
    ones = torch.ones(size, dtype=torch.float32, device="cpu" if device is None else device)
    shared: dict[str, Any] = {"share_channels": share_channels, "share_batch": share_batch}
    return DROP_BLOCK[dims](ones, block_size, keep_prob=keep_prob, rate=rate, inplace=True, key=key, **shared) != 0


def _drop_block(
    dims: int,
    input: Tensor,
    block_size: BlockSize,
    keep_prob: float | Tensor,
    rate: Rate,
    share_channels: bool,
    options: tuple[bool, bool, bool],
    training: bool,
    inplace: bool,
    layout: Layout,
    generator: torch.Generator | None,
    key: int | Tensor | None,
) -> Tensor:
    """Check all arguments except the input, then drop."""
    if not checks.flag("training", training):
        return input
    sizes = checks.block_size(block_size, dims)
    if isinstance(keep_prob, Tensor):
        checks.scalar("keep_prob", keep_prob)
    else:
        keep_prob = checks.probability("keep_prob", keep_prob)
    checks.rate(rate)
    checks.flag("share_channels", share_channels)
    checks.flag("inplace", inplace)
    layout = layouts.checked(layout, dims)
    key = checks.key(key, generator)
    variant = variants.variant_of(*options)
    return drop_laid_out(input, layout, sizes, keep_prob, rate, share_channels, inplace, generator, key, None, variant)


torch.fx.wrap("_drop_block")  # one node in a trace of `torch.fx`, since a trace has no shapes to check


def drop_laid_out(
    input: Tensor,
    layout: Layout,
    block_size: tuple[int, ...],
    keep_prob: float | Tensor,
    rate: Rate,
    share_channels: bool,
    inplace: bool,
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
    record: Record | None = None,
    variant: Variant | None = None,
) -> Tensor:
    """Call `drop` for an input in any layout."""
    if layout == "channels_first":
        return drop(input, block_size, keep_prob, rate, share_channels, inplace, generator, key, record, variant)

    def drop_maps(maps: Tensor, block: tuple[int, ...], inplace: bool) -> Tensor:
        return drop(maps, block, keep_prob, rate, share_channels, inplace, generator, key, record, variant)

    return layouts.through(drop_maps, input, layout, block_size, inplace)


def drop(
    input: Tensor,
    block_size: tuple[int, ...],
    keep_prob: float | Tensor,
    rate: Rate,
    share_channels: bool,
    inplace: bool,
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
    record: Record | None = None,
    variant: Variant | None = None,
) -> Tensor:
    """Check `input`, `generator` and the value of `keep_prob`, then drop; callers have checked the other arguments."""
    dims = len(block_size)
    checks.feature_map(input, dims)
    if generator is not None:
        checks.generator(generator, input.device)
    followed = tracing.followed(input)
    if isinstance(keep_prob, Tensor) and not (followed or keep_prob.is_cuda):
        keep_prob = checks.probability("keep_prob", keep_prob)
    drops = isinstance(keep_prob, Tensor) or keep_prob < 1.0
    if not torch.compiler.is_compiling():
        if drops:
            tracing.not_under_jit_trace()
        if inplace:
            checks.writable(input)
    if variant is not None and drops:

        def draw(ones: Tensor, inplace: bool) -> Tensor:
            return drop(ones, block_size, keep_prob, rate, False, inplace, generator, key, record)

        output = variants.apply(variant, draw, input, dims, share_channels, inplace, generator, key)
        if record is not None:
            record.units = input.numel()
        return output
    if record is not None:
        record.begin(keep_prob, input.numel())
    if not drops:
        return input
    if followed:
        return compiled.drop_block(input, block_size, keep_prob, rate, share_channels, inplace, generator, key)
    if input.numel() == 0:
        return input
    blocks = Blocks.of(tuple(input.shape[:-dims]), tuple(input.shape[-dims:]), block_size, share_channels)
    asked = choice.asked_for(input, blocks)
    if isinstance(keep_prob, Tensor):
        checks.scalar("keep_prob", keep_prob)
        if choice.serving(asked, input, blocks) == "triton":  # γ is solved on the GPU, so the host does not wait
            table = triton.solved_table(keep_prob, blocks.size, blocks.block, rate, blocks.streams.length)
            return _apply(input, Call(blocks, table, asked), inplace, generator, key)
        keep_prob = checks.probability("keep_prob", keep_prob)
        if keep_prob == 1.0:
            return input
    table_or_none = table_of(blocks.size, blocks.block, blocks.streams.length, keep_prob, rate)
    call = Call(blocks, table_or_none, asked)
    if record is not None:
        record.call = call
    return _apply(input, call, inplace, generator, key)


def _apply(
    input: Tensor, call: Call, inplace: bool, generator: torch.Generator | None, key: int | Tensor | None
) -> Tensor:
    on_host = input.device.type == "cpu" and call.asked != "triton" and not tracing.transformed()
    if key is None:
        key = draw_key_number(generator) if on_host else draw_key(input.device, generator)
    elif on_host:
        key = int(key)
    else:
        key = as_tensor(key, device_for_keys(input.device))
        if torch._C._functorch.is_batchedtensor(key):
            raise ValueError("key must be the same for all that torch.vmap maps over; use randomness='different'")
    output: Tensor = ApplyBlocks.apply(input, key, call, inplace)
    return output
