"""The measures by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import calibration, corruption, occlusion, parts, uncertainty
from .trained import Trained

MEASURES: dict[str, Callable[[Trained], dict[str, Any]]] = {
    module.__name__.rpartition(".")[2]: module.measure
    for module in (occlusion, corruption, calibration, uncertainty, parts)
}


def chosen(text: str | None) -> list[str]:
    """Parse the option `--measure`: names joined by commas, or `all`.

    Raises:
        ValueError: there is no such measure, or one is named twice.
    """
    if text is None:
        return []
    names = list(MEASURES) if text == "all" else text.split(",")
    if set(names) - MEASURES.keys() or len(set(names)) < len(names):
        raise ValueError(f"--measure must be all, or some of {', '.join(MEASURES)} joined by commas, got {text!r}")
    return names
