"""Tell whether tokens are in the order of rows and columns: change a patch of the image, and see which token changes.

Some transformers sort their tokens by windows. A layer that takes them for a grid would drop scattered patches.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..core.geometry import Size
from .inputs import Inputs
from .traces import Copy

# modules of a grid that are looked at; an attention or a pooling may blur what one of them returns
MOST = 8


def scrambled(model: nn.Module, inputs: Inputs, grids: Mapping[Size, Sequence[str]]) -> set[Size]:
    """Return the grids whose tokens are in another order; each comes with the names of modules that return it.

    The model runs on noise, with values: once, and once for each grid with another patch at the end of its first row.
    The token there, or one beside it, must change most, in the module with the sharpest change. A model on the meta
    device counts as ordered.
    """
    looked_at = {grid: names[:MOST] for grid, names in grids.items() if min(grid[-2:]) > 1}
    if not looked_at or any(parameter.is_meta for parameter in model.parameters()):
        return set()
    runner = Copy(model, on_meta=False)
    noise = torch.Generator().manual_seed(0)
    base = inputs.mapped(lambda x: torch.randn(x.shape, generator=noise).to(x) if x.is_floating_point() else x)
    plain = runner.outputs(base, [name for names in looked_at.values() for name in names])
    found = set()
    for grid, names in looked_at.items():
        changed = runner.outputs(base.mapped(functools.partial(_with_other_patch, grid=grid)), names)
        changes = [(changed[name] - plain[name])[0].float().norm(dim=-1)[-math.prod(grid) :] for name in names]
        sharpest = max(changes, key=lambda change: float(change.max() / change.sum().clamp(min=1e-30)))
        *_, row, column = torch.unravel_index(sharpest.argmax(), grid)
        if row > 1 or column < grid[-1] - 2:
            found.add(grid)
    return found


def _with_other_patch(image: Tensor, grid: Size) -> Tensor:
    """Return an image with the last patch of its first row changed; of a volume, in its first layer."""
    if image.dim() <= len(grid) or not image.is_floating_point():
        return image
    sides = [side // n for side, n in zip(image.shape[-len(grid) :], grid, strict=True)]
    changed = image.clone()
    patch = changed
    for axis, side in enumerate(sides, start=-len(sides)):
        patch = patch.narrow(axis, 0 if axis < -1 else image.shape[-1] - side, side)
    patch += 3.0
    return changed
