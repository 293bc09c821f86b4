"""`convert_dropblock`: replace the DropBlock layers of torchvision and timm in a model by this library's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ..core import checks
from ..core.hints import Layers, warn
from ..layer.modules import DropBlock2d, DropBlock3d, DropBlockNd
from . import sites

# classes are compared by name, so that neither package has to be imported or installed
TORCHVISION, TIMM = "torchvision.ops.drop_block", "timm.layers.drop"
OURS: dict[tuple[str, str], type[DropBlockNd]] = {
    (TORCHVISION, "DropBlock2d"): DropBlock2d,
    (TORCHVISION, "DropBlock3d"): DropBlock3d,
    (TIMM, "DropBlock2d"): DropBlock2d,
}


def convert_dropblock(model: nn.Module) -> dict[str, nn.Module]:
    """Replace the DropBlock layers of torchvision and timm in a model by this library's. The model is changed in place.

    Drop probability, block size, shared masks, scaling, noise, inplace and training mode are carried over. The new
    layers drop exactly the requested share, on any map. They keep their names, and no key of the state_dict changes.
    torchvision's `p` becomes `keep_prob = 1 - p`; timm's `drop_prob` becomes `keep_prob = 1 - drop_prob * gamma_scale`,
    since the paper's authors weaken the layers of earlier groups. Settings of the computation alone, torchvision's
    `eps` and timm's `fast`, are ignored.

    Code that sets `p` or `drop_prob` of the layers must set `keep_prob` instead, or use `KeepProbSchedule`. Calls
    of the functions `drop_block2d`, `drop_block3d` and `drop_block_2d` are not modules, and stay.

    Args:
        model: a network with layers of torchvision 0.23 or timm 1.0.19 or later as modules.

    Returns:
        The new layers by name, each under the name of the layer that it replaces. A layer used in several places
        becomes one new layer, returned under the first of its names.

    Raises:
        TypeError: `model` is not a module.
        ValueError: the model is wrapped or compiled, or is such a layer itself; or a layer has something that cannot
            be carried over: a probability outside [0, 1], a subclass's own methods, hooks, or parameters. The error
            names all of them, and nothing is converted.

    Warns:
        UserWarning: the model has no DropBlock layer of torchvision or timm.

    Examples:
        >>> from torchvision.ops import DropBlock2d as Theirs  # doctest: +SKIP
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), Theirs(p=0.1, block_size=7), nn.ReLU())  # doctest: +SKIP
        >>> convert_dropblock(model)  # doctest: +SKIP
        {'1': DropBlock2d(block_size=7, keep_prob=0.9, rate='exact', share_channels=False, inplace=False)}
    """
    sites.refuse_wrapped(model, "convert")
    ours: dict[nn.Module, DropBlockNd] = {}
    converted: dict[str, nn.Module] = {}
    refused = []
    for name, module in model.named_modules():
        kind = _kind(module)
        if kind is None:
            continue
        problems = list(_lost(module, kind))
        try:
            converted[name] = ours[module] = _counterpart(module, kind)
        except (AttributeError, TypeError, ValueError) as error:
            problems.append(str(error))
        if problems:
            what = f"module {name!r}" if name else "the model itself"
            refused.append(f"{what}, a {_of_package(kind)}: {'; '.join(problems)}")
        elif not name:
            raise ValueError(
                f"the model itself is a {_of_package(kind)}, so there is nothing to replace it in; "
                f"build torch_dropblock.{ours[module]} instead"
            )
    if refused:
        raise ValueError(
            f"{len(refused)} layer(s) cannot be converted, since the new layers would lose what is named here; nothing "
            "was converted:\n" + "\n".join(refused)
        )
    if not converted:
        warn(f"{type(model).__name__} has no DropBlock layer of torchvision or timm: nothing was converted")
    for parent in model.modules() if converted else ():
        for key, child in parent._modules.items():
            if child in ours:
                parent._modules[key] = ours[child]
    return Layers(converted)


def _kind(module: nn.Module) -> type | None:
    """Return the DropBlock class of torchvision or timm that a module belongs to, or None."""
    kinds = type(module).__mro__
    return next((kind for kind in kinds if (kind.__module__, kind.__qualname__) in OURS), None)


def _of_package(kind: type) -> str:
    return f"{kind.__name__} of {kind.__module__.partition('.')[0]}"


def _counterpart(layer: Any, kind: type) -> DropBlockNd:
    if kind.__module__ == TIMM:
        # timm's drop_prob=None drops nothing
        drop_prob = checks.probability("drop_prob * gamma_scale", (layer.drop_prob or 0.0) * layer.gamma_scale)
    else:
        drop_prob = checks.probability("p", layer.p)
    with_noise = bool(getattr(layer, "with_noise", False))
    return OURS[kind.__module__, kind.__qualname__](
        layer.block_size,
        keep_prob=1.0 - drop_prob,
        share_channels=bool(getattr(layer, "couple_channels", False)),  # before 1.0.23 timm drew for each channel
        share_batch=bool(getattr(layer, "batchwise", False)),  # before 1.0.23
        scale_by_keep=bool(getattr(layer, "scale_by_keep", True)) and not with_noise,  # timm scales only beside zeros
        with_noise=with_noise,
        inplace=bool(layer.inplace),
    ).train(layer.training)


def _lost(layer: nn.Module, kind: type) -> Iterator[str]:
    """Yield the properties of a layer that its counterpart would lack."""
    classes = type(layer).__mro__
    for base in classes[: classes.index(kind)]:
        for name, value in vars(base).items():
            is_special = name.startswith("__") and name != "__call__"
            if hasattr(value, "__get__") and not is_special and name != "extra_repr":  # a method, property, ...
                yield f"{name} of its own class {base.__qualname__}"
    if "forward" in vars(layer):
        yield "forward, which was set on the layer"
    for name in (*layer._parameters, *layer._buffers, *layer._modules):
        yield f"{name}, a parameter, buffer or module"
    for name, value in vars(layer).items():
        if name.endswith("_hooks") and value:
            yield f"{name.removeprefix('_')} ({len(value)})"
