"""Check whether a module returns a feature map that suits DropBlock, from its type and from the tensors it returns.

A layer takes the axes after the channels as the map. `doubts` names the modules of an insertion whose types show that
this is wrong or useless. `Probe` finds the same for any module, in a forward pass in evaluation mode.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import activation, batchnorm, conv, dropout, instancenorm, normalization, pooling
from torch.utils._pytree import tree_leaves

from ..layer import layouts
from ..layer.layouts import Layout
from ..layer.modules import DropBlockNd
from . import sites

# compared by forward: LayerNorm2d of torchvision and of timm inherits from LayerNorm but has its own
NO_MAP = {
    kind.forward
    for kind in (
        *(nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.EmbeddingBag, nn.Flatten),
        *(nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.RNN, nn.LSTM, nn.GRU),
    )
}
WITH_A_MAP = (
    *(conv._ConvNd, batchnorm._BatchNorm, instancenorm._InstanceNorm, nn.GroupNorm),
    *(pooling._MaxPoolNd, pooling._AvgPoolNd, pooling._AdaptiveAvgPoolNd, pooling._AdaptiveMaxPoolNd),
)
GLOBAL_POOLINGS = (pooling._AdaptiveAvgPoolNd, pooling._AdaptiveMaxPoolNd)
# modules whose output corresponds to their input unit for unit
UNIT_FOR_UNIT = {part.__name__ for part in (activation, batchnorm, dropout, instancenorm, normalization)}
ALSO_UNIT_FOR_UNIT = {"Identity", "DropPath", "StochasticDepth"}


class DoubtfulSiteWarning(UserWarning):
    """A layer acts where DropBlock is wrong or useless."""


def has_no_map(module: nn.Module) -> bool:
    """Return True if the type of a module shows that it returns (N, ..., C), or no feature map."""
    return type(module).forward in NO_MAP


def doubts(model: nn.Module, names: Sequence[str], layout: Layout = "channels_first") -> Iterator[str]:
    """Yield the objections to layers after these modules, from the modules' types, as sentences that name them."""
    modules = {name: model.get_submodule(name) for name in names}
    last = [name for name, module in modules.items() if has_no_map(module)]
    if last and layout == "channels_first":
        yield (
            "these modules return no feature map, or one with the channels last, which a DropBlock layer takes for a "
            f"side of the map: {_named(last, modules)}; name modules that return (N, C, ...), or give the layout"
        )
    points = [name for name, module in modules.items() if _pools_to_a_point(module)]
    if points:
        yield (
            "these modules return maps of one unit, so a DropBlock layer after them drops whole channels: "
            f"{_named(points, modules)}"
        )
    for name, module in model.named_modules():
        chain = [name, *(f"{name}.{tail}".strip(".") for tail in _tails(module))]
        there = [part for part in chain if part in modules or sites.hooks_of(model.get_submodule(part))]
        if name in there and len(there) > 1 and not modules.keys().isdisjoint(there):
            yield (
                f"the container {name!r} and its last member {there[1]!r} return the same feature map, from which both "
                "layers drop; name one of them"
            )


def _named(names: Sequence[str], modules: Mapping[str, nn.Module], shown: int = 6) -> str:
    more = f" and {len(names) - shown} others" if len(names) > shown else ""
    return ", ".join(f"{name!r} ({type(modules[name]).__name__})" for name in names[:shown]) + more


def _pools_to_a_point(module: nn.Module) -> bool:
    if not isinstance(module, GLOBAL_POOLINGS):
        return False
    size = module.output_size
    return set(size if isinstance(size, Sequence) else (size,)) == {1}


def _tails(module: nn.Module) -> Iterator[str]:
    """Yield the name of the last member of a `Sequential`, of that member's last member, and so on."""
    name = ""
    while type(module).forward is nn.Sequential.forward and module._modules:
        last, module = list(module.named_children())[-1]
        name = f"{name}.{last}".strip(".")
        yield name


class Seen:
    """A tensor on which a layer acts; after a write in place it counts as another map."""

    def __init__(self, probe: Probe, tensor: Tensor) -> None:
        self.probe, self.reference, self.version = probe, weakref.ref(tensor), tensor._version

    def is_now(self, tensor: Tensor, writes: int) -> bool:
        return self.reference() is tensor and tensor._version <= self.version + writes


class Probe:
    """A record of one layer's place, filled by a forward hook: the sizes of its map, and objections to it.

    Args:
        seen: the tensors of all places so far, by id; all probes of a forward pass share it.
        inputs: the inputs of the model.
    """

    def __init__(self, name: str, layer: DropBlockNd, seen: dict[int, Seen], inputs: Sequence[Tensor]) -> None:
        self.name, self.dims, self.layout, self.seen = name, layer.dims, layer.layout, seen
        dims = layer.dims
        self.image = next((tuple(x.shape[-dims:]) for x in inputs if x.dim() == dims + 2), None)
        self.sizes: list[tuple[int, ...]] = []
        self.channels_last = False
        self.same_map_as: str | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        self.sizes.append(layouts.size_of(output.shape, self.layout, self.dims))
        if self.layout == "channels_first":
            shape = tuple(output.shape[-self.dims - 1 :])
            is_known = isinstance(module, WITH_A_MAP)
            self.channels_last |= has_no_map(module) or (not is_known and self._looks_turned(shape))
        if output.is_inference():
            return  # tensors of inference mode do not count writes
        taken = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)] if _is_unit_for_unit(module) else []
        writes = int(getattr(module, "inplace", False))  # the module's own write does not make another map
        for tensor in (output, *taken):
            known = self.seen.get(id(tensor))
            if known and known.is_now(tensor, writes) and known.probe is not self:
                self.same_map_as = known.probe.name
                self.channels_last |= known.probe.channels_last
        self.seen[id(output)] = Seen(self, output)

    def _looks_turned(self, shape: tuple[int, ...]) -> bool:
        """Return True if the axes look like (H, W, C): in proportion to the input without the last, not the first."""
        if self.image is None or self.dims == 1:
            return False
        turned, straight = _off(shape[:-1], self.image), _off(shape[1:], self.image)
        return same_proportions(shape[:-1], self.image) and straight >= turned + math.log(2.0)


def _is_unit_for_unit(module: nn.Module) -> bool:
    kinds = type(module).__mro__
    return any(kind.__module__ in UNIT_FOR_UNIT or kind.__name__ in ALSO_UNIT_FOR_UNIT for kind in kinds)


def same_proportions(size: Sequence[int], image: Sequence[int]) -> bool:
    """Return True if a map has the proportions of the image, or nearly."""
    return _off(size, image) <= math.log(1.5)


def _off(size: Sequence[int], image: Sequence[int]) -> float:
    """Return the distance of a map's proportions from the image's: 0 if they are equal."""
    logarithms = [math.log(side / whole) for side, whole in zip(size, image, strict=True) if side]
    return max(logarithms, default=0.0) - min(logarithms, default=0.0)
