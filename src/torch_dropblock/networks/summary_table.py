"""Format the table of a summary as text of a given width: equal rows are merged, and nothing is cut."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

Cells = tuple[str, ...]

WIDTH = 80
# minimum number of equal rows that are shown as one
SEVERAL = 3


def text(columns: Cells, rows: Sequence[Cells], notes: Sequence[str], width: int, words: set[str]) -> str:
    """Return the table, with a rule below its header, and the notes.

    Args:
        columns: the header; the first column holds dotted names.
        rows: the cells.
        notes: sentences below the table.
        width: columns of the terminal. If the table is wider, each name gets a line of its own.
        words: the columns of text, aligned left; columns of numbers are aligned right.
    """
    lines = [columns, *collapsed(rows)]
    left = [columns[i] in words for i in range(len(columns))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if sum(widths) + 2 * (len(widths) - 1) > width:
        table = [line for name, *cells in lines for line in (name, "  " + _aligned(cells, widths[1:], left[1:]))]
        header = 2
    else:
        table = [_aligned(line, widths, left) for line in lines]
        header = 1
    rule = "─" * max(map(len, table))
    wrapped = [line for note in notes for line in textwrap.wrap(note, max(width, 20), subsequent_indent="  ")]
    return "\n".join([*table[:header], rule, *table[header:], "", *wrapped])


def collapsed(rows: Sequence[Cells]) -> list[Cells]:
    """Merge rows of one part of the network that differ only in their names, at the place of the first."""
    groups: dict[Cells, list[str]] = {}
    keys = [(_part(name), *cells) for name, *cells in rows]
    for key, row in zip(keys, rows, strict=True):
        groups.setdefault(key, []).append(row[0])
    shown = []
    for key, row in zip(keys, rows, strict=True):
        names = groups[key]
        if len(names) < SEVERAL:
            shown.append(row)
        elif row[0] == names[0]:
            shown.append((f"{_common(names)}: {len(names)} layers", *row[1:]))
    return shown


def _aligned(cells: Sequence[str], widths: Sequence[int], left: Sequence[bool]) -> str:
    columns = zip(cells, widths, left, strict=True)
    return "  ".join(cell.ljust(width) if is_left else cell.rjust(width) for cell, width, is_left in columns).rstrip()


def _part(name: str) -> str:
    """Return the first part of a dotted name, or "" for a name without dots."""
    return name.partition(".")[0] if "." in name else ""


def _common(names: Sequence[str]) -> str:
    """Return a pattern that all names match, such as `layer3.*`."""
    common = []
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join([*common, "*"])
