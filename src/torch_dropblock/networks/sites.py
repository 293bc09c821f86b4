"""Sites: the places of a network where DropBlock layers act. Attach layers to them and find them again.

    insert ── attach ──> forward hooks ── find ──> schedule, summary, mc, removal

A forward hook attaches a layer to a module, outside the tree of modules. So no name and no key of a state_dict
changes, and a `Sequential` gets no extra member. The hook is copied, pickled and wrapped with its module.
If a module is replaced, its hook is lost. Every module above therefore records the hooks below it. `find` compares
these records with the hooks that are present, and raises an error that names the lost layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from ..core import checks
from ..layer import layouts
from ..layer.modules import DropBlockNd, call_in_trace

RECORD = "_dropblock_sites"
TRACED = "_dropblock"
INSERTED = "_dropblock_inserted"
# name parts that wrappers add to the modules that they wrap
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
    """Inserted layers were lost: the modules they were attached to have been replaced or removed."""

    def __init__(self, names: list[str], done: str = "") -> None:
        super().__init__(
            f"{len(names)} inserted DropBlock layer(s) were lost: their hooks, or the modules they were attached to, "
            f"have been replaced or removed: {', '.join(names)}. Conversions such as convert_sync_batchnorm "
            f"replace modules: insert after converting.{done}"
        )


class Hook:
    """A forward hook that passes the output of a module through a layer.

    It drops while the module or the layer is in training mode; an inserted layer itself starts in evaluation mode.
    """

    removed = False  # True after `remove_dropblock`, so that the layer does not count as lost

    def __init__(self, name: str, layer: DropBlockNd, together: tuple[str, ...]) -> None:
        self.name = name
        self.layer = layer.eval()
        self.together = together  # the names of all layers inserted by the same call

    def register(self, module: nn.Module) -> None:
        module.register_forward_hook(self, with_kwargs=True)

    def remove(self, module: nn.Module) -> None:
        unhook(module, self)
        self.removed = True

    def __getstate__(self) -> dict[str, Any]:
        """Add a hook id for `__setstate__`: one that no hook of this process has, even if PyTorch moved hooks."""
        return self.__dict__ | {"next_key": RemovableHandle.next_id}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make later hooks of this process use ids above those of the process that saved this one."""
        RemovableHandle.next_id = max(RemovableHandle.next_id, state["next_key"])
        self.__dict__.update({name: value for name, value in state.items() if name != "next_key"})

    def __call__(self, module: nn.Module, args: tuple[Any, ...], *kwargs_and_output: Any) -> Any:
        layer, output = self.layer, kwargs_and_output[-1]
        if isinstance(output, Proxy):
            return self._trace(module, output)
        training = module.training or layer.training
        # A batch is required: tokens of shape (N, tokens, features) could be taken for an unbatched map.
        if not isinstance(output, Tensor) or output.dim() != layouts.rank(layer.layout, layer.dims):
            raise self._no_feature_map(output)
        if not training or (output.is_quantized and not layer.training):
            return output  # quantised modules cannot be trained, even in training mode
        if output.dtype not in checks.DTYPES:
            raise self._no_feature_map(output)
        # `torch.ao.quantization` moves hooks to the replacing module and then calls them without kwargs
        inputs = (args, *kwargs_and_output[:-1])
        inplace = layer.inplace and len(inputs) == 2 and not _belongs_to_others(output, inputs)
        return layer.drop(output, training, inplace)

    def _no_feature_map(self, output: Any) -> Exception:
        layer = self.layer
        shape = layouts.shape_text(layer.layout, layer.dims)
        is_tensor = isinstance(output, Tensor)
        got = f"a tensor of shape {tuple(output.shape)} and {output.dtype}" if is_tensor else type(output).__name__
        what = f"module {self.name!r}" if self.name else "the model itself"
        return (ValueError if is_tensor else TypeError)(
            f"{type(layer).__name__} was inserted after {what}, which must return a floating-point feature map of "
            f"shape {shape}; it returned {got}"
        )

    def _trace(self, module: nn.Module, output: Proxy) -> Any:
        """Put a copy of the layer into a trace of `torch.fx`, as a module that the trace calls.

        The tracer finds it by an attribute of `module` that is outside the module's own tree.
        """
        layer = copy.deepcopy(self.layer).train(module.training)
        object.__setattr__(layer, INSERTED, (self.name, self.together))
        object.__setattr__(module, TRACED, layer)
        return call_in_trace(output, module, TRACED)


def _belongs_to_others(output: Tensor, inputs: Any) -> bool:
    """Return True if the output is an input of the module, or may be a view of one."""
    # a compiler allocates memory by itself, and tensors of inference mode do not record whether they are views
    if torch.compiler.is_compiling() or output.is_inference():
        return True
    return output._is_view() or any(output is leaf for leaf in tree_leaves(inputs))


class IdentityShortcut(nn.Identity):
    """A module for an identity shortcut, so that a layer can follow it; removing the layer restores None."""


class Site(NamedTuple):
    """A layer of a model and the module on whose output it acts: the layer itself if the model calls it."""

    layer: DropBlockNd
    module: nn.Module

    @property
    def training(self) -> bool:
        """True if the layer drops in the next forward pass, provided its keep_prob is below 1."""
        return self.module.training or self.layer.training


