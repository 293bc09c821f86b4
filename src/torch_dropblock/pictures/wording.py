"""Sizes and shares as text."""

from __future__ import annotations

from collections.abc import Sequence


def percent(share: float) -> str:
    """A share with enough decimals that a small one does not read 0 %, nor one close to 1 100 %."""
    if share <= 0 or share >= 1:
        return f"{100 * share:.0f} %"
    if share < 1e-6:
        return f"{100 * share:.2e} %"
    below, above = (int(f"{100 * part:.2e}".partition("e")[2]) for part in (share, 1 - share))
    return f"{100 * share:.{max(1, 2 - below, 1 - above)}f} %"


def joined(size: Sequence[int]) -> str:
    return "×".join(map(str, size))
