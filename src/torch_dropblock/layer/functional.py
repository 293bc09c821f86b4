"""`drop_block1d`, `drop_block2d` and `drop_block3d`: check, draw an RNG seed, apply."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from inspect import unwrap

import torch
import torch.fx
from torch import Tensor

from ..backends import choice
from ..core import checks
from ..core.checks import Rate
from ..core.hints import hinted
from ..core.rng import draw_rng_number, draw_rng_seed
from ..core.seeds import Blocks
from . import compiled, tracing
from .eager import ApplyBlocks, Scale


@hinted(checks.SWAPPED.format(call="drop_block1d(input, 5, keep_prob=0.9)"))
def drop_block1d(
    input: Tensor,
    block_size: int | Sequence[int],
    *,
    keep_prob: float | Tensor = 0.9,
    rate: Rate = "exact",
    share_channels: bool = False,
    training: bool = True,
    inplace: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Drop contiguous stretches of signals of shape (N, C, L) or (C, L); otherwise as `drop_block2d`.

    Examples:
        >>> drop_block1d(torch.ones(4, 8, 100), 5, keep_prob=0.9).shape
        torch.Size([4, 8, 100])
    """
    return _drop_block(1, input, block_size, keep_prob, rate, share_channels, training, inplace, generator)


@hinted(checks.SWAPPED.format(call="drop_block2d(input, 7, keep_prob=0.9)"))
def drop_block2d(
    input: Tensor,
    block_size: int | Sequence[int],
    *,
    keep_prob: float | Tensor = 0.9,
    rate: Rate = "exact",
    share_channels: bool = False,
    training: bool = True,
    inplace: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Drop contiguous blocks of feature maps and scale the rest by the number of units over the number kept.

    Every sample and channel has blocks of its own, each whole inside the map. A dropped unit becomes 0 whatever it
    held, inf and NaN included, and so does its gradient. What is kept is counted over the whole tensor, so a tensor of
    ones keeps its mean.

    Args:
        input: feature maps of shape (N, C, H, W) or (C, H, W); float16, bfloat16, float32 or float64, any strides.
        block_size: height and width of a block, one int for both or two; clamped to the map.
        keep_prob: probability that a unit is kept, in [0, 1]; a float, or a floating-point tensor of no dimensions.
            To compiled code a float is a constant: it is compiled again for each new one, but not for a tensor.
            A tensor on a GPU is not waited for where Triton draws the mask: γ is solved there, from the value that
            the tensor has then, or has when a CUDA graph is replayed, cut to [0, 1].
        rate: `"exact"` keeps `keep_prob` of the units on average; `"paper"` uses the paper's γ, which keeps more.
        share_channels: one mask per sample for all of its channels.
        training: if False, `input` itself is returned, whatever it is, as a feature map is if `keep_prob` is 1.
        inplace: write into `input`.
        generator: source of randomness, on the device of `input`; PyTorch's default one if None. For eager mode,
            and not together with activation checkpointing, which restores the default generator alone. Processes
            that are seeded alike draw alike: `torch.manual_seed(seed + rank)` sets them apart.

    Returns:
        A tensor of the shape, dtype and memory format of `input`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of its range, `input` has the wrong number of dimensions, or `inplace` is
            asked for on a leaf that requires grad, a view of one, or a tensor whose elements may share memory.

    Source: Ghiasi, Lin, Le, "DropBlock", NeurIPS 2018, algorithm 1.

    Examples:
        >>> x = torch.ones(64, 128, 28, 28)
        >>> y = drop_block2d(x, 7, keep_prob=0.9)
        >>> round((y == 0).float().mean().item(), 2), round(y.mean().item(), 4)
        (0.1, 1.0)
    """
    return _drop_block(2, input, block_size, keep_prob, rate, share_channels, training, inplace, generator)


@hinted(checks.SWAPPED.format(call="drop_block3d(input, (3, 5, 5), keep_prob=0.9)"))
def drop_block3d(
    input: Tensor,
    block_size: int | Sequence[int],
    *,
    keep_prob: float | Tensor = 0.9,
    rate: Rate = "exact",
    share_channels: bool = False,
    training: bool = True,
    inplace: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Drop contiguous blocks of volumes of shape (N, C, D, H, W) or (C, D, H, W); otherwise as `drop_block2d`.

    Examples:
        >>> drop_block3d(torch.ones(2, 4, 8, 16, 16), (3, 5, 5), keep_prob=0.9).shape
        torch.Size([2, 4, 8, 16, 16])
    """
    return _drop_block(3, input, block_size, keep_prob, rate, share_channels, training, inplace, generator)


# for the layers, whose calls fit
DROP_BLOCK: dict[int, Callable[..., Tensor]] = {
    1: unwrap(drop_block1d),
    2: unwrap(drop_block2d),
    3: unwrap(drop_block3d),
}


def _drop_block(
    dims: int,
    input: Tensor,
    block_size: int | Sequence[int],
    keep_prob: float | Tensor,
    rate: Rate,
    share_channels: bool,
    training: bool,
    inplace: bool,
    generator: torch.Generator | None,
) -> Tensor:
    if not checks.flag("training", training):
        return input
    input = checks.feature_map(input, dims)
    followed = tracing.followed(input)
    block_size = checks.positive_ints("block_size", block_size, dims)
    if not isinstance(keep_prob, Tensor) or not (followed or keep_prob.is_cuda):
        keep_prob = checks.probability("keep_prob", keep_prob)
    checks.rate(rate)
    checks.flag("share_channels", share_channels)
    checks.generator(generator, input.device)
    nothing = not isinstance(keep_prob, Tensor) and keep_prob == 1.0
    if not (nothing or torch.compiler.is_compiling()):
        tracing.not_under_jit_trace()
    if checks.flag("inplace", inplace) and not torch.compiler.is_compiling():
        checks.writable(input)
    if nothing:
        return input
    if followed:
        return compiled.drop_block(input, block_size, keep_prob, rate, share_channels, inplace, generator)
    if input.numel() == 0:
        return input
    lead, size = tuple(input.shape[:-dims]), tuple(input.shape[-dims:])
    gap = None
    if isinstance(keep_prob, Tensor):  # on a GPU: left there if γ can be solved there
        gap = choice.mean_gap(keep_prob, input.device, size, block_size, rate)
        keep_prob = checks.probability("keep_prob", keep_prob) if gap is None else math.nan
        if keep_prob == 1.0:
            return input
    blocks = Blocks.of(lead, size, block_size, keep_prob, rate, share_channels)
    scale = Scale(backend=choice.choose(input, blocks), gap=gap)
    plain = input.device.type == "cpu" and scale.backend != "triton" and not tracing.transformed()
    rng_seed = draw_rng_number(generator) if plain else draw_rng_seed(input.device, generator)
    output: Tensor = ApplyBlocks.apply(input, rng_seed, blocks, scale, inplace)
    return output


torch.fx.wrap("_drop_block")  # one node of a graph of `torch.fx`, which knows no shapes to check