def present(model: nn.Module) -> list[Site]:
    """Return every DropBlock layer of a model, inserted or not: without names, a hundred times faster than `find`."""
    return walk(model)[0]


def walk(model: nn.Module) -> tuple[list[Site], int]:
    """Return `present(model)` and the number of modules."""
    found, modules = [], [model]
    for module in modules:
        if isinstance(module, DropBlockNd):
            found.append(Site(module, module))
        if module._forward_hooks:
            found += [Site(hook.layer, module) for hook in hooks_of(module)]
        modules += [child for child in module._modules.values() if child is not None]
    return found, len(modules)


def find(model: nn.Module) -> dict[str, Site]:
    """Return every DropBlock layer of a model, inserted or not, by the name of its module.

    Raises:
        LostSitesError: an inserted layer was lost.
    """
    names = lost(model)
    if names:
        raise LostSitesError(names)
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, DropBlockNd):
            found[name] = Site(module, module)
        for hook in hooks_of(module):
            found[name] = Site(hook.layer, module)
    return found


def find_some(model: nn.Module) -> dict[str, Site]:
    """Return `find(model)`, which must not be empty.

    Raises:
        TypeError: `model` is not a module.
        ValueError: it has no layer.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
    found = find(model)
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no DropBlock layer; put some in first, with insert_dropblock_stages(model, "
            "(1, 3, 224, 224)), which finds the places, or with insert_dropblock(model, where)"
        )
    return found


def all_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules of a model and its inserted layers, which are outside the tree of modules."""
    return [*model.modules(), *(site.layer for site in present(model))]


def hooks_of(module: nn.Module) -> list[Hook]:
    return [hook for hook in module._forward_hooks.values() if isinstance(hook, Hook)]


def unhook(module: nn.Module, hook: Callable[..., Any]) -> None:
    """Remove a forward hook by identity: its id changes when PyTorch moves it to another module."""
    for key in [key for key, other in module._forward_hooks.items() if other is hook]:
        for registry in (module._forward_hooks_with_kwargs, module._forward_hooks_always_called, module._forward_hooks):
            registry.pop(key, None)


def lost(model: nn.Module) -> list[str]:
    """Return the names of the inserted layers that were lost.

    A layer is present if any module has its hook, or if a copy of its module is in the old place.
    """
    names: dict[int, str] = {}
    for above, module in model.named_modules():
        record = module.__dict__.get(RECORD)
        if record:
            hooks = [(canonical(name), hook) for name, part in module.named_modules() for hook in hooks_of(part)]
            there = {id(hook) for _, hook in hooks}
            for name, hook in record.items():
                if not hook.removed and id(hook) not in there and not _has_copy(hooks, canonical(name), hook):
                    names.setdefault(id(hook), ".".join(filter(None, (above, name))))
    return list(names.values())


def _has_copy(hooks: list[tuple[str, Hook]], name: str, hook: Hook) -> bool:
    """Return True if one of the hooks follows module `name`, or followed it before a wrapper was added."""
    return any(
        other == name or (other.startswith(f"{name}.") and candidate.name == hook.name) for other, candidate in hooks
    )


def canonical(name: str) -> str:
    """Return a module's name without the parts that wrappers add."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def attach(model: nn.Module, layers: Mapping[str, DropBlockNd]) -> None:
    """Attach each layer to the module of its name; if one of them cannot be attached, attach none."""
    modules = {name: model.get_submodule(name) for name in layers}
    for name, module in modules.items():
        refuse_as_site(name, module)
    for name, module in modules.items():
        hook = Hook(name, layers[name], tuple(layers))
        hook.register(module)
        parts = name.split(".") if name else []
        for i in range(len(parts)):
            above = model.get_submodule(".".join(parts[:i]))
            record = above.__dict__.get(RECORD, {}) | {".".join(parts[i:]): hook}
            object.__setattr__(above, RECORD, record)


def refuse_as_site(name: str, module: nn.Module) -> None:
    what = f"module {name!r}, a {type(module).__name__},"
    if hooks_of(module):
        raise ValueError(f"{what} has an inserted DropBlock layer already; remove_dropblock(model) removes them all")
    if isinstance(module, DropBlockNd):
        raise ValueError(f"{what} is a DropBlock layer itself")  # noqa: TRY004 - it is a module
    if not has_forward(module):
        raise ValueError(f"{what} has no forward to act on, so the layer would never run; name its members instead")


def has_forward(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward


def refuse_wrapped(model: object, what: str) -> nn.Module:
    """Raise if the model is wrapped or compiled; otherwise return it.

    A wrapper or compiled code would miss the change, or use it in some of its copies only.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
    for name, module in model.named_modules():
        kinds = {kind.__name__ for kind in type(module).__mro__} & NOT_TO_BE_CHANGED.keys()
        by = NOT_TO_BE_CHANGED[min(kinds)] if kinds else "torch.compile" if is_compiled(module) else None
        if by:
            where = f"its module {name!r}" if name else "it"
            raise ValueError(f"the model cannot be changed, since {by} has wrapped {where}; {what} before wrapping")
    return model


def is_compiled(module: nn.Module) -> bool:
    forward = vars(module).get("forward")
    return bool(module._compiled_call_impl) or hasattr(module, "_orig_mod") or hasattr(forward, "get_compiler_config")
