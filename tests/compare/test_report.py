"""Means, intervals, the table and the pages."""

import io
import math
import statistics

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from helpers.command import check_texts
from torch_dropblock.compare import report
from torch_dropblock.compare.rows import TABLE_1
from torch_dropblock.compare.settings import Settings

LONG = "dropblock:keep_prob=0.95:block_size=3:curve=constant:rate=paper+label-smoothing:amount=0.25+cutout:area=0.33"


def result(row, seed, top1, epochs=4, **more):
    curve = [[epoch, top1 * epoch / epochs] for epoch in range(1, epochs + 1)]
    machine = {"processor": "P", "threads": 1}
    return {"row": row, "seed": seed, "top1": top1, "step_ms": 10.0 + seed, "machine": machine, **more} | {
        "curves": {"top1": curve, "train_top1": curve}
    }


def results(**rows):
    return [result(row, seed, top1) for row, values in rows.items() for seed, top1 in enumerate(values)]


def test_lines_follow_the_order_asked_for_and_leave_out_what_is_not_finished():
    found = report.lines_of(results(dropout=[0.8], baseline=[0.7, 0.9]), ["baseline", "cutout", "dropout"])
    assert [line.row for line in found] == ["baseline", "dropout"]
    assert found[0].top1 == pytest.approx([70, 90])
    assert found[0].step_ms == 10.5
    assert found[0].difference is None


@pytest.mark.parametrize("seeds", [(2, 2), (3, 3), (3, 5), (5, 2)])
def test_the_interval_is_welchs(seeds):
    """Against scipy's own, and for equal numbers against the formula in Welch's terms."""
    draw = np.random.default_rng(sum(seeds))
    values, baseline = draw.normal(0.8, 0.02, seeds[0]).tolist(), draw.normal(0.7, 0.005, seeds[1]).tolist()
    _, line = report.lines_of(results(baseline=baseline, dropout=values), ["baseline", "dropout"])
    expected = stats.ttest_ind(values, baseline, equal_var=False).confidence_interval(0.95)
    assert line.difference.mean == pytest.approx(100 * (np.mean(values) - np.mean(baseline)))
    assert (line.difference.low, line.difference.high) == pytest.approx((100 * expected.low, 100 * expected.high))
    if seeds[0] == seeds[1]:
        a, b = statistics.variance(values), statistics.variance(baseline)
        freedom = (seeds[0] - 1) * (a + b) ** 2 / (a**2 + b**2)
        half = stats.t.isf(0.025, freedom) * math.sqrt((a + b) / seeds[0])
        assert line.difference.high - line.difference.mean == pytest.approx(100 * half)


def test_the_interval_holds_the_truth_in_95_of_100_studies():
    draw = np.random.default_rng(7)
    holds = 0
    for _ in range(1000):
        rows = {"baseline": draw.normal(0.8, 0.01, 3).tolist(), "dropout": draw.normal(0.8, 0.01, 3).tolist()}
        difference = report.lines_of(results(**rows), list(rows))[1].difference
        holds += difference.low <= 0 <= difference.high
    # Welch's is a little too wide for so few; 3.5 standard errors below
    assert 0.95 - 3.5 * math.sqrt(0.95 * 0.05 / 1000) < holds / 1000 < 0.995


@pytest.mark.parametrize(
    ("baseline", "values", "expected"),
    [
        ([0.5], [0.6], (10, None, None)),
        ([0.5, 0.52], [0.6], (9, None, None)),
        ([0.5], [0.6, 0.62], (11, None, None)),
        ([0.5, 0.5], [0.75, 0.75], (25, 25, 25)),
        ([0.5, 0.5], [0.5, 0.5], (0, 0, 0)),
    ],
)
def test_few_seeds_and_equal_values(baseline, values, expected):
    _, line = report.lines_of(results(baseline=baseline, dropout=values), ["baseline", "dropout"])
    found = (line.difference.mean, line.difference.low, line.difference.high)
    assert found == pytest.approx(expected)


