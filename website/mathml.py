"""Formulas as MathML, which browsers draw without a script, a font or a download.

A Python-Markdown extension: `$x$` in a line, and a paragraph that begins and ends with `$$`.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from re import Match
from typing import Any

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.blockprocessors import BlockProcessor
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor


class Inline(InlineProcessor):
    def handleMatch(self, m: Match[str], data: str) -> tuple[str, int, int]:  # noqa: N802
        return self.md.htmlStash.store(convert(m[1])), m.start(0), m.end(0)


class Display(BlockProcessor):
    def test(self, parent: ET.Element, block: str) -> bool:
        return block.startswith("$$") and block.rstrip().endswith("$$") and len(block.strip()) > 4

    def run(self, parent: ET.Element, blocks: list[str]) -> None:
        formula = convert(blocks.pop(0).strip().strip("$").strip(), display="block")
        # the frame scrolls a formula that is wider than the page
        frame = ET.SubElement(parent, "div", {"class": "formula"})
        frame.text = self.parser.md.htmlStash.store(formula)


class MathML(Extension):
    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        # below code spans (190), which may contain dollars, and above all patterns that format text
        md.inlinePatterns.register(Inline(r"(?<![\\$\w])\$([^\s$](?:[^$\n]*[^\s$])?)\$(?![\w$])", md), "mathml", 185)
        md.parser.blockprocessors.register(Display(md.parser), "mathml", 95)


def makeExtension(**options: Any) -> MathML:  # noqa: N802
    return MathML(**options)
