"""Put layers into any network, find them, and take them out, by names of modules."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ..core import checks
from ..core.checks import BlockSize, Rate
from ..core.hints import Layers, hinted, warn
from ..layer.layouts import Layout
from ..layer.modules import DropBlock1d, DropBlock2d, DropBlock3d, DropBlockNd
from . import maps, notices, sites

LAYERS: dict[int, type[DropBlockNd]] = {1: DropBlock1d, 2: DropBlock2d, 3: DropBlock3d}

Where = str | Iterable[str] | Callable[[str, nn.Module], bool]


@hinted(
    'all but the model and the place are keywords: insert_dropblock(model, "layer4.?", block_size=7, keep_prob=0.9), '
    "where keep_prob is 1 minus the share dropped, the p of nn.Dropout"
)
def insert_dropblock(
    model: nn.Module,
    where: Where,
    *,
    block_size: BlockSize = 7,
    keep_prob: float = 0.9,
    dims: int = 2,
    rate: Rate = "exact",
    share_channels: bool = False,
    share_batch: bool = False,
    scale_by_keep: bool = True,
    with_noise: bool = False,
    inplace: bool = False,
    layout: Layout = "channels_first",
) -> dict[str, nn.Module]:
    """Insert a DropBlock layer after each matching module. The model is changed in place.

    No module is renamed and no key of the state_dict changes, so checkpoints fit with and without layers. A layer
    drops while the module that it follows is in training mode.

    Insert after conversions that replace modules, such as `convert_sync_batchnorm` and LoRA. Insert before
    DistributedDataParallel, `fully_shard` and `torch.compile`, which do not look for new layers after their first run.
    TorchScript cannot script a model with inserted layers. A trace of `torch.fx` has its own copies of the layers and
    needs its own schedule.

    Args:
        model: the network; `print(dict(model.named_modules()).keys())` shows the names of its modules.
        where: a glob pattern over these names, several patterns, or a function `(name, module) -> bool`. `*` matches
            dots too. A pattern skips containers that are never called themselves.
        block_size: size of a block, one for all spatial dimensions or one for each: units, clamped to the map, or a
            share of the map such as `"30%"`.
        keep_prob: probability that a unit is kept, in [0, 1].
        dims: number of spatial dimensions: the modules must return (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        rate: `"exact"` or `"paper"`, as for the layer.
        share_channels: one mask per sample for all of its channels.
        share_batch: one mask for all samples.
        scale_by_keep: scale the kept units, or leave them as they are.
        with_noise: standard normal noise where dropped instead of 0.
        inplace: write into the output of the module; its backward pass must not need that output. If a module returns
            its own input, such as `nn.Identity`, the layer does not write into it.
        layout: the layout of what the modules return, as for the layer: `"channels_last"` for (N, H, W, C), `"tokens"`
            for (N, prefix + H·W, C).

    Returns:
        The inserted layers, by the name of the module that each follows.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of its range; the model is wrapped or compiled; or a matching module already
            has a layer, is one, or has no forward. Nothing is inserted then. In a forward pass: a module does not
            return a feature map of `dims` dimensions.

    Warns:
        UserWarning: a pattern, or the function, matches nothing. Or the type of a module shows that its output is
            unsuitable: channels last, no feature map, a map of one unit, or also the output of a container with a
            layer.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        >>> insert_dropblock(model, "3", block_size=5, keep_prob=0.9)
        {'3': DropBlock2d(block_size=5, keep_prob=0.9, rate='exact', share_channels=False, inplace=False)}
    """
    sites.refuse_wrapped(model, "insert")
    checks.spatial_dims(dims)
    keep_prob = checks.probability("keep_prob", keep_prob)

    def layer() -> DropBlockNd:
        options: dict[str, Any] = {
            "rate": rate,
            "share_channels": share_channels,
            "share_batch": share_batch,
            "scale_by_keep": scale_by_keep,
            "with_noise": with_noise,
            "inplace": inplace,
            "layout": layout,
        }
        return LAYERS[dims](block_size, keep_prob=keep_prob, **options)

    layer()  # check the arguments even if no module matches
    layers = {name: layer() for name in _matches(model, where)}
    for doubt in maps.doubts(model, list(layers), layout):
        warn(doubt, maps.DoubtfulSiteWarning)
    sites.attach(model, layers)
    return Layers(layers)


def dropblock_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return every DropBlock layer of a model by name: inserted ones and the model's own.

    Use it for a copy, for a model that was loaded or converted, or if the result of the insertion is lost. The model
    may be wrapped or compiled.

    Returns:
        An inserted layer has the name of the module that it follows, a layer of the model its own name. Without layers
        the dict is empty.

    Raises:
        TypeError: `model` is not a module.
        RuntimeError: inserted layers were lost, for example by a conversion that replaces modules.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), DropBlock2d(5))
        >>> _ = insert_dropblock(model, "0")
        >>> list(dropblock_layers(model))
        ['0', '1']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
    return {name: site.layer for name, site in sites.find(model).items()}


def remove_dropblock(model: nn.Module) -> int:
    """Remove every inserted layer and return their number.

    From a trace of `torch.fx`, the layers that the traced model had are removed too. Layers that are modules of the
    network, such as members of a `Sequential`, stay.

    Raises:
        TypeError: `model` is not a module.
        ValueError: the model is wrapped or compiled.
        RuntimeError: some layers had been lost, for example by a conversion that replaces modules; the others are
            removed first.

    Warns:
        UserWarning: layers acted inside an adapter, before it added its own part, or were missing in a trace.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> _ = insert_dropblock(model, "*")
        >>> remove_dropblock(model)
        2
    """
    sites.refuse_wrapped(model, "remove layers")
    lost = sites.lost(model)
    for notice in notices.of(model):
        warn(notice)
    removed = 0
    for name, module in list(model.named_modules()):
        for hook in sites.hooks_of(module):
            hook.remove(module)
            removed += 1
        if isinstance(module, sites.IdentityShortcut) and name:
            _put_none_back(model, name)
        if name.rpartition(".")[2] == sites.TRACED:  # the code of a trace still calls a module of this name
            model.set_submodule(name, nn.Identity())
            removed += 1
        for attribute in (sites.RECORD, sites.TRACED):
            module.__dict__.pop(attribute, None)
    if lost:
        raise sites.LostSitesError(lost, f" The other {removed} have been taken out.")
    return removed


def _put_none_back(model: nn.Module, name: str) -> None:
    parent, _, attribute = name.rpartition(".")
    block = model.get_submodule(parent)
    delattr(block, attribute)
    setattr(block, attribute, None)


def _matches(model: nn.Module, where: Where) -> list[str]:
    """Return the names of the matching modules; a module with several names gives its first."""
    named = dict(model.named_modules(remove_duplicate=False))
    if isinstance(where, type | nn.Module):
        raise TypeError(f"where must be glob patterns or a function, got {where!r}; {_BY_KIND}")
    if callable(where):
        found = [name for name, module in named.items() if where(name, module)]
        if not found:
            warn("where is True for no module: no DropBlock layer was inserted")
    elif isinstance(where, str | Iterable):
        patterns = [where] if isinstance(where, str) else list(where)
        if not patterns:
            warn("where is empty: no DropBlock layer was inserted")
        matched = {name for pattern in patterns for name in _matches_of(pattern, named)}
        found = [name for name in named if name in matched]
    else:
        raise TypeError(f"where must be a glob pattern, several, or a function (name, module) -> bool, got {where!r}")
    first: dict[int, str] = {}
    for name in found:
        first.setdefault(id(named[name]), name)
    return list(first.values())


_BY_KIND = "a function picks by kind: lambda name, module: isinstance(module, nn.BatchNorm2d)"


def _matches_of(pattern: object, named: dict[str, nn.Module]) -> list[str]:
    if not isinstance(pattern, str):
        raise TypeError(f"where must be glob patterns over names of modules, got {pattern!r}; {_BY_KIND}")
    names = [name for name in named if name]
    if pattern in names:
        return [pattern]
    matched = [name for name in names if fnmatchcase(name, pattern)]
    if not matched:
        close = difflib.get_close_matches(pattern, names, n=3)
        hint = f"; close to it are {', '.join(map(repr, close))}" if close else ""
        warn(f"no module is named like {pattern!r}{hint}; insert_dropblock_stages(model, input_size) finds places")
    # skip parametrizations, which return weights; keep containers only if nothing else matches: `attach` refuses them
    called = [name for name in matched if sites.has_forward(named[name]) and "parametrizations" not in name.split(".")]
    return called or matched
