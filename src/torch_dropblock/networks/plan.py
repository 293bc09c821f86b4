"""`Plan`: the layers that stages get, by name, and the table that says where they are and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..core.geometry import Size
from ..core.hints import Layers
from ..layer.layouts import Layout
from ..layer.modules import DropBlockNd
from . import summary_table

COLUMNS = ("after module", "type", "map", "layout", "block", "keep_prob")
WORDS = {"module", "after module", "type", "layout"}


@dataclass(frozen=True)
class Row:
    """A layer of a plan: the module that it follows, the map there, the clamped block and the keep_prob."""

    name: str
    type: str
    map: Size
    layout: Layout
    block: Size
    keep_prob: float

    def cells(self) -> tuple[str, ...]:
        numbers = (_joined(self.block), f"{self.keep_prob:.4g}")
        return (self.name, self.type, _joined(self.map), layout_text(self.layout), *numbers)


class Plan(Layers):
    """The layers by the name of the module that each follows; printed, a table of them.

    Attributes:
        rows: the layers as rows of the table.
        notes: how the places were chosen, in sentences.
    """

    def __init__(self, layers: Mapping[str, DropBlockNd], rows: Sequence[Row], notes: Sequence[str]) -> None:
        super().__init__(layers)
        self.rows, self.notes = tuple(rows), tuple(notes)

    def __str__(self) -> str:
        return self.text(summary_table.WIDTH)

    def text(self, width: int) -> str:
        """Return the table for a terminal of `width` columns; the layout is shown where one is not channels first."""
        return table(COLUMNS, [row.cells() for row in self.rows], self.notes, width)


def table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], notes: Sequence[str], width: int) -> str:
    layouts = columns.index("layout")
    if all(row[layouts] == "channels_first" for row in rows):
        columns, *rows = ((*line[:layouts], *line[layouts + 1 :]) for line in (columns, *rows))
    return summary_table.text(columns, rows, notes, width, WORDS)


def layout_text(layout: Layout) -> str:
    return layout if isinstance(layout, str) else f"tokens {_joined(layout)}"


def _joined(size: Size) -> str:
    return "×".join(map(str, size))
