"""The README's badges say what the package's metadata says."""

import sys
from pathlib import Path

import pytest

import torch_dropblock

ROOT = Path(__file__).parents[2]
pytest.importorskip("tomllib", reason="needs Python 3.11")


def test_badges(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "website"))
    import badges

    drawn = badges.badges()
    sys.modules.pop("badges")
    assert f">{torch_dropblock.__version__}<" in drawn["version"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, svg in drawn.items():
        assert (ROOT / "docs" / "images" / f"badge-{name}.svg").read_text(encoding="utf-8") == svg
        assert f"docs/images/badge-{name}.svg" in readme
    assert f"![version {torch_dropblock.__version__}]" in readme
