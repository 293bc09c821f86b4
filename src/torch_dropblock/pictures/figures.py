"""Pictures of what is dropped.

The `draw_*` functions take axes and data and return the axes; the `*_page` functions lay such panels out on a new
`matplotlib.figure.Figure`. None uses pyplot, so no window opens and no figure stays open. Call them and save their
figures inside `house_style()`, since matplotlib reads some settings only when it saves.

The functions import matplotlib themselves, so that the command can start without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import checks, geometry
from .wording import joined as joined
from .wording import percent as percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
# inches; text of 10 points can be read on a page that is shown 420 pixels wide
WIDTH, MARGIN, GAP, LINE = 5.8, 0.2, 0.14, 0.19
TALLEST = 9.0  # of a panel

INK, MUTED, ACCENT = "#1d2733", "#5f6b78", "#c2452d"
KEPT, DROPPED = "#cfe1f2", INK
# of a dropped pixel: black would not be seen on dark parts of a photograph
HOLE = "#ff3d9a"
HOLES = "Dropped pixels are 0, and pink here."
KEEP_RATES = "viridis"


@contextmanager
def house_style() -> Iterator[None]:
    """Apply one style, independent of the user's matplotlibrc."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "figure.dpi": DPI,
                "font.size": 10,
                "text.color": INK,
                "axes.edgecolor": MUTED,
                "axes.labelcolor": INK,
                "axes.linewidth": 0.6,
                "xtick.color": MUTED,
                "ytick.color": MUTED,
            }
        )
        yield


# --- panels ------------------------------------------------------------------------------------------------------


