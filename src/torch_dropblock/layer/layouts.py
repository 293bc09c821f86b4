"""Layouts of a tensor: views that put the channels before the map, and back. Nothing is copied.

    channels_first      (N, C, *S) or (C, *S)
    channels_last       (N, *S, C) or (*S, C)
    tokens              (N, prefix + S^dims, C)     a square grid, the largest that fits; the prefix is not dropped
    (H, W), (D, H, W)   (N, prefix + H * W, C)      a grid of this size

Such a view of contiguous channels-last memory is what PyTorch calls `torch.channels_last`, which the backends know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ..core import checks
from ..core.geometry import Size

Layout = Literal["channels_first", "channels_last", "tokens"] | tuple[int, ...]
NAMED = ("channels_first", "channels_last", "tokens")
AXES = ("L", "H, W", "D, H, W")


def checked(layout: object, dims: int) -> Layout:
    """Return a layout, a grid as a tuple; raise if it is none for this number of map dimensions."""
    if isinstance(layout, str) and layout in NAMED:
        return layout  # type: ignore[return-value]
    if isinstance(layout, str) or not isinstance(layout, Sequence):
        error = ValueError if isinstance(layout, str) else TypeError
        raise error(
            f"layout must be 'channels_first', 'channels_last', 'tokens' or the size of a token grid, got {layout!r}"
        )
    return checks.positive_ints("layout", layout, dims)


def shape_text(layout: Layout, dims: int) -> str:
    """Return the batched shape of a layout, as in `(N, C, H, W)`."""
    axes = AXES[dims - 1]
    if layout == "channels_first":
        return f"(N, C, {axes})"
    if layout == "channels_last":
        return f"(N, {axes}, C)"
    grid = axes.replace(", ", "·") if layout == "tokens" else "·".join(map(str, layout))
    return f"(N, prefix + {grid}, C)"


def rank(layout: Layout, dims: int) -> int:
    """Return the number of dimensions of a batched tensor."""
    return dims + 2 if layout in ("channels_first", "channels_last") else 3


def size_of(shape: Sequence[int], layout: Layout, dims: int) -> Size:
    """Return the spatial size of a map in a tensor of this shape."""
    if layout == "channels_first":
        return tuple(shape[-dims:])
    if layout == "channels_last":
        return tuple(shape[-dims - 1 : -1])
    return grid_of(shape[-2], layout, dims)


def grid_of(tokens: int, layout: Layout, dims: int) -> Size:
    """Return the grid in a sequence of so many tokens.

    Raises:
        ValueError: the sequence is shorter than the grid.
    """
    if layout == "tokens":
        return square_grid(tokens, dims)
    grid: Size = tuple(layout)  # type: ignore[arg-type]
    if math.prod(grid) > tokens:
        raise ValueError(
            f"input must have at least {math.prod(grid)} tokens for layout={grid}, got {tokens}; set layout to the "
            "grid of this input, or to 'tokens' if it is square"
        )
    return grid


def square_grid(tokens: int, dims: int) -> Size:
    """Return the largest grid of equal sides with no more than this number of tokens; what remains is the prefix."""
    side = round(tokens ** (1 / dims))
    return (side - (side**dims > tokens),) * dims


def through(
    drop: Callable[[Tensor, Size, bool], Tensor], input: Tensor, layout: Layout, block_size: Size, inplace: bool
) -> Tensor:
    """Apply `drop(maps, block_size, inplace)`, which takes maps with channels first, to an input in another layout."""
    dims = len(block_size)
    _check_rank(input, layout, dims)
    if layout == "channels_last":
        prefix, units = 0, input
    else:
        grid = grid_of(input.shape[-2], layout, dims)
        prefix = input.shape[-2] - math.prod(grid)
        units = input.narrow(-2, prefix, input.shape[-2] - prefix).unflatten(-2, grid)  # type: ignore[no-untyped-call]
    if dims == 1:  # a signal is a map of height 1, whose channels-last memory the backends know
        units, block_size = units.unsqueeze(-3), (1, *block_size)
    if prefix and inplace and not torch.compiler.is_compiling():
        checks.writable(input)
    maps = (units.contiguous() if prefix else units).movedim(-1, -len(block_size) - 1)  # dense, for the fast backends
    dropped = drop(maps, block_size, inplace)
    if dropped is maps and not (prefix and inplace):
        return input
    dropped = dropped.movedim(-len(block_size) - 1, -1)
    if layout == "channels_last":
        return dropped.flatten(-3, -2) if dims == 1 else dropped
    tokens = dropped.flatten(-len(block_size) - 1, -2)
    if not prefix:
        return tokens
    if inplace:
        input.narrow(-2, prefix, input.shape[-2] - prefix).copy_(tokens)
        return input
    return torch.cat([input.narrow(-2, 0, prefix), tokens], -2)


def _check_rank(input: object, layout: Layout, dims: int) -> None:
    wanted = f"input must be a floating-point tensor of shape {shape_text(layout, dims)} or without the batch"
    if not isinstance(input, Tensor):
        raise TypeError(f"{wanted}, got a {type(input).__name__}")
    if input.dim() not in (rank(layout, dims) - 1, rank(layout, dims)):
        raise ValueError(f"{wanted}, got one of shape {tuple(input.shape)}")
