"""Tables and plots of the measures."""

import math
import statistics

import pytest

from torch_dropblock.compare.measure_report import COLUMNS, draw, paired, tables, values_of
from torch_dropblock.compare.result_lines import MEASURED


def run(row, seed, **measures):
    return {"row": row, "seed": seed, "measures": measures}


def calibration(ece, nll=1.0):
    return {"ece": ece, "nll": nll, "bins": [[0.5, 0.25, 0.75], [0.9, 1.0, 0.25]]}


RUNS = [
    run("baseline", 0, calibration=calibration(0.10)),
    run("baseline", 1, calibration=calibration(0.20)),
    run("dropblock", 0, calibration=calibration(0.11)),
    run("dropblock", 1, calibration=calibration(0.23)),
    {"row": "cutout", "seed": 0},
]
ORDER = ["baseline", "cutout", "dropblock"]


def test_differences_are_paired_by_seed():
    (table,) = tables(RUNS, ORDER)
    assert table.header == ["", "ECE, %", "− baseline", "NLL", "− baseline", "seeds"]
    half = 12.7062 * statistics.stdev([1, 3]) / math.sqrt(2)  # Student's t with one degree of freedom
    assert table.rows == [
        ["baseline", "15.00 ± 7.07", "", "1.00 ± 0.00", "", "2"],
        ["dropblock", "17.00 ± 8.49", f"+2.00 ({2 - half:+.2f} to {2 + half:+.2f})", "1.00 ± 0.00",
         "+0.00 (+0.00 to +0.00)", "2"],
    ]  # fmt: skip
    assert "| dropblock | 17.00 ± 8.49 | +2.00 " in str(table)


def test_seeds_that_one_of_them_lacks_do_not_count():
    assert paired({0: 1.0, 2: 5.0}, {0: 0.5, 1: 9.0}).mean == 0.5
    assert paired({0: 1.0}, {0: 0.5}).low is None
    assert paired({0: 1.0}, {1: 0.5}) is None


def test_what_is_no_number_is_left_out():
    runs = [run("baseline", seed, uncertainty={"auroc_errors": value}) for seed, value in ((0, math.nan), (1, 0.5))]
    assert values_of("uncertainty", "auroc_errors", "baseline", runs) == {1: 0.5}


def test_columns_are_numbers_that_are_in_the_lines():
    assert COLUMNS.keys() == MEASURED.keys()
    assert all(column.key in MEASURED[name] for name, columns in COLUMNS.items() for column in columns)


def test_nothing_is_printed_of_what_was_not_measured():
    assert tables(RUNS[-1:], ORDER) == []
    assert draw(RUNS[-1:], ORDER, "title") == {}


@pytest.mark.parametrize("rows", [["baseline"], ORDER])
def test_plots_of_what_was_measured(rows):
    curve = {"auc": 0.5, "curve": [[0.0, 0.9], [0.5, 0.3]]}
    runs = [result | {"measures": result["measures"] | {"occlusion": curve}} for result in RUNS if "measures" in result]
    files = draw(runs, rows, "cifar10 $x")
    assert set(files) == {"occlusion.png", "reliability.png", *(["differences.png"] if len(rows) > 1 else [])}
    assert all(content.startswith(b"\x89PNG") for content in files.values())
