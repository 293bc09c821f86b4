"""Tables that a telephone shows row by row, since they are wider than its screen.

A Python-Markdown extension: in a table of three or more columns, each cell gets the name of its column, which
`docs/site.css` shows before the cell on a narrow screen.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor

COLUMNS = 3  # from this number on a table is stacked


class Stack(Treeprocessor):
    def run(self, root: ET.Element) -> None:
        for table in root.iter("table"):
            names = ["".join(cell.itertext()) for cell in table.iterfind("thead/tr/th")]
            if len(names) >= COLUMNS:
                table.set("data-stacked", "")
                for row in table.iterfind("tbody/tr"):
                    for name, cell in zip(names, row, strict=False):
                        cell.set("data-column", name)


class Stacked(Extension):
    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        md.treeprocessors.register(Stack(md), "stacked", 15)  # after text was formatted (20)


def makeExtension(**options: Any) -> Stacked:  # noqa: N802
    return Stacked(**options)
