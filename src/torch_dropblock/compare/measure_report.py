"""Tables and plots of the measures: means over seeds, and differences from the baseline with a paired interval."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scipy import stats

from ..pictures.figures import ACCENT, INK, MUTED, house_style
from .report import CONFIDENCE, Difference, spread, wrapped
from .result_lines import Result
from .rows import BASELINE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Column:
    """A number of a measure.

    Args:
        key: its name in the results.
        heading: its name in tables, with its unit.
        factor: factor to that unit.
        better: 1 if higher is better, -1 if lower is, None if neither is.
    """

    key: str
    heading: str
    factor: float = 100.0
    better: int | None = 1


COLUMNS = {
    "occlusion": [Column("auc", "mean top-1, %")],
    "corruption": [Column("mean", "mean top-1, %")],
    "calibration": [Column("ece", "ECE, %", better=-1), Column("nll", "NLL", 1.0, -1)],
    "uncertainty": [
        Column("top1", "top-1, %"),
        Column("ece", "ECE, %", better=-1),
        Column("auroc_errors", "AUROC of errors, %"),
        Column("aurc", "AURC, %", better=-1),
        Column("auroc_others", "AUROC of other images, %"),
    ],
    "parts": [Column("share", "share, %", better=None)],
}
ABOUT = {
    "occlusion": "Accuracy with a square hidden, averaged over its share of the image from 0 to about a half. Higher "
    "is better.",
    "corruption": "Accuracy averaged over noise, blur, low contrast and JPEG at three levels each. Higher is better.",
    "calibration": "Expected calibration error (15 bins) and negative log-likelihood. Lower is better.",
    "uncertainty": "Average of {passes} passes with the noise left on; one pass for rows without noise. AUROC: how "
    "well its entropy tells errors, and images of other things ({others}). AURC: area under the risk-coverage curve, "
    "lower is better.",
    "parts": "Share of the class activation map of the predicted class above half of its maximum.",
}
PAIRED = "Mean ± standard deviation over seeds; − baseline: mean and 95 % interval of the difference, paired by seed."


@dataclass(frozen=True)
class Table:
    """A table of one measure; as a string, in Markdown."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str

    def __str__(self) -> str:
        lines = [self.header, ["---", *("---:" for _ in self.header[1:])], *self.rows]
        return "\n\n".join(
            [f"**{self.title}**", "\n".join(f"| {' | '.join(line)} |" for line in lines), self.note + "\n"]
        )


def tables(results: Sequence[Result], order: Sequence[str]) -> list[Table]:
    """Return one table for each measure that a run has."""
    return [_table(measure, results, order) for measure in COLUMNS if _runs(measure, results)]


def _runs(measure: str, results: Sequence[Result]) -> list[Result]:
    return [result for result in results if measure in result.get("measures", {})]


def _table(measure: str, results: Sequence[Result], order: Sequence[str]) -> Table:
    columns, runs = COLUMNS[measure], _runs(measure, results)
    rows = []
    for name in order:
        seeds = [result for result in runs if result["row"] == name]
        if seeds:
            cells = [cell for column in columns for cell in _cells(measure, column, name, runs)]
            rows.append([name, *cells, str(len(seeds))])
    values = runs[0]["measures"][measure] | {"passes": max(run["measures"][measure].get("passes", 0) for run in runs)}
    header = ["", *(text for column in columns for text in (column.heading, "− baseline")), "seeds"]
    return Table(measure, header, rows, f"{ABOUT[measure].format_map(values)} {PAIRED}")


def values_of(measure: str, key: str, row: str, results: Sequence[Result]) -> dict[int, float]:
    """Return the number of each seed of a row; NaN is left out."""
    found = {run["seed"]: run["measures"][measure][key] for run in _runs(measure, results) if run["row"] == row}
    return {seed: value for seed, value in found.items() if not math.isnan(value)}


def _cells(measure: str, column: Column, row: str, results: Sequence[Result]) -> list[str]:
    mine, baseline = (values_of(measure, column.key, name, results) for name in (row, BASELINE))
    difference = None if row == BASELINE else paired(mine, baseline)
    text = ""
    if difference:
        mean, ends = difference.mean * column.factor, (difference.low, difference.high)
        interval = f" ({' to '.join(f'{end * column.factor:+.2f}' for end in ends if end is not None)})"
        text = f"{mean:+.2f}{interval if difference.low is not None else ''}"
    return [spread([value * column.factor for value in mine.values()]), text]


def paired(values: dict[int, float], baseline: dict[int, float]) -> Difference | None:
    """Return the mean difference over the seeds that both have, with the interval of a paired t test."""
    differences = [value - baseline[seed] for seed, value in values.items() if seed in baseline]
    if not differences:
        return None
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return Difference(mean)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    half = error * float(stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1))
    return Difference(mean, mean - half, mean + half)


