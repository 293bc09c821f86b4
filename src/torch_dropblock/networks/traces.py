"""Run a copy of a model, and record what each module takes and returns. The model itself stays as it is.

The copy is on the meta device: its tensors have shapes without values, so that a run costs no memory and little time.
If a model needs values, a second copy runs on the model's device; it shares the parameters, and has its own buffers.
"""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import conv
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..core.geometry import Size
from .inputs import Inputs

# share of the convolutions after which a model may stop for lack of values; Keypoint R-CNN has run 88 % of them then
MOST = 0.75
ATTENTION = ("softmax", "scaled_dot_product")


class Taken(NamedTuple):
    """A tensor that a module took or returned; `id` tells it from others of the same trace."""

    id: int
    shape: Size


class Call(NamedTuple):
    """A call of a module; `output` is None if it returned something else than a floating-point tensor."""

    inputs: tuple[Taken, ...]
    output: Taken | None


@dataclass
class Trace:
    """Record of a forward pass.

    Attributes:
        calls: by name of module, in the order in which they first ended.
        returned: ids of the tensors that the model returned.
        attends: the modules that compute an attention themselves.
        stopped: True if the pass ended in an error.
        read: the modules with parameters whose output reached another one. The rest made what the model returns.
        kept: tensors; one that is alive keeps its id for itself.
    """

    calls: dict[str, list[Call]] = field(default_factory=dict)
    returned: set[int] = field(default_factory=set)
    attends: set[str] = field(default_factory=set)
    stopped: bool = False
    read: set[str] = field(default_factory=set)
    kept: list[Tensor] = field(default_factory=list)

    def taken(self, values: Any) -> tuple[Taken, ...]:
        tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
        self.kept += tensors
        return tuple(Taken(id(tensor), tuple(map(int, tensor.shape))) for tensor in tensors)


class Copy:
    """A copy of a model to run."""

    def __init__(self, model: nn.Module, *, on_meta: bool) -> None:
        self.on_meta = on_meta
        self.model = self._copied(model)
        self.names = {module: name for name, module in self.model.named_modules()}
        for module in self.names:
            module.training = False
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                # a function writes where it likes; a method or an object was copied with its module
                for key in [key for key, hook in hooks.items() if isinstance(hook, FunctionType)]:
                    del hooks[key]

    def _copied(self, model: nn.Module) -> nn.Module:
        memo: dict[int, Any] = {}
        for module in model.modules():
            tensors = [value for value in vars(module).values() if isinstance(value, Tensor)]
            tensors += [value for value in module._parameters.values() if value is not None]
            if self.on_meta:
                tensors += [value for value in module._buffers.values() if value is not None]
            for tensor in tensors:
                if self.on_meta or not is_lazy(tensor):  # a real copy gets lazy parameters of its own
                    memo[id(tensor)] = _on_meta(tensor) if self.on_meta else tensor
        try:
            return copy.deepcopy(model, memo)
        except Exception as error:
            raise ValueError(f"model must be one that copy.deepcopy can copy, to run a copy of it: {error}") from error

    def run(self, inputs: Inputs, *, partly: bool = False) -> Trace:
        """Return the trace of a forward pass in evaluation mode.

        Args:
            inputs: real tensors.
            partly: return the trace up to an error, if by then most convolutions have run: what follows makes boxes
                of maps, and needs values.
        """
        trace, stack = Trace(), [""]
        with ExitStack() as contexts:
            contexts.enter_context(_random_state_kept())
            contexts.enter_context(torch.no_grad())
            flow = _Flow(trace, stack)
            contexts.callback(_remove, [*self._record(trace, stack, flow)])
            if self.on_meta:
                inputs = inputs.mapped(_on_meta)
                contexts.enter_context(torch.device("meta"))  # for tensors that a forward makes
            contexts.enter_context(flow)
            try:
                output = self.model(*inputs.args, **inputs.kwargs)
            except Exception:
                trace.stopped = True
                if not partly or not self._has_run(trace):
                    raise
            else:
                trace.returned = {tensor.id for tensor in trace.taken(output)}
        return trace

    def outputs(self, inputs: Inputs, names: Iterable[str]) -> dict[str, Tensor]:
        """Return what the modules of these names return in a forward pass with values."""
        seen: dict[str, Tensor] = {}
        with ExitStack() as contexts:
            contexts.enter_context(_random_state_kept())
            contexts.enter_context(torch.no_grad())
            for name in names:
                module = self.model.get_submodule(name)
                keep = functools.partial(seen.__setitem__, name)
                handle = module.register_forward_hook(lambda _module, _args, output, keep=keep: keep(output.clone()))
                contexts.callback(handle.remove)
            self.model(*inputs.args, **inputs.kwargs)
        return seen

    def _has_run(self, trace: Trace) -> bool:
        convolutions = {name for module, name in self.names.items() if isinstance(module, conv._ConvNd)}
        return bool(convolutions) and len(convolutions & trace.calls.keys()) >= MOST * len(convolutions)

    def _record(self, trace: Trace, stack: list[str], flow: _Flow) -> Iterator[Any]:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            stack.append(self.names[module])
            if module._parameters:
                trace.read |= flow.makers_of((args, kwargs))

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            stack.pop()
            is_map = isinstance(output, Tensor) and output.is_floating_point()
            inputs = trace.taken((args, kwargs))
            call = Call(inputs, trace.taken(output)[0] if is_map else None)
            trace.calls.setdefault(self.names[module], []).append(call)
            if module._parameters and is_map:
                flow.makers[id(output)] = {self.names[module]}

        for module in self.names:
            yield module.register_forward_pre_hook(enter, with_kwargs=True)
            yield module.register_forward_hook(leave, with_kwargs=True)


def _on_meta(tensor: Tensor) -> Tensor:
    if is_lazy(tensor):
        return type(tensor)(device="meta")  # type: ignore[call-arg]
    moved = tensor.detach().to("meta")
    return nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved


class _Flow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Note in which modules an attention is computed, and from which modules with parameters each tensor comes."""

    def __init__(self, trace: Trace, stack: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace, self.stack = trace, stack
        self.makers: dict[int, set[str]] = {}

    def makers_of(self, values: Any) -> set[str]:
        return set().union(*(self.makers.get(id(leaf), ()) for leaf in tree_leaves(values)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(word in str(func) for word in ATTENTION):
            self.trace.attends.add(self.stack[-1])
        result = func(*args, **(kwargs or {}))
        makers = self.makers_of((args, kwargs))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.makers[id(leaf)] = makers
                self.trace.kept.append(leaf)
        return result


def _remove(handles: Iterable[Any]) -> None:
    for handle in handles:
        handle.remove()


@contextmanager
def _random_state_kept() -> Iterator[None]:
    state = random.getstate()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(state)
