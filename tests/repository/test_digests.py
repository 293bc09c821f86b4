"""`benchmarks/digests.py`, and the digests that docs/reproducibility.md has committed."""

import sys
from pathlib import Path

import pytest
import torch

from torch_dropblock import use_backend

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reproducibility.md"


@pytest.fixture
def digests(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import digests

    yield digests
    for name in ("digests", "rates"):
        sys.modules.pop(name, None)


@pytest.fixture
def few(digests, monkeypatch):
    """Four of the cases, of which code is compiled too."""
    monkeypatch.setattr(digests, "CASES", [digests.CASES[i] for i in (4, 5, 15, 19)])
    return digests


@pytest.mark.parametrize("backend", ["reference", "sparse", "native"])
def test_the_committed_digests_are_those_of_every_backend_of_the_cpu(digests, backend):
    if backend not in digests.available():
        pytest.skip(f"{backend} is not there")
    with use_backend(backend):
        mine = [digests.digest(case.mask(torch.device("cpu"))) for case in digests.CASES]
    assert digests.between_markers(PAGE.read_text(encoding="utf-8"), digests.table(mine), digests.NAME) == (
        PAGE.read_text(encoding="utf-8")
    ), "a change of masks is for a major version; then: python benchmarks/digests.py --write docs/reproducibility.md"


def test_the_cases_are_20_and_differ(digests):
    assert len(set(digests.CASES)) == 20
    assert {case.dims for case in digests.CASES} == {1, 2, 3}


def test_all_equal_and_written_between_the_markers(few, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- digests:begin -->\nold\n<!-- digests:end -->\nafter\n")
    few.main(["--backend", "sparse", "--backend", "reference", "--write", str(page)])
    printed = capsys.readouterr().out
    assert "all equal: sparse, eager; sparse, compiled; reference, eager; reference, compiled" in printed
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    committed = PAGE.read_text(encoding="utf-8").splitlines()
    assert all(line in committed for line in lines[4:-2])
    assert len(lines[4:-2]) == len(few.CASES)


def test_what_differs_is_named_and_not_written(few, monkeypatch, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("<!-- digests:begin -->\n<!-- digests:end -->\n")
    several = {"one, eager": ["a"] * 4, "two, eager": ["a", "b", "a", "a"]}
    monkeypatch.setattr(few, "measured", lambda backend: several)
    with pytest.raises(SystemExit) as ended:
        few.main(["--backend", "sparse", "--write", str(page)])
    assert ended.value.code == 1
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("two, eager"))
    assert line == f"two, eager: {' '.join(few.CASES[1].cells())}: b, and a for one, eager"
    assert page.read_text() == "<!-- digests:begin -->\n<!-- digests:end -->\n"


def test_markers_that_are_missing_are_an_error_before_anything_is_drawn(few, tmp_path, capsys):
    with pytest.raises(SystemExit):
        few.main(["--write", str(tmp_path / "none.md")])
    assert "none.md" in capsys.readouterr().err


def test_without_a_gpu_triton_is_interpreted_in_a_process_of_its_own(few, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(few, "interpreted_digests", lambda: {"triton, eager": ["a"] * 4})
    assert few.measured("triton") == {"triton, eager, interpreted": ["a"] * 4}
