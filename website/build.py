"""Build the documentation into site/, with warnings as errors, and check the result.

    pip install -e ".[docs]"
    python website/build.py           # then open site/index.html in a browser
    python website/figures.py         # redraw the figures, which are committed in docs/images

The site must work from the file system, without a network. Every link therefore has to lead to an existing file and
anchor, and no page may load a script, style, font or image from elsewhere.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[1]
SITE = ROOT / "site"
# attributes that a browser fetches by itself, by tag
FETCHED = {
    "script": ("src",),
    "link": ("href",),
    "img": ("src",),
    "source": ("src", "srcset"),
    "iframe": ("src",),
    "object": ("data",),
    "embed": ("src",),
    "video": ("src", "poster"),
    "audio": ("src",),
    "use": ("href", "xlink:href"),
    "image": ("href", "xlink:href"),
}
NOT_FETCHED = {"canonical", "prev", "next", "alternate"}  # links of a page to others, for search engines


class Page(HTMLParser):
    """The anchors, links, fetched addresses and styles of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = {"", "__top"}
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.styles: list[str] = []
        self.problems: list[str] = []
        self._in_style = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        have = {name: value or "" for name, value in attrs}
        self.anchors |= {have[name] for name in ("id", "name") if name in have}
        self.styles.append(have.get("style", ""))
        self._in_style = tag == "style"
        if tag == "a" and "href" in have:
            self.links.append(have["href"])
        elif tag == "img" and not have.get("alt"):
            self.problems.append(f"the image {have.get('src')} has no alternative text")
        elif tag == "autoref":
            self.problems.append(f"the reference {have.get('identifier')} was not resolved")
        if not (tag == "link" and have.get("rel") in NOT_FETCHED):
            self.fetched += [have[name] for name in FETCHED.get(tag, ()) if name in have]

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.styles.append(data)


def problems(site: Path) -> Iterator[str]:
    """Yield a line for each fault of a built site."""
    # 404.html is served at any address, so its links begin at the root of a server
    pages = {path: Page(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}
    if not pages:
        yield f"there is no page in {site}"
    for path, page in pages.items():
        name = path.relative_to(site)
        yield from (f"{name}: {problem}" for problem in page.problems)
        for address in [*page.fetched, *(url for style in page.styles for url in urls_of(style))]:
            yield from (f"{name}: {problem}" for problem in resource_problems(address, path))
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                yield f"{name}: the link {link} leads to no file"
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f"{name}: the link {link} leads to no anchor"
    for path in sorted(site.rglob("*.css")):
        for address in urls_of(path.read_text(encoding="utf-8")):
            yield from (f"{path.relative_to(site)}: {problem}" for problem in resource_problems(address, path))


def urls_of(style: str) -> list[str]:
    return [url.strip("'\" ") for url in re.findall(r"url\(([^)]*)\)|@import\s+([^;]+)", style) for url in url if url]


def resource_problems(address: str, path: Path) -> Iterator[str]:
    parts = urlsplit(address)
    if parts.scheme == "data" or address.startswith("#"):
        return
    if parts.scheme or parts.netloc:
        yield f"{address} would be fetched from outside"
    elif not (path.parent / unquote(parts.path)).resolve().is_file():
        yield f"{address} is not there"


def build() -> None:
    from zensical.main import cli

    sys.path.insert(0, str(Path(__file__).parent))  # for the extensions mathml and stacked
    os.chdir(ROOT)
    shutil.rmtree(SITE, ignore_errors=True)
    cli(["build", "--strict", "--clean"], standalone_mode=False)


def main() -> None:
    build()
    found = list(problems(SITE))
    for problem in found:
        print(problem)
    print(f"{len(list(SITE.rglob('*.html')))} pages in {SITE.relative_to(ROOT)}, {len(found)} problems")
    if found:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
