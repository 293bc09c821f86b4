"""Match names of layers between models whose wrappers (DDP, `torch.compile`) or adapters (LoRA) differ."""

from __future__ import annotations

from collections.abc import Iterable

from . import sites

_Parts = tuple[str, ...]


def renamed(targets: dict[str, float], names: list[str]) -> dict[str, float]:
    """Return the targets under the names of this model: wrappers and adapters make names longer or shorter."""
    if targets.keys() == set(names):
        return targets
    for parts in (_without_wrappers, _without_prefix):
        mine, theirs = parts(names), parts(list(targets))
        # shortened names must stay distinct
        if len(mine) == len(names) == len(targets) == len(theirs):
            pairs = _longest_inside(mine, theirs) or {b: a for a, b in _longest_inside(theirs, mine).items()}
            if pairs:
                return {mine[part]: targets[theirs[other]] for part, other in pairs.items()}
    only = [sorted(map(repr, a - b)) for a, b in ((set(names), targets.keys()), (targets.keys(), set(names)))]
    raise ValueError(
        "the state is of a model with other DropBlock layers: "
        f"only in the model: {', '.join(only[0]) or 'none'}; only in the state: {', '.join(only[1]) or 'none'}"
    )


def _longest_inside(longer: Iterable[_Parts], shorter: Iterable[_Parts]) -> dict[_Parts, _Parts]:
    """Match each name to the longest of the shorter ones whose parts it contains in order; {} if not unique."""
    pairs: dict[_Parts, _Parts] = {}
    for name in longer:
        inside = [other for other in shorter if _is_inside(other, name)]
        most = max(map(len, inside), default=0)
        longest = [other for other in inside if len(other) == most]
        if len(longest) != 1 or longest[0] in pairs.values():
            return {}
        pairs[name] = longest[0]
    return pairs


def _is_inside(parts: _Parts, name: _Parts) -> bool:
    rest = iter(name)
    return all(part in rest for part in parts)


def _without_wrappers(names: list[str]) -> dict[_Parts, str]:
    return {tuple(sites.canonical(name).split(".")): name for name in names}


def _without_prefix(names: list[str]) -> dict[_Parts, str]:
    """Return the names by their parts, without the leading parts that all names share."""
    parts = _without_wrappers(names)
    common = 0
    while all(len(part) > common + 1 for part in parts) and len({part[common] for part in parts}) == 1:
        common += 1
    return {part[common:]: name for part, name in parts.items()}
