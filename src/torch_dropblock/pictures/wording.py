"""Formatting of sizes and shares."""

from __future__ import annotations

from collections.abc import Sequence


def percent(share: float) -> str:
    """Format a share with enough decimals: only exact 0 and 1 read 0 % and 100 %."""
    if share <= 0 or share >= 1:
        return f"{100 * share:.0f} %"
    if share < 1e-6:
        return f"{100 * share:.2e} %"
    below, above = (int(f"{100 * part:.2e}".partition("e")[2]) for part in (share, 1 - share))
    return f"{100 * share:.{max(1, 2 - below, 1 - above)}f} %"


def joined(size: Sequence[object]) -> str:
    return "×".join(map(str, size))
