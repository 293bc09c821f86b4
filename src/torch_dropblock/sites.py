"""Sites: the places of a network where a DropBlock layer acts, and how they are found again.

    insert ── attach ──> forward hooks ── find ──> schedule, summary, mc, removal

A layer is attached to a module by a forward hook, outside the tree of modules. So no name and no key of a state_dict
changes, a `Sequential` gets no member that it would run, and the hook is copied, pickled and wrapped with its module.
What a hook cannot survive is that its module is replaced. So the parent of that module has a record of it, which `find`
compares with what is there: a site that was lost is an error, never silence.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy

from .modules import DropBlockNd, call_in_trace

RECORD = "_dropblock_sites"
TRACED = "_dropblock"
# what wrappers put into the names of the modules that they wrap
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
NOT_TO_BE_CHANGED = {
    "OptimizedModule": "torch.compile",
    "DataParallel": "DataParallel",
    "DistributedDataParallel": "DistributedDataParallel",
    "FullyShardedDataParallel": "FullyShardedDataParallel",
    "FSDPModule": "fully_shard",
    "ScriptModule": "TorchScript",
}


class LostSitesError(RuntimeError):
    """Layers that were inserted are no longer there."""

    def __init__(self, names: list[str], done: str = "") -> None:
        super().__init__(
            f"{len(names)} inserted DropBlock layer(s) no longer act, since the modules that they followed were "
            f"replaced or taken out: {', '.join(names)}. Conversions such as convert_sync_batchnorm replace modules: "
            f"insert after converting.{done}"
        )


class Hook:
    """A forward hook that passes what a module returns through a layer.

    It drops while the module is in training mode, or the layer itself is: that of an inserted layer starts as False.
    """

    def __init__(self, name: str, layer: DropBlockNd) -> None:
        self.name = name
        self.layer = layer.eval()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        layer = self.layer
        if isinstance(output, Proxy):
            return self._trace(module, output)
        # A batch is asked for: tokens of shape (N, tokens, features) could be taken for an unbatched map.
        if not isinstance(output, Tensor) or output.dim() != layer.dims + 2:
            shape = ("(N, C, L)", "(N, C, H, W)", "(N, C, D, H, W)")[layer.dims - 1]
            got = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            error = ValueError if isinstance(output, Tensor) else TypeError
            raise error(
                f"{type(layer).__name__} was inserted after module {self.name!r}, which must return a feature map of "
                f"shape {shape}; it returned {got}"
            )
        return layer.drop(output, module.training or layer.training)

    def _trace(self, module: nn.Module, output: Proxy) -> Any:
        """`torch.fx` takes apart a module that is no leaf; what acts on its output becomes a module of the trace.

        It has to be found by an attribute for that, of which the module's own tree knows nothing.
        """
        object.__setattr__(module, TRACED, copy.deepcopy(self.layer).train(module.training))
        return call_in_trace(output, module, TRACED)


class IdentityShortcut(nn.Identity):
    """A place for a layer on a shortcut that has no module; whoever removes the layer puts None back."""


@dataclass(frozen=True)
class Site:
    """A layer of a model, and the module on whose output it acts, which is the layer itself if the model calls it."""

    layer: DropBlockNd
    module: nn.Module

    @property
    def training(self) -> bool:
        """Whether it drops at the next forward pass, if its keep_prob is below 1."""
        return self.module.training or self.layer.training


def layers(model: nn.Module) -> list[DropBlockNd]:
    """The layers that `find` finds, in a fraction of its time."""
    found, modules = [], [model]
    for module in modules:
        if isinstance(module, DropBlockNd):
            found.append(module)
        if module._forward_hooks:
            found += [hook.layer for _, hook in hooks_of(module)]
        modules += filter(None, module._modules.values())
    return found


def find(model: nn.Module) -> dict[str, Site]:
    """Every DropBlock layer of a model, inserted or not, by the name of its module.

    Raises:
        LostSitesError: a layer that was inserted is no longer there.
    """
    names = lost(model)
    if names:
        raise LostSitesError(names)
    return dict(present(model))


def present(model: nn.Module) -> Iterator[tuple[str, Site]]:
    for name, module in model.named_modules():
        if isinstance(module, DropBlockNd):
            yield name, Site(module, module)
        for _, hook in hooks_of(module):
            yield name, Site(hook.layer, module)


def hooks_of(module: nn.Module) -> list[tuple[int, Hook]]:
    return [(key, hook) for key, hook in module._forward_hooks.items() if isinstance(hook, Hook)]


def lost(model: nn.Module) -> list[str]:
    """The names of inserted layers that are no longer there."""
    names = []
    for parent_name, parent in model.named_modules():
        for name, module in parent.__dict__.get(RECORD, ()):
            if not hooks_of(module) or all(module is not there for there in parent.modules()):
                names.append(f"{parent_name}.{name}".removeprefix("."))
    return names


def canonical(name: str) -> str:
    """A module's name without what wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def attach(model: nn.Module, layers: Mapping[str, DropBlockNd]) -> None:
    """Let each layer act on the output of the module of its name, for good or, if anything is wrong, not at all."""
    modules = {name: model.get_submodule(name) for name in layers}
    for name, module in modules.items():
        refuse_as_site(name, module)
    for name, module in modules.items():
        module.register_forward_hook(Hook(name, layers[name]))
        if name:
            parent_name, _, own_name = name.rpartition(".")
            parent = model.get_submodule(parent_name)
            record = (*parent.__dict__.get(RECORD, ()), (own_name, module))
            object.__setattr__(parent, RECORD, record)


def refuse_as_site(name: str, module: nn.Module) -> None:
    what = f"module {name!r}, a {type(module).__name__},"
    if hooks_of(module):
        raise ValueError(f"{what} has an inserted DropBlock layer already; remove_dropblock(model) removes them all")
    if isinstance(module, DropBlockNd):
        raise ValueError(f"{what} is a DropBlock layer itself")  # noqa: TRY004 - it is a module
    if type(module).forward is nn.Module.forward:
        raise ValueError(f"{what} has no forward to act on, so the layer would never run; name its members instead")


def refuse_wrapped(model: object, what: str) -> nn.Module:
    """Return the model if its modules may still be changed.

    A wrapper or compiled code would not see the change, or would see it in some of its copies only.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
    for name, module in model.named_modules():
        kinds = {kind.__name__ for kind in type(module).__mro__} & NOT_TO_BE_CHANGED.keys()
        by = NOT_TO_BE_CHANGED[min(kinds)] if kinds else "torch.compile" if module._compiled_call_impl else None
        if by:
            where = f"its module {name!r}" if name else "it"
            raise ValueError(f"the model cannot be changed, since {by} has wrapped {where}; {what} before wrapping")
    return model