def test_one_row_that_does_not_vary():
    _, line = report.lines_of(results(baseline=[0.5, 0.5, 0.5], dropout=[0.6, 0.62, 0.64]), ["baseline", "dropout"])
    half = stats.t.isf(0.025, 2) * 2 / math.sqrt(3)
    assert (line.difference.low, line.difference.high) == pytest.approx((12 - half, 12 + half))


def test_without_a_baseline_there_is_no_difference():
    (line,) = report.lines_of(results(dropout=[0.5, 0.6]), ["baseline", "dropout"])
    assert line.difference is None
    assert report.cells(line, with_top5=False) == ["dropout", "55.00 ± 7.07", "", "", "2", "10.5"]


# --- table -------------------------------------------------------------------------------------------------------


def test_markdown():
    found = [*results(baseline=[0.5, 0.6], dropout=[0.6, 0.7]), result("cutout", 0, 0.4)]
    lines = report.lines_of(found, ["baseline", "dropout", "cutout"])
    half = stats.t.isf(0.025, 2) * 10 / math.sqrt(2)
    assert report.markdown(lines, ["about"]).splitlines() == [
        "about",
        "",
        "|  | top-1, % | − baseline | 95 % interval | seeds | ms/step |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| baseline | 55.00 ± 7.07 |  |  | 2 | 10.5 |",
        f"| dropout | 65.00 ± 7.07 | +10.00 | {10 - half:+.2f} to {10 + half:+.2f} | 2 | 10.5 |",
        "| cutout | 40.00 | -15.00 |  | 1 | 10 |",
        "",
        report.NOTE,
    ]


def test_top5_has_a_column_where_there_is_any():
    lines = report.lines_of([result("baseline", 0, 0.5, top5=0.8)], ["baseline"])
    assert report.header(lines)[:3] == ["", "top-1, %", "top-5, %"]
    assert report.cells(lines[0], with_top5=True)[:3] == ["baseline", "50.00", "80.00"]


@pytest.mark.parametrize(("step_ms", "text"), [(0.1234, "0.123"), (12.34, "12.3"), (99.96, "100"), (2261.7, "2262")])
def test_milliseconds_are_plain_numbers(step_ms, text):
    (line,) = report.lines_of([result("baseline", 0, 0.5) | {"step_ms": step_ms}], ["baseline"])
    assert report.cells(line, with_top5=False)[-1] == text


def test_it_says_what_was_trained_and_on_what():
    settings = Settings(data="cifar10", epochs=7, block_size=5, learning_rate=0.2, batch_size=256)
    found = [result("baseline", seed, 0.5) for seed in range(2)] + [
        result("baseline", 2, 0.5) | {"machine": {"processor": "Q"}}
    ]
    trained, *machines = report.about(settings, 50000, 10000, found)
    for words in ("cifar10: 50,000 images to train on, 10,000", "7 epochs of batches of 256", "rate 0.2 (cos", "of 5,"):
        assert words in trained
    assert machines == ["processor P, threads 1", "processor Q"]
    together = report.about(settings, 50000, 10000, [*found, result("dropblock", 0, 0.5, processes=2)])
    assert together[1:] == ["processor P, threads 1", "processor P, threads 1, processes 2", "processor Q"]


@pytest.mark.parametrize(
    ("settings", "title"),
    [
        (Settings(data="cifar10", epochs=1), "cifar10, small, 1 epoch"),
        (Settings(data="folder:/data/my pictures/"), "my pictures, small, 30 epochs"),
        (Settings(data="folder:photos"), "photos, small, 30 epochs"),
        (Settings(data="folder:bad\udcff"), "bad\\udcff, small, 30 epochs"),
    ],
)
def test_titles(settings, title):
    assert report.title_of(settings) == title


