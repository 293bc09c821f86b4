"""The files of a study, and the page that shows the committed studies."""

import json
import re
from pathlib import Path

import pytest

from torch_dropblock.compare import measure_report, report
from torch_dropblock.compare.files import files_of
from torch_dropblock.compare.settings import Settings

ROOT = Path(__file__).parents[2]
STUDIES = sorted(path.parent for path in ROOT.glob("results/*/results.jsonl"))
PAGE = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
MARKERS = re.compile(r"<!-- (\S+):begin -->.*?<!-- \1:end -->", re.DOTALL)


def committed(folder):
    runs = [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    return runs, list(dict.fromkeys(run["row"] for run in runs))


def test_files_are_made_from_results_alone():
    run = {"seed": 0, "top1": 0.5, "step_ms": 10.0, "curves": {}, "machine": {"processor": "P"}}
    runs = [run | {"row": row, "measures": {"parts": {"share": 0.2}}} for row in ("baseline", "cutout")]
    files = files_of(Settings(), runs, ["baseline", "cutout"], 1437, 360)
    assert list(files) == ["table.md", "accuracy.png", "curves.png", "differences.png"]
    assert files["table.md"].startswith("digits: 1,437 images to train on, 360 to validate on.")
    assert "| cutout | 50.00 | +0.00 |  | 1 | 10 |" in files["table.md"]
    assert "| cutout | 20.00 | +0.00 | 1 |" in files["table.md"]


@pytest.mark.parametrize("folder", STUDIES, ids=[folder.name for folder in STUDIES])
def test_the_tables_in_the_docs_are_those_of_the_committed_runs(folder):
    runs, rows = committed(folder)
    section = PAGE.split(f"<!-- compare:{folder.name}:begin -->")[1].split(f"<!-- compare:{folder.name}:end -->")[0]
    cells = [report.cells(line, with_top5=False) for line in report.lines_of(runs, rows)]
    for table in measure_report.tables(runs, rows):
        cells += table.rows
    for line in cells:
        assert f"| {' | '.join(line)} |" in section


def test_each_interval_in_the_prose_is_in_a_table():
    """The last list compares rows of DropBlock with one another, which no table does."""
    tables = "".join(match[0] for match in MARKERS.finditer(PAGE))
    prose = MARKERS.sub("", PAGE).partition("## Measured on a CPU")[0]
    intervals = re.findall(r"\(([+-]\d+\.\d+ to [+-]\d+\.\d+)\)", prose)
    assert len(intervals) > 20
    assert [interval for interval in intervals if interval not in tables] == []