def draw_mask(axes: Axes, kept: Tensor) -> Axes:
    """Draw a mask of shape (H, W), unit by unit, dark where dropped."""
    from matplotlib.colors import ListedColormap

    height, width = kept.shape
    axes.pcolormesh(
        kept.int().numpy(), cmap=ListedColormap([DROPPED, KEPT]), vmin=0, vmax=1, edgecolors="white", linewidth=1
    )
    axes.set(aspect="equal", xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def draw_picture(axes: Axes, picture: Tensor) -> Axes:
    """Draw a picture of shape (3, H, W) in [0, 1]; one smaller than the axes keeps sharp pixels."""
    height, width = picture.shape[1:]
    shown = axes.get_window_extent()
    enlarged = min(shown.width / width, shown.height / height) > 1
    axes.imshow(picture.movedim(0, -1).numpy(), interpolation="nearest" if enlarged else None)
    axes.set(xticks=[], yticks=[], anchor="NW")
    return axes


def draw_keep_rates(axes: Axes, keep_rates: Tensor) -> Axes:
    """Draw a map of keep rates of shape (H, W), with a colour bar."""
    from matplotlib.colorbar import Colorbar

    image = axes.imshow(100 * keep_rates.numpy(), cmap=KEEP_RATES)
    axes.set(xticks=[], yticks=[])
    beside = axes.inset_axes((1.04, 0, 0.05, 1))
    bar = Colorbar(beside, image, format="%g %%")
    bar.outline.set_visible(False)
    beside.tick_params(length=0)
    return axes


def draw_middle_row(axes: Axes, exact: Tensor, paper: Tensor, keep_prob: float) -> Axes:
    """Plot the keep rates along the middle row of two maps of shape (H, W), and the requested rate."""
    row, width = exact.shape[0] // 2, exact.shape[1]
    edges = range(width + 1)
    axes.stairs(100 * paper[row].numpy(), edges, baseline=None, color=MUTED, linewidth=1.2, label="γ of the paper")
    axes.stairs(100 * exact[row].numpy(), edges, baseline=None, color=INK, linewidth=2, label="exact γ")
    axes.axhline(100 * keep_prob, color=ACCENT, linewidth=1.2, linestyle=(0, (4, 2)), label="requested, on average")
    axes.set(xlim=(0, width), xlabel="column", ylabel="kept, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper center")
    return axes


def caption(axes: Axes, name: str, detail: str, lines: int = 1) -> Axes:
    """Write a panel's name above it, and below the name details in grey, with room for this number of lines."""
    above = 4 + 12 * lines
    detail += "\n " * (lines - 1 - detail.count("\n"))  # or matplotlib would place a single line higher
    axes.set_title(name, loc="left", pad=above + 4, fontsize=11, fontweight="bold")
    axes.annotate(
        detail, (0, 1), xytext=(0, above), xycoords="axes fraction", textcoords="offset points", color=MUTED, va="top"
    )
    return axes


# --- pages -------------------------------------------------------------------------------------------------------


def ones_page(panels: Mapping[str, tuple[Tensor, str]], title: str, note: str) -> Figure:
    """Draw masks of shape (H, W) and their details side by side, by name."""
    lines = _lines(panels)
    figure, grid = _page(title, note, len(panels), len(panels), 1.0, lines=lines)
    for axes, (name, (mask, detail)) in zip(grid, panels.items(), strict=True):
        caption(draw_mask(axes, mask), name, detail, lines)
    return figure


def photo_page(
    photo: Tensor,
    panels: Mapping[str, tuple[Tensor | None, str]],
    title: str,
    note: str,
    *,
    columns: int,
    scale: float,
) -> Figure:
    """Draw a photograph under each mask, with the colour `HOLE` where it drops; what is kept is not scaled.

    Args:
        photo: shape (3, H, W), values in [0, 1].
        panels: the mask of each panel, of shape (H, W), and its details, by name; None shows the photograph whole.
        title: title of the page.
        note: lines below the panels.
        columns: panels in a row.
        scale: dots of the page per pixel of the photograph, at least.
    """
    from matplotlib.colors import to_rgb

    hole = torch.tensor(to_rgb(HOLE)).view(3, 1, 1)
    height, width = photo.shape[1:]
    lines = _lines(panels)
    figure, grid = _page(title, note, len(panels), columns, height / width, lines=lines, dots=scale * width)
    for axes, (name, (mask, detail)) in zip(grid, panels.items(), strict=True):
        caption(draw_picture(axes, photo if mask is None else torch.where(mask, photo, hole)), name, detail, lines)
    return figure


def _lines(panels: Mapping[str, tuple[Any, str]]) -> int:
    """Return the number of lines of the longest detail."""
    return max(detail.count("\n") + 1 for _, detail in panels.values())


def keep_rates_page(size: tuple[int, int], block_size: int, keep_prob: float) -> Figure:
    """Draw the keep rate of every position for the exact γ, and its middle row beside that of the paper's γ."""
    exact, paper = (
        geometry.keep_rate_map(size, block_size, geometry.seed_probability(size, block_size, keep_prob, rate))
        for rate in checks.RATES
    )
    figure, (left, right) = _page(
        f"How often each unit is kept, keep probability {keep_prob:g}",
        "Every block lies whole inside the map, so fewer of them reach a unit near the border: it is kept more often.",
        2,
        2,
        1.0,
        width=8.0,
        gap=1.4,
        foot=0.5,
    )
    caption(
        draw_keep_rates(left, exact),
        f"Map of {joined(size)}, blocks of {block_size}×{block_size}, exact γ",
        f"corner {percent(exact.max().item())}, centre {percent(exact.min().item())}, "
        f"mean {percent(exact.mean().item())}",
    )
    caption(
        draw_middle_row(right, exact, paper, keep_prob),
        "Along the middle row",
        f"mean: exact γ {percent(exact.mean().item())}, paper's γ {percent(paper.mean().item())}",
    )
    return figure


def _page(
    title: str,
    note: str,
    panels: int,
    columns: int,
    shape: float,
    *,
    lines: int = 1,
    width: float = WIDTH,
    gap: float = GAP,
    foot: float = 0.0,
    dots: float = 0,
) -> tuple[Figure, list[Axes]]:
    """Make a figure with a title, rows of panels, and a note below them.

    Args:
        title: a line of at most 45 characters, for the default width.
        note: lines of at most 65 characters, for the default width.
        panels: number of panels.
        columns: panels in a row.
        shape: height of a panel, as a multiple of its width.
        lines: lines of detail in a panel's caption.
        width: inches.
        gap: inches between columns.
        foot: inches for the labels of an axis below the panels.
        dots: least number of dots across a panel.
    """
    from matplotlib.figure import Figure

    panel = (width - 2 * MARGIN - (columns - 1) * gap) / columns
    rows, tall = math.ceil(panels / columns), min(TALLEST, panel * shape)
    head, above, below = 0.24, 0.42 + LINE * lines, 0.12 + LINE * (note.count("\n") + 1)
    height = MARGIN + head + rows * (above + tall) + foot + below + MARGIN
    figure = Figure(figsize=(width, height), dpi=max(DPI, dots * shape / tall))
    figure.text(MARGIN / width, 1 - (MARGIN + 0.18) / height, title, fontsize=13, fontweight="bold")
    figure.text(MARGIN / width, MARGIN / height, note, color=MUTED, va="bottom", linespacing=1.25)
    grid = []
    for index in range(panels):
        row, column = divmod(index, columns)
        left, bottom = MARGIN + column * (panel + gap), height - MARGIN - head - (row + 1) * (above + tall)
        grid.append(figure.add_axes((left / width, bottom / height, panel / width, tall / height)))
    return figure, grid