@pytest.mark.parametrize(
    ("name", "width", "lines"),
    [
        ("baseline", 20, ["baseline"]),
        ("dropblock+label-smoothing", 20, ["dropblock", "+label-smoothing"]),
        ("dropblock+label-smoothing", 30, ["dropblock+label-smoothing"]),
        ("dropblock:block_size=3:rate=paper", 24, ["dropblock:block_size=3", ":rate=paper"]),
        ("a" * 30, 12, ["a" * 12, "a" * 12, "a" * 6]),
    ],
)
def test_names_are_broken_where_their_parts_begin(name, width, lines):
    assert report.wrapped(name, width).split("\n") == lines


# --- pages -------------------------------------------------------------------------------------------------------

ORDERS = {
    "paper": TABLE_1,
    "twelve": (*TABLE_1, "dropblock:block_size=3", "dropblock:keep_prob=0.8", "dropblock:rate=paper"),
    "long": ("baseline", LONG, "dropblock", LONG.replace("0.95", "0.9")),
    "two": ("baseline", "dropblock"),
    "one": ("baseline",),
}


@pytest.mark.parametrize(("order", "seeds"), [("paper", 1), *((order, 3) for order in ORDERS)])
def test_pages_have_room_for_all_names(saved, order, seeds):
    rows = ORDERS[order]
    found = [result(row, seed, 0.8 + 0.01 * i + 0.002 * seed) for i, row in enumerate(rows) for seed in range(seeds)]
    files = report.draw(found, rows, "cifar10, small, 30 epochs")
    assert list(files) == ["accuracy.png", "curves.png"]
    for figure, content in zip(saved, files.values(), strict=True):
        check_texts(figure)
        assert np.asarray(Image.open(io.BytesIO(content)).convert("L")).std() > 10
        for axes in figure.axes:
            if axes.get_visible():
                assert min(axes.get_position().size) * min(figure.get_size_inches()) > 0.3


def test_what_the_accuracy_page_shows():
    lines = report.lines_of(results(baseline=[0.5, 0.52], dropout=[0.6, 0.64]), ["baseline", "dropout"])
    with report.house_style():
        (axes,) = report.accuracy_page(lines, "title").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["baseline", "dropout"]
    assert axes.yaxis_inverted()
    drawn = [line.get_xdata() for line in axes.lines]
    for expected in ([50, 52], [51], [60, 64], [62], [51 + lines[1].difference.low, 51 + lines[1].difference.high]):
        assert any(len(xs) == len(expected) and np.allclose(xs, expected) for xs in drawn), expected


def test_a_folders_name_is_no_formula():
    assert len(report.draw(results(baseline=[0.5, 0.52]), ["baseline"], "US$ and C$ and $x^$")) == 2


def test_curves_are_means_where_all_runs_have_a_value():
    runs = [
        {"curves": {"top1": [[1, 0.2], [2, 0.4], [3, 0.5]]}},
        {"curves": {"top1": [[2, 0.6], [3, 0.7]]}},
    ]
    epochs, means = report.mean_curve(runs, "top1")
    assert (epochs, means) == ([2, 3], pytest.approx([50, 60]))
    assert report.mean_curve(runs, "top5") == ([], [])
    assert report.mean_curve([], "top1") == ([], [])


def test_the_curves_page_leaves_out_the_first_rise(saved):
    found = [result("baseline", 0, 0.8, epochs=40)]
    with report.house_style():
        (axes,) = report.curves_page(found, ["baseline"], "title").axes
    assert axes.get_ylim()[0] == pytest.approx(100 * 0.8 * 5 / 40 - 2)


def test_the_baseline_is_drawn_behind(monkeypatch):
    behind = []
    drawn = report.draw_curves
    monkeypatch.setattr(
        report, "draw_curves", lambda axes, runs, b: behind.append([run["row"] for run in b]) or drawn(axes, runs, b)
    )
    report.curves_page(results(baseline=[0.5], dropblock=[0.6]), ["baseline", "dropblock"], "title")
    assert behind == [["baseline"], ["baseline"]]
