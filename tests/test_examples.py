"""Every example of a docstring and of the README runs and shows what it says."""

import doctest
import importlib
import re
from pathlib import Path

import matplotlib as mpl
import pytest
import torch

import torch_dropblock

ROOT = Path(__file__).parents[1]
MODULES = sorted(path.stem for path in Path(torch_dropblock.__file__).parent.glob("[!_]*.py"))


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    module = importlib.import_module(f"torch_dropblock.{name}")
    names = vars(torch_dropblock) | {"torch": torch}
    result = doctest.testmod(module, extraglobs={k: v for k, v in names.items() if not k.startswith("_")})
    assert result.failed == 0


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))
def test_readme(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    exec(compile(code, "README.md", "exec"), {})
