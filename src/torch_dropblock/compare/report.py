"""Results of a study: means over seeds, differences from the baseline with an interval, a table and two plots.

The interval is Welch's, which allows each row its own variance. Runs with the same seed share only the order of the
images, so they count as independent.
"""

from __future__ import annotations

import io
import math
import re
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scipy import stats

from ..pictures.figures import ACCENT, INK, MUTED, house_style
from .result_lines import Result
from .rows import BASELINE
from .settings import Settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Line:
    """Results of one row over its seeds: accuracies in percent, and the step time in ms."""

    row: str
    top1: list[float]
    top5: list[float]
    step_ms: float
    difference: Difference | None


@dataclass(frozen=True)
class Difference:
    """Difference from the baseline in percentage points; with a single seed it has no interval."""

    mean: float
    low: float | None = None
    high: float | None = None


def lines_of(results: Sequence[Result], order: Sequence[str]) -> list[Line]:
    """Return one line for each row of `order` that has a finished run."""
    by_row = {name: [result for result in results if result["row"] == name] for name in order}
    baseline = _percent(by_row.get(BASELINE, []), "top1")
    return [
        Line(
            row=name,
            top1=_percent(runs, "top1"),
            top5=_percent(runs, "top5"),
            step_ms=statistics.median(run["step_ms"] for run in runs),
            difference=_difference(_percent(runs, "top1"), [] if name == BASELINE else baseline),
        )
        for name, runs in by_row.items()
        if runs
    ]


def _percent(runs: Sequence[Result], name: str) -> list[float]:
    return [100 * run[name] for run in runs if name in run]


def _difference(values: list[float], baseline: list[float]) -> Difference | None:
    if not baseline:
        return None
    mean = statistics.mean(values) - statistics.mean(baseline)
    if min(len(values), len(baseline)) < 2:
        return Difference(mean)
    # squared standard error and degrees of freedom of each mean
    parts = [(statistics.variance(group) / len(group), len(group) - 1) for group in (values, baseline)]
    squared = sum(part for part, _ in parts)
    if squared == 0.0:
        return Difference(mean, mean, mean)
    freedom = squared**2 / sum(part**2 / degrees for part, degrees in parts)  # Welch-Satterthwaite
    half = math.sqrt(squared) * float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
    return Difference(mean, mean - half, mean + half)


# --- table -------------------------------------------------------------------------------------------------------


def header(lines: Sequence[Line]) -> list[str]:
    top5 = ["top-5, %"] if any(line.top5 for line in lines) else []
    return ["", "top-1, %", *top5, "− baseline", "95 % interval", "seeds", "ms/step"]


def cells(line: Line, with_top5: bool) -> list[str]:
    difference = line.difference
    has_interval = difference is not None and difference.low is not None
    return [
        line.row,
        spread(line.top1),
        *([spread(line.top5)] if with_top5 else []),
        f"{difference.mean:+.2f}" if difference else "",
        f"{difference.low:+.2f} to {difference.high:+.2f}" if difference and has_interval else "",
        str(len(line.top1)),
        f"{line.step_ms:.0f}" if line.step_ms >= 100 else f"{line.step_ms:.3g}",
    ]


def spread(values: Sequence[float]) -> str:
    """Format the mean and, for several values, their standard deviation."""
    if not values:
        return ""
    sd = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{sd}"


