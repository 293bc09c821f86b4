"""Every example of a docstring, of the README and of the docs runs and shows what it says."""

import doctest
import importlib
import re
from pathlib import Path

import matplotlib as mpl
import pytest
import torch

import torch_dropblock
from helpers.ultralytics_apart import ultralytics_apart

ROOT = Path(__file__).parents[2]
SOURCE = Path(torch_dropblock.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for path in SOURCE.rglob("[!_]*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
# those of docs/placement.md and docs/recipes.md run in tests/networks/test_placement.py, which looks at what they made
ELSEWHERE = {"placement", "recipes"}
PAGES = [ROOT / "README.md", *sorted(path for path in ROOT.glob("docs/*.md") if path.stem not in ELSEWHERE)]
BLOCKS = [(page, code) for page in PAGES for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    module = importlib.import_module(f"torch_dropblock.{name}")
    names = vars(torch_dropblock) | {"torch": torch}
    result = doctest.testmod(module, extraglobs={k: v for k, v in names.items() if not k.startswith("_")})
    assert result.failed == 0


# Lightning's own, about what it uses of torch and about workers for 32 images
# fastai's, which still scripts a loss and sets an option of pandas
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script", "ignore:.*chained_assignment")
@pytest.mark.parametrize(("page", "code"), BLOCKS, ids=[page.stem for page, _ in BLOCKS])
def test_pages(page, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    try:
        with ultralytics_apart(tmp_path):
            exec(compile(code, page.name, "exec"), {"__name__": "__main__"})
    except ModuleNotFoundError as error:
        if page.stem != "trainers":
            raise
        pytest.skip(f"needs {error.name}")
