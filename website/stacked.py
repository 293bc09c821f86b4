"""Tables that a telephone shows row by row, since they are wider than its screen.

A Python-Markdown extension. In a table that needs more than a telephone's width, each cell gets the name of its column,
which `docs/site.css` shows before the cell on a narrow screen. Tables of many columns are marked, to be set smaller.
"""

from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ET
from typing import Any

from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor
from markdown.util import HTML_PLACEHOLDER_RE

TELEPHONE = 40  # characters that fit side by side
MANY = 6  # columns


class Stack(Treeprocessor):
    def run(self, root: ET.Element) -> None:
        for table in root.iter("table"):
            names = [self.text(cell) for cell in table.iterfind("thead/tr/th")]
            rows = list(table.iterfind("tbody/tr"))
            columns = [[self.text(row[i]) for row in rows] for i in range(len(names))]
            if len(names) > 2 or sum(map(longest_word, columns)) > TELEPHONE:
                table.set("data-stacked", "")
                for row in rows:
                    for name, cell in zip(names, row, strict=False):
                        cell.set("data-column", name)
            if len(names) >= MANY:
                table.set("data-many", "")

    def text(self, cell: ET.Element) -> str:
        """Return the text of a cell, with that of code, which other extensions set aside as HTML."""
        stash = self.md.htmlStash.rawHtmlBlocks
        found = HTML_PLACEHOLDER_RE.sub(lambda m: plain(stash[int(m[1])]), "".join(cell.itertext()))
        return str(found)


def plain(code: str | ET.Element) -> str:
    return html.unescape(re.sub("<[^>]*>", "", code)) if isinstance(code, str) else "".join(code.itertext())


def longest_word(cells: list[str]) -> int:
    return max((len(word) for cell in cells for word in cell.split()), default=0)


class Stacked(Extension):
    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        md.treeprocessors.register(Stack(md), "stacked", 15)  # after text was formatted (20)


def makeExtension(**options: Any) -> Stacked:  # noqa: N802
    return Stacked(**options)
