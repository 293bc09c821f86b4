"""Draw the README's badges from the package's own metadata: `python website/badges.py`. They need no server."""

from __future__ import annotations

import re
from pathlib import Path

import tomllib

ROOT = Path(__file__).parents[1]
HEIGHT, LETTER, PAD = 20, 6.6, 7  # pixels
BADGE = """<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" role="img">
<title>{name} {value}</title>
<rect width="{width}" height="{height}" rx="3" fill="#0f6b6b"/>
<path d="M3 0h{split}v{height}H3a3 3 0 0 1-3-3V3a3 3 0 0 1 3-3z" fill="#3d4650"/>
<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" text-anchor="middle">
<text x="{left}" y="14">{name}</text><text x="{right}" y="14">{value}</text></g></svg>
"""


def badges() -> dict[str, str]:
    """Return the SVG of each badge by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    source = (ROOT / "src" / "torch_dropblock" / "__init__.py").read_text(encoding="utf-8")
    torch = next(need for need in project["dependencies"] if need.startswith("torch"))
    values = {
        "version": re.search(r'__version__ = "([^"]+)"', source)[1],  # type: ignore[index]
        "licence": project["license"],
        "python": project["requires-python"].replace(">=", "≥ "),
        "pytorch": torch.removeprefix("torch").replace(">=", "≥ "),
    }
    return {name: badge(name, value) for name, value in values.items()}


def badge(name: str, value: str) -> str:
    first, second = (round(len(text) * LETTER + 2 * PAD) for text in (name, value))
    about = {"width": first + second, "height": HEIGHT, "split": first - 3}
    return BADGE.format(name=name, value=value, left=first / 2, right=first + second / 2, **about)


def main() -> None:
    for name, svg in badges().items():
        (ROOT / "docs" / "images" / f"badge-{name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