def markdown(lines: Sequence[Line], about: Sequence[str]) -> str:
    """Return the table, with the paragraphs of `about` above it and a note below."""
    top = header(lines)
    with_top5 = any(line.top5 for line in lines)
    rows = [top, ["---", *("---:" for _ in top[1:])], *(cells(line, with_top5) for line in lines)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return "\n\n".join([*about, table, NOTE]) + "\n"


def about(settings: Settings, train: int, val: int, results: Sequence[Result]) -> list[str]:
    """Describe the training in one paragraph, and each machine in another."""
    blocks = "as large as the last map, at most 7" if settings.block_size is None else f"of {settings.block_size}"
    trained = (
        f"{settings.data}: {train:,} images to train on, {val:,} to validate on. {settings.model}, {settings.epochs} "
        f"epochs of batches of {settings.batch_size}, SGD with Nesterov momentum 0.9, learning rate "
        f"{settings.highest_learning_rate:g} ({settings.decay}), weight decay {settings.weight_decay:g}, "
        f"{settings.precision}. DropBlock: keep_prob {settings.keep_prob:g}, blocks {blocks}, {settings.rate} γ; "
        f"schedule of all that drops: {settings.curve}. Rows that name another setting have that."
    )
    machines = {", ".join(f"{key} {value}" for key, value in _machine_of(result).items()) for result in results}
    return [trained, *sorted(machines)]


def _machine_of(result: Result) -> dict[str, Any]:
    """Return the machine with its number of processes, which affects the statistics of batch norms."""
    several = result.get("processes", 1)
    return {**result["machine"], **({"processes": several} if several > 1 else {})}


NOTE = (
    "Mean ± standard deviation over seeds, after the last epoch. Interval: of the difference of means, 95 % of each "
    "by itself (Welch). Where it holds 0 the runs do not tell the row from the baseline."
)


# --- plots -------------------------------------------------------------------------------------------------------


def title_of(settings: Settings) -> str:
    data = settings.data.encode(errors="backslashreplace").decode()  # a folder name may contain any bytes
    if data.startswith("folder:"):
        data = data.rstrip("/").rpartition("/")[2].removeprefix("folder:")
    return f"{wrapped(data, 40)}, {settings.model}, {settings.epochs} epoch{'s' if settings.epochs > 1 else ''}"


def wrapped(name: str, width: int) -> str:
    """Wrap a row's name to `width` characters, at the beginnings of its parts and options."""
    lines: list[str] = []
    for piece in re.findall("[+:]?[^+:]*", name):
        if lines and len(lines[-1] + piece) <= width:
            lines[-1] += piece
        else:
            lines += textwrap.wrap(piece, width)
    return "\n".join(lines)


def accuracy_page(lines: Sequence[Line], title: str) -> Figure:
    """Plot each run as a dot and each mean as a diamond with its interval, beside the baseline."""
    from matplotlib.figure import Figure

    labels = [wrapped(line.row, 28).split("\n") for line in lines]
    width, right, above, below = 7.6, 0.45, 0.85, 0.6
    height = above + below + len(lines) * (0.25 + 0.17 * max(map(len, labels)))
    figure = Figure((width, height))
    left = 0.35 + 0.085 * max(len(text) for label in labels for text in label)
    box = (left / width, below / height, (width - left - right) / width, (height - above - below) / height)
    draw_accuracies(figure.add_axes(box), lines)
    note = "dots: runs; diamonds: their means; lines: 95 % intervals of the difference from the baseline (dashed)"
    _head(figure, title, note)
    return figure


def _head(figure: Figure, title: str, note: str) -> None:
    width, height = figure.get_size_inches()
    figure.text(0.2 / width, 1 - 0.3 / height, title, weight="bold", va="center", parse_math=False)
    figure.text(0.2 / width, 1 - 0.55 / height, note, color=MUTED, fontsize=8.5, va="center")


def draw_accuracies(axes: Axes, lines: Sequence[Line]) -> Axes:
    baseline = next((statistics.mean(line.top1) for line in lines if line.row == BASELINE), None)
    for y, line in enumerate(lines):
        mean = statistics.mean(line.top1)
        color = ACCENT if line.row.startswith("dropblock") else INK
        axes.plot(line.top1, [y] * len(line.top1), "o", color=color, alpha=0.45, markersize=4, markeredgewidth=0)
        axes.plot([mean], [y], "D", color=color, markersize=6)
        if baseline is not None and line.difference and line.difference.low is not None:
            ends = [baseline + line.difference.low, baseline + (line.difference.high or 0.0)]
            axes.plot(ends, [y, y], color=color, linewidth=1.5)
    if baseline is not None:
        axes.axvline(baseline, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    axes.set(yticks=range(len(lines)), ylim=(len(lines) - 0.5, -0.5))
    axes.set_yticklabels([wrapped(line.row, 28) for line in lines], color=INK)
    axes.set_xlabel("top-1, %")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return axes


def curves_page(results: Sequence[Result], order: Sequence[str], title: str) -> Figure:
    """Plot training and validation accuracy by epoch: one panel per row, with the baseline in grey."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = [name for name in order if any(result["row"] == name for result in results)]
    columns = min(3, len(names))
    count = math.ceil(len(names) / columns)
    width, panel, characters = 9.0, 1.9, 120 // columns
    captions = {name: wrapped(name, characters) for name in names}
    caption = 0.25 + 0.14 * max(text.count("\n") + 1 for text in captions.values())
    above, below = 0.7 + caption, 0.55
    height = above + below + count * panel + (count - 1) * caption
    figure = Figure((width, height))
    grid = figure.subplots(count, columns, sharex=True, sharey=True, squeeze=False)
    figure.subplots_adjust(0.65 / width, below / height, 1 - 0.2 / width, 1 - above / height, 0.08, caption / panel)
    behind = [result for result in results if result["row"] == BASELINE]
    for axes, name in zip(grid.flat, names, strict=False):
        draw_curves(axes, [result for result in results if result["row"] == name], behind)
        axes.set_title(captions[name], fontsize=9, loc="left", color=INK)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("top-1, %")
    for axes in grid.flat[max(0, len(names) - columns) : len(names)]:  # the lowest panel of each column
        axes.set_xlabel("epoch")
        axes.tick_params(labelbottom=True)
    grid[0, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    grid[0, 0].set_ylim(bottom=_lowest_late(results, names))
    note = "means over seeds; solid: validation, dotted: training, with what the row does to it; grey: the baseline"
    _head(figure, title, note)
    return figure


def _lowest_late(results: Sequence[Result], names: Sequence[str]) -> float | None:
    """Return the lowest value after the first tenth of the training, so that its rise does not dominate the axis."""
    values = []
    for name in names:
        for curve in ("top1", "train_top1"):
            epochs, means = mean_curve([result for result in results if result["row"] == name], curve)
            values += [mean for epoch, mean in zip(epochs, means, strict=True) if epoch > 0.1 * epochs[-1]]
    return min(values) - 2.0 if values else None


def draw_curves(axes: Axes, runs: Sequence[Result], behind: Sequence[Result]) -> Axes:
    for group, color, depth in ((behind, "#b9c2cc", 1), (runs, ACCENT, 2)):
        for name, style in (("top1", "-"), ("train_top1", ":")):
            epochs, values = mean_curve(group, name)
            marker = "o" if len(epochs) == 1 else ""
            axes.plot(epochs, values, linestyle=style, marker=marker, color=color, linewidth=1.4, zorder=depth)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def mean_curve(runs: Sequence[Result], name: str) -> tuple[list[int], list[float]]:
    """Return the epochs that all runs have, and the mean over runs in percent at each."""
    curves = [{int(epoch): value for epoch, value in run["curves"].get(name, [])} for run in runs]
    epochs = sorted(set.intersection(*map(set, curves))) if curves else []
    return epochs, [100 * statistics.mean(curve[epoch] for curve in curves) for epoch in epochs]


def draw(results: Sequence[Result], order: Sequence[str], title: str) -> dict[str, bytes]:
    """Draw both plots; return the contents of the files by name."""
    with house_style():
        pages = {
            "accuracy.png": accuracy_page(lines_of(results, order), title),
            "curves.png": curves_page(results, order, title),
        }
        files = {name: io.BytesIO() for name in pages}
        for name, page in pages.items():
            page.savefig(files[name], format="png")
    return {name: file.getvalue() for name, file in files.items()}
