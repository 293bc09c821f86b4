"""README.md: its links lead somewhere in the repository, and none of them is left on PyPI, where they would not."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINKS = re.findall(r"\]\((?!https?:)([^)\s]+)|(?:src|href|srcset)=\"(?!https?:)([^\"\s]+)", README)
LINKS = sorted({first or second for first, second in LINKS})


def anchors(page):
    """The anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("link", LINKS)
def test_a_link_leads_to_a_file_and_a_heading(link):
    path, _, anchor = link.partition("#")
    page = ROOT / (path or "README.md")
    assert page.exists()
    assert not anchor or anchor in anchors(page)


def test_no_link_is_relative_on_pypi():
    """The project has no public address yet, so the build turns links into text and pictures into descriptions."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads pyproject.toml")
    hooks = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["metadata"]["hooks"]
    shown = README
    for substitution in hooks["fancy-pypi-readme"]["substitutions"]:
        shown = re.sub(substitution["pattern"], substitution["replacement"], shown)
    assert len(LINKS) > 3
    assert re.findall(r"\]\((?!https?:|#)[^)]*\)|(?:src|href|srcset)=\"(?!https?:|#|data:)[^\"]*", shown) == []
