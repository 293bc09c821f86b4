"""Pictures of what is dropped.

The `draw_*` functions take axes and data and return the axes; the `*_page` functions lay such panels out on a new
`matplotlib.figure.Figure`. None uses pyplot, so no window opens and no figure stays open. Call them and save their
figures inside `house_style()`, since matplotlib reads some settings only when it saves.

The functions import matplotlib themselves, so that the command can start without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core import checks, geometry
from ..core.checks import Rate
from ..layer.functional import drop_block2d
from .wording import joined as joined
from .wording import percent as percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
# inches
MARGIN, GAP, HEAD, CAPTION, FOOT = 0.45, 0.4, 0.9, 0.6, 0.4
MIN_WIDTH = 7.6  # of a page, for its title and note

INK, MUTED, ACCENT = "#1d2733", "#5f6b78", "#c2452d"
KEPT, DROPPED = "#cfe1f2", INK
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


# --- masks -------------------------------------------------------------------------------------------------------


def dropout_mask(size: tuple[int, int], keep_prob: float, generator: torch.Generator) -> Tensor:
    """Draw a mask of Dropout for a map of this size: True where a unit is kept."""
    return torch.rand(size, generator=generator) < keep_prob


def drop_block_mask(
    size: tuple[int, int],
    block_size: int | Sequence[int],
    keep_prob: float,
    generator: torch.Generator,
    rate: Rate = "exact",
) -> Tensor:
    """Draw a mask of DropBlock for a map of this size: True where a unit is kept."""
    ones = torch.ones(1, *size)
    return drop_block2d(ones, block_size, keep_prob=keep_prob, rate=rate, generator=generator)[0] != 0


def share_dropped(kept: Tensor) -> float:
    return 1 - kept.double().mean().item()


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
    axes.axhline(100 * keep_prob, color=ACCENT, linewidth=1.2, linestyle=(0, (4, 2)), label="asked, on average")
    axes.set(xlim=(0, width), xlabel="column", ylabel="kept, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper center")
    return axes


def caption(axes: Axes, name: str, detail: str) -> Axes:
    """Write a panel's name above it, and a detail in grey below the name."""
    axes.set_title(name, loc="left", pad=20, fontsize=11, fontweight="bold")
    axes.annotate(detail, (0, 1), xytext=(0, 6), xycoords="axes fraction", textcoords="offset points", color=MUTED)
    return axes


# --- pages -------------------------------------------------------------------------------------------------------


def ones_page(kept: dict[str, Tensor], title: str, note: str) -> Figure:
    """Draw masks of shape (H, W) side by side, by name."""
    figure, grid = _page(title, note, len(kept), len(kept), (3.6, 3.6))
    for axes, (name, mask) in zip(grid, kept.items(), strict=True):
        caption(draw_mask(axes, mask), name, f"{percent(share_dropped(mask))} of this map dropped")
    return figure


def photo_page(
    photo: Tensor, kept: dict[str, Tensor | None], title: str, note: str, *, columns: int, scale: float
) -> Figure:
    """Draw a photograph under each mask; kept pixels are not multiplied by the layer's scale.

    Args:
        photo: shape (3, H, W), values in [0, 1].
        kept: the mask of each panel, of shape (H, W), by name; None shows the photograph whole.
        title: title of the page.
        note: a line below the title.
        columns: panels in a row.
        scale: dots of the page per pixel of the photograph.
    """
    height, width = (scale * side / DPI for side in photo.shape[1:])
    figure, grid = _page(title, note, len(kept), columns, (width, height))
    for axes, (name, mask) in zip(grid, kept.items(), strict=True):
        if mask is None:
            caption(draw_picture(axes, photo), name, "nothing dropped")
        else:
            dropped = f"{percent(share_dropped(mask))} of this picture dropped"
            caption(draw_picture(axes, photo * mask), name, dropped)
    return figure


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
        (3.9, 3.9),
        gap=1.6,
        foot=0.75,
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
        f"mean of the map: exact γ {percent(exact.mean().item())}, paper's γ {percent(paper.mean().item())}",
    )
    return figure


def _page(
    title: str,
    note: str,
    panels: int,
    columns: int,
    panel: tuple[float, float],
    *,
    gap: float = GAP,
    foot: float = FOOT,
) -> tuple[Figure, list[Axes]]:
    """Make a figure with a title, a note, and rows of panels; `panel` is their width and height in inches."""
    from matplotlib.figure import Figure

    width, height = panel
    rows = math.ceil(panels / columns)
    margins = 2 * MARGIN + (columns - 1) * gap
    width = max(width, (MIN_WIDTH - margins) / columns)
    page_width = margins + columns * width
    page_height = HEAD + rows * (CAPTION + height) + (rows - 1) * GAP + foot
    figure = Figure(figsize=(page_width, page_height))
    figure.text(MARGIN / page_width, 1 - 0.5 / page_height, title, fontsize=15, fontweight="bold")
    figure.text(MARGIN / page_width, 1 - 0.78 / page_height, note, color=MUTED)
    grid = []
    for index in range(panels):
        row, column = divmod(index, columns)
        left = MARGIN + column * (width + gap)
        bottom = page_height - HEAD - (row + 1) * (CAPTION + height) - row * GAP
        box = (left / page_width, bottom / page_height, width / page_width, height / page_height)
        grid.append(figure.add_axes(box))
    return figure, grid
