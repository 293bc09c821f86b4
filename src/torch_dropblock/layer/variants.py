"""`Variant`: one mask for the batch, no rescaling, noise in place of zeros, in plain operations on a mask.

    key ── the layer itself, on ones ──> factor: 0 where dropped, else the scale ── where, * ──> output
                                                          noise of the key ──────────┘

The layer serves the factor by any backend, so a variant has the mask of a key on every path. The factor has one sample
or one channel where the mask is shared, and PyTorch broadcasts and differentiates the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..core import checks
from ..core.keys import as_tensor, device_for_keys, draw_key
from . import operators, tracing


class Variant(NamedTuple):
    """Options of a call that the backends do not know."""

    share_batch: bool = False
    scale_by_keep: bool = True
    with_noise: bool = False


def variant_of(share_batch: bool, scale_by_keep: bool, with_noise: bool) -> Variant | None:
    """Return the variant of these options, which are checked, or None if they are the defaults."""
    if share_batch is False and scale_by_keep is True and with_noise is False:  # the common case first
        return None
    checks.flag("share_batch", share_batch)
    checks.flag("scale_by_keep", scale_by_keep)
    checks.flag("with_noise", with_noise)
    variant = Variant(share_batch, scale_by_keep, with_noise)
    return None if variant == Variant() else variant


def apply(
    variant: Variant,
    draw: Callable[[Tensor, bool], Tensor],
    input: Tensor,
    dims: int,
    share_channels: bool,
    inplace: bool,
    generator: torch.Generator | None,
    key: int | Tensor | None,
) -> Tensor:
    """Drop from `input`.

    Args:
        variant: the options.
        draw: the layer itself: `draw(ones, inplace)` makes the factor from ones of its shape.
        input: feature maps with channels first.
        dims: number of spatial dimensions.
        share_channels: one mask for all channels of a sample.
        inplace: write into `input`.
        generator: source of the key of the noise.
        key: key of the mask and of the noise, or None.
    """
    one_each = input[:1] if variant.share_batch and input.dim() == dims + 2 else input
    one_each = one_each.narrow(-dims - 1, 0, min(1, input.shape[-dims - 1])) if share_channels else one_each
    op = torch.float64 if input.dtype == torch.float64 else torch.float32
    # in the memory format of the input, which the output takes from the mask
    ones = torch.ones_like(one_each, dtype=op, requires_grad=False)
    factor = draw(ones, not torch.compiler.is_compiling() and not tracing.transformed())
    dropped, fill = factor == 0, torch.zeros((), dtype=input.dtype, device=input.device)
    if variant.with_noise:
        key = draw_key(input.device, generator) if key is None else key  # after the mask's, which so stays the same
        key = as_tensor(key, device_for_keys(input.device))
        fill = operators.normal(key, ones.shape, op).to(input.device, input.dtype)
    kept = (input.to(op) * factor).to(input.dtype) if variant.scale_by_keep else input
    output = torch.where(dropped, fill, kept)
    return input.copy_(output) if inplace else output