# --- plots -----------------------------------------------------------------------------------------------------------


def draw(results: Sequence[Result], order: Sequence[str], title: str) -> dict[str, bytes]:
    """Draw the differences from the baseline, occlusion curves and reliability diagrams; return the files by name."""
    pages: dict[str, Figure] = {}
    with house_style():
        for measure, name, panel in (
            ("occlusion", "occlusion.png", draw_occlusion),
            ("calibration", "reliability.png", draw_reliability),
        ):
            runs = _runs(measure, results)
            names = [row for row in order if any(run["row"] == row for run in runs)]
            if names:
                pages[name] = _page(runs, names, title, panel)
        shown = [(measure, column) for measure in COLUMNS if _runs(measure, results) for column in COLUMNS[measure]]
        others = [row for row in order if row != BASELINE]
        if shown and others:
            pages["differences.png"] = _differences_page(results, others, title, shown)
        files = {name: io.BytesIO() for name in pages}
        for name, page in pages.items():
            page.savefig(files[name], format="png")
    return {name: file.getvalue() for name, file in files.items()}


def _differences_page(
    results: Sequence[Result], rows: Sequence[str], title: str, shown: Sequence[tuple[str, Column]]
) -> Figure:
    """Plot each row's difference from the baseline with its interval, a panel for each number of a measure."""
    from matplotlib.figure import Figure

    columns = min(3, len(shown))
    count = math.ceil(len(shown) / columns)
    figure = Figure((9.0, 0.8 + count * (0.7 + 0.16 * len(rows))), layout="constrained")
    grid = figure.subplots(count, columns, sharey=True, squeeze=False)
    for axes, (measure, column) in zip(grid.flat, shown, strict=False):
        for y, row in enumerate(rows):
            found = paired(*(values_of(measure, column.key, name, results) for name in (row, BASELINE)))
            if found:
                color = ACCENT if row.startswith("dropblock") else INK
                axes.plot([found.mean * column.factor], [y], "D", color=color, markersize=4)
                ends = [end * column.factor for end in (found.low, found.high) if end is not None]
                axes.plot(ends, [y] * len(ends), color=color, linewidth=1.5)
        axes.axvline(0, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        axes.set(yticks=range(len(rows)), ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticklabels([wrapped(row, 28) for row in rows], fontsize=8)
        better = {1: "right is better", -1: "left is better", None: ""}[column.better]
        axes.set_title(f"{measure}: {column.heading}\n{better}", fontsize=8, loc="left", color=INK)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=8)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    note = "differences from the baseline, paired by seed, with 95 % intervals"
    figure.suptitle(f"{title}\n{note}", x=0.01, ha="left", fontsize=9, parse_math=False)
    return figure


def _page(runs: Sequence[Result], names: Sequence[str], title: str, panel: object) -> Figure:
    from matplotlib.figure import Figure

    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure((9.0, 0.9 + 2.4 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    baseline = [run for run in runs if run["row"] == BASELINE]
    for axes, name in zip(grid.flat, names, strict=False):
        panel(axes, [run for run in runs if run["row"] == name], baseline)  # type: ignore[operator]
        axes.set_title(wrapped(name, 36), fontsize=9, loc="left", color=INK)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    figure.suptitle(title, weight="bold", x=0.01, ha="left", parse_math=False)
    return figure


def draw_occlusion(axes: Axes, runs: Sequence[Result], baseline: Sequence[Result]) -> None:
    for group, color in ((baseline, "#b9c2cc"), (runs, ACCENT)):
        curves = [run["measures"]["occlusion"]["curve"] for run in group]
        if curves:
            means = [statistics.mean(point[1] for point in points) for points in zip(*curves, strict=True)]
            shares = [share for share, _ in curves[0]]
            axes.plot(_percent(shares), _percent(means), "o-", color=color, markersize=3)
            for points in curves:
                axes.plot(_percent(shares), _percent([top1 for _, top1 in points]), color=color, linewidth=0.5)
    axes.set(xlabel="hidden, %", ylabel="top-1, %")
    axes.label_outer()


def draw_reliability(axes: Axes, runs: Sequence[Result], baseline: Sequence[Result]) -> None:
    axes.plot([0, 100], [0, 100], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    for group, color in ((baseline, "#b9c2cc"), (runs, ACCENT)):
        for run in group:
            confidence, accuracy, share = zip(*run["measures"]["calibration"]["bins"], strict=True)
            sizes = [4 + 60 * value for value in share]
            axes.scatter(_percent(confidence), _percent(accuracy), sizes, color=color, alpha=0.6, linewidths=0)
    axes.set(xlabel="confidence, %", ylabel="top-1, %")
    axes.label_outer()


def _percent(values: Sequence[float]) -> list[float]:
    return [100 * value for value in values]
