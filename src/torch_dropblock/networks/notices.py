"""Describe inserted layers that are present but drop less than requested, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, nn

from . import sites


def of(model: nn.Module) -> list[str]:
    """Describe layers that act inside an adapter, and layers that are missing in a trace of `torch.fx`."""
    return [*_inside_adapters(model), *_missing_in_traces(model)]


def _inside_adapters(model: nn.Module) -> Iterator[str]:
    found: dict[int, str] = {}
    looked_at: set[int] = set()
    for above, module in model.named_modules():
        record = module.__dict__.get(sites.RECORD, {})
        if not looked_at.issuperset(map(id, record.values())):  # skip what a module above has covered
            looked_at.update(map(id, record.values()))
            places = {hook.name: sites.canonical(name) for name, hook in record.items()}
            named = dict(module.named_modules())
            for name, part in named.items():
                for hook in sites.hooks_of(part):
                    adapter = _adapter(named, name, places[hook.name]) if hook.name in places else None
                    if adapter:
                        path = ".".join(filter(None, (above, name)))
                        kind = f"{type(adapter).__module__}.{type(adapter).__qualname__}"
                        found.setdefault(id(hook), f"{path} in a {kind}")
    if found:
        yield (
            f"{len(found)} inserted DropBlock layer(s) act inside the modules that replaced those they follow, so what "
            f"these add afterwards is not dropped: {', '.join(found.values())}. Insert after adding adapters: "
            "remove_dropblock(model), then insert again"
        )


def _adapter(named: dict[str, nn.Module], name: str, place: str) -> nn.Module | None:
    """Return the module in `place` that may add to the output of its part `name`.

    A `Sequential` does not count, nor do the known wrappers: they pass the output on unchanged.
    """
    parts = name.split(".") if name else []
    for i, child in enumerate(parts):
        outer = ".".join(parts[:i])
        is_inside = f"{sites.canonical(outer)}.".startswith(f"{place}.")
        if is_inside and child not in sites.WRAPPERS and type(named[outer]).forward is not nn.Sequential.forward:
            return named[outer]
    return None


def _missing_in_traces(model: nn.Module) -> Iterator[str]:
    for trace in model.modules():
        if isinstance(trace, fx.GraphModule):
            present = dict(_inserted(trace))
            wanted = {name for name, inserted in present.items() for name in _together(name, *inserted)}
            missing = [name or "the whole" for name in sorted(wanted - present.keys())]
            if missing:
                yield (
                    f"{len(missing)} of {len(wanted)} DropBlock layers that were inserted together are missing in a "
                    f"trace of torch.fx: {', '.join(missing)}. Conversions such as prepare_qat_fx fuse the modules "
                    "that they followed: insert after converting"
                )


def _inserted(trace: nn.Module) -> Iterator[tuple[str, tuple[str, tuple[str, ...]]]]:
    """Yield the inserted layers of a trace: its name there, its name at insertion, all names of that insertion."""
    for name, module in trace.named_modules():
        for hook in sites.hooks_of(module):
            yield name, (hook.name, hook.together)
        if sites.INSERTED in module.__dict__:
            yield name.removesuffix(f".{sites.TRACED}"), module.__dict__[sites.INSERTED]


def _together(name: str, inserted_as: str, together: tuple[str, ...]) -> list[str]:
    """Return the names, in the trace, of all layers inserted by one call.

    The trace may be of the whole model, of a part, or of a larger model.
    """
    if f".{inserted_as}".endswith(f".{name}"):
        cut = inserted_as.removesuffix(name)
        return [other.removeprefix(cut) for other in together if other.startswith(cut)]
    if name.endswith(f".{inserted_as}"):
        return [name.removesuffix(inserted_as) + other for other in together]
    return []
