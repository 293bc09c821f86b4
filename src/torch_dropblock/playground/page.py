"""Parts of the playground's page: a view's pictures and numbers as HTML, styled by `page.css`."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgb
from PIL import Image

from ..pictures import figures
from ..pictures.figures import joined, percent
from .view import CHANNELS, Levels, View

STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
CURVE_POINTS = 50


def heading(title: str) -> str:
    return (
        f"<h1>{title}</h1><p>What a layer drops in training, and how much. The picture is a feature map of three "
        "channels: where red, green or blue is dropped its colour changes, and where all three are it is black.</p>"
    )


def original(levels: Levels, name: str) -> str:
    return _picture("Original", name, _image(levels, f"The picture before the layer: {name}"))


def under_the_mask(levels: Levels) -> str:
    """Return the picture that lies under `mask`, so that a change of settings sends only the mask."""
    return _image(levels, "")


def mask(view: View) -> str:
    """Return the mask as an image, 255 where a channel keeps its unit and else 0; the page multiplies it in."""
    said = f"The picture under {view.settings.method}, {percent(view.share_dropped)} of it dropped"
    return _image(255 * view.kept.transpose(1, 2, 0).astype(np.uint8), said)


def caption(view: View) -> str:
    what = view.settings.method
    title = f"{what} {joined(view.block)}" if what == "DropBlock" else what
    return f"<figcaption><strong>{title}</strong> <span>{percent(view.share_dropped)} dropped</span></figcaption>"


def details(view: View) -> str:
    """Return the masks, the keep rates and the schedule."""
    return f'<div class="cards">{masks(view)}{keep_rates(view)}{schedule(view)}</div>'


def message(text: str) -> str:
    """Return an error message, which screen readers announce; empty if there is none."""
    return f'<p class="message" role="alert"><strong>Not done:</strong> {escape(text)}</p>' if text else ""


def numbers(view: View) -> str:
    mean, error = view.measured
    cells = {
        "γ: seed probability": f"{view.gamma:.4g}",
        "Dropped: requested": percent(1 - view.keep_prob),
        "Dropped: expected": percent(view.expected),
        f"Dropped: in {len(view.shares):,} draws": f"{100 * mean:.2f} ± {100 * error:.2f} %",
        "Dropped: this draw": percent(view.share_dropped),
        "Kept: scaled by": f"{view.scale:.3f}",
    }
    content = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in cells.items())
    note = "± is the standard error. The layer scales kept units; the picture shows them unscaled."
    if view.settings.method == "DropBlock" and view.block != view.settings.block_size:
        note = f"The block was clamped to {joined(view.block)}: it is larger than the map. {note}"
    return f'<dl>{content}</dl><p class="note">{note}</p>'


def masks(view: View) -> str:
    shared = bool((view.kept == view.kept[0]).all()) and view.settings.share_channels
    planes = "".join(
        _picture(name, f"{percent(1 - float(kept.mean()))} dropped", _image(_mask_levels(kept), f"Mask of {name}"))
        for name, kept in zip(CHANNELS, view.kept, strict=True)
    )
    legend = '<span class="keys"><span class="key kept">kept</span> <span class="key gone">dropped</span></span>'
    note = f"A map of {joined(view.size)} for each colour{', all alike: the channels share a mask' if shared else ''}."
    return _section("masks", "Masks", f"{note} {legend}", f'<div class="planes">{planes}</div>')


def keep_rates(view: View) -> str:
    rates = view.keep_rates.numpy()
    low, high = float(rates.min()), float(rates.max())
    image = _image(_colours(rates, low, high), f"Map of keep rates from {percent(low)} to {percent(high)}")
    bar = _image(_colours(np.linspace(0, 1, 64)[None]), "")
    middle = rates[rates.shape[0] // 2, rates.shape[1] // 2]
    said = f"corner {percent(float(rates[0, 0]))}, centre {percent(float(middle))}, mean {percent(1 - view.expected)}"
    if low == high:
        scale = f'<p class="scale">{percent(low)} everywhere</p>'
    else:
        scale = f'<p class="scale"><span>{percent(low)}</span>{bar}<span>{percent(high)}</span></p>'
    note = f"How often each unit is kept: {said}."
    return _section("rates", "Keep rates by position", note, f'<div class="map">{image}{scale}</div>')


def schedule(view: View) -> str:
    """Plot keep_prob over the training, with a mark at the current progress."""
    settings = view.settings
    now = settings.progress
    marked = f"After {100 * now:.0f} % of the training: {view.keep_prob:.3g}; at the end: {settings.keep_prob:g}"
    if settings.method != "DropBlock":
        marked = f"{settings.method} has no schedule: {settings.keep_prob:g} throughout"
    steps = [step / CURVE_POINTS for step in range(CURVE_POINTS + 1)]
    path = " ".join(f"{_x(p):.1f},{_y(settings.keep_prob_at(p)):.1f}" for p in steps)
    ticks = "".join(
        f'<line class="grid" x1="{_x(0)}" x2="{_x(1)}" y1="{_y(value)}" y2="{_y(value)}"/>'
        f'<text x="{_x(0) - 6}" y="{_y(value) + 4}" text-anchor="end">{value:g}</text>'
        for value in (0, 0.5, 1)
    )
    drawing = (
        f'<svg viewBox="0 0 320 190" role="img" aria-label="{escape(marked)}">{ticks}'
        f'<polyline points="{path}"/>'
        f'<line class="now" x1="{_x(now)}" x2="{_x(now)}" y1="{_y(0)}" y2="{_y(1)}"/>'
        f'<circle cx="{_x(now)}" cy="{_y(view.keep_prob)}" r="5"/>'
        f'<text x="{_x(0)}" y="184">start</text><text x="{_x(0.5)}" y="184" text-anchor="middle">progress</text>'
        f'<text x="{_x(1)}" y="184" text-anchor="end">end</text></svg>'
    )
    return _section("schedule", "keep_prob over the training", f"{marked}.", drawing)


def _x(progress: float) -> float:
    return 34 + 276 * progress


def _y(keep_prob: float) -> float:
    return 166 - 154 * keep_prob


def _section(name: str, title: str, note: str, content: str) -> str:
    note = note.replace(" %", "\N{NO-BREAK SPACE}%")
    return f'<section id="{name}"><h2>{title}</h2><p class="note">{note}</p>{content}</section>'


def _picture(title: str, note: str, image: str) -> str:
    caption = f"<strong>{escape(title)}</strong> <span>{escape(note)}</span>"
    return f"<figure><figcaption>{caption}</figcaption>{image}</figure>"


def _image(levels: Levels, alt: str) -> str:
    """Embed a picture in the page, so that no file of it exists and nobody else can fetch it."""
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG", compress_level=1)  # a higher level would take longer than everything else
    data = base64.b64encode(file.getvalue()).decode()
    height, width = levels.shape[:2]
    # decoding="sync": otherwise the page flashes empty at each change
    return (
        f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" decoding="sync" '
        f'alt="{escape(alt)}">'
    )


def _mask_levels(kept: npt.NDArray[np.bool_]) -> Levels:
    colours = np.array([to_rgb(figures.DROPPED), to_rgb(figures.KEPT)])
    levels: Levels = (255 * colours[kept.astype(int)]).round().astype(np.uint8)
    return levels


def _colours(values: npt.NDArray[np.float64], low: float = 0.0, high: float = 1.0) -> Levels:
    unit = (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)
    return mpl.colormaps[figures.KEEP_RATES](unit, bytes=True)[..., :3].copy()
