"""The playground's page in Gradio: its controls, and the functions that update the parts of `page`.

An uploaded picture is in a `gr.State`, one per visitor; `sessions` deletes it when the page is closed. Pictures are
embedded in the page, so Gradio handles no file: for an upload it gets only the name under which `uploads` keeps it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from ..core import checks
from ..networks.schedule import CURVES
from . import page
from .uploads import Picture
from .view import LARGEST_MAP, LARGEST_SEED, METHODS, STEPS, Levels, Settings, builtin_levels, draw

TITLE = "DropBlock playground"
BUILTIN = "Grace Hopper, the built-in photograph"
LARGEST_BLOCK = 64
NEXT_SEED = f"seed => (Number(seed) + 1) % {LARGEST_SEED + 1}"


class Controls(NamedTuple):
    """Controls in the order of their values in `_settings`."""

    method: gr.Radio
    square: gr.Checkbox
    height: gr.Slider
    width: gr.Slider
    keep_prob: gr.Slider
    rate: gr.Radio
    share_channels: gr.Checkbox
    map_side: gr.Slider
    seed: gr.Number
    progress: gr.Slider
    curve: gr.Radio


def blocks(take: Callable[[str], Picture]) -> gr.Blocks:
    """Build the page: its layout and its events.

    Args:
        take: returns the picture that was uploaded under a name; raises ValueError with the reason if there is none.
    """
    first = draw(Settings(), builtin_levels())
    content: gr.Blocks
    with gr.Blocks(title=TITLE, analytics_enabled=False) as content:
        picture = gr.State(None)  # None: the built-in photograph
        gr.HTML(page.heading(TITLE), elem_id="heading")
        with gr.Column(elem_id="layout"):
            with gr.Column(elem_id="pictures"):
                original = gr.HTML(page.original(first.levels, BUILTIN), elem_id="original")
                with gr.Column(elem_id="dropped"):
                    caption = gr.HTML(page.caption(first))
                    with gr.Column(min_width=0, elem_id="stack"):
                        under = gr.HTML(page.under_the_mask(first.levels))
                        mask = gr.HTML(page.mask(first), elem_id="mask")
            with gr.Column(elem_id="controls"):
                with gr.Row():
                    upload = gr.UploadButton("Upload a picture", size="sm", min_width=0, elem_id="upload")
                    uploaded = gr.Textbox(visible=False)  # the name that the server gave to the upload
                    builtin = gr.Button("Built-in photograph", size="sm", min_width=0, elem_id="builtin")
                message = gr.HTML("", elem_id="message")
                controls, again = _controls(first.settings)
            with gr.Column(elem_id="more"):
                numbers = gr.HTML(page.numbers(first), elem_id="numbers")
                code = gr.Code(
                    first.settings.code(),
                    language="python",
                    label="This layer in Python",
                    elem_id="code",
                    interactive=False,
                    show_line_numbers=False,
                    wrap_lines=True,
                    buttons=["copy"],
                )
                details = gr.HTML(page.details(first), elem_id="details")

        values, shown = [picture, *controls], [message, caption, mask, numbers, code, details]
        # queue: `gate` serves one call at a time.
        # trigger_mode: while a picture is drawn, "always_last" skips all positions of a slider but the last.
        # preprocess: a half-typed number is checked by `Settings`, which reports what is wrong.
        how: dict[str, Any] = {
            "show_progress": "hidden", "api_visibility": "private", "queue": False, "preprocess": False,
        }  # fmt: skip
        last = {**how, "trigger_mode": "always_last"}
        gr.on([control.change for control in controls if control is not controls.square], _show, values, shown, **last)
        again.click(None, controls.seed, controls.seed, js=NEXT_SEED)
        upload.upload(None, upload, uploaded, js="file => file.path", **how).then(
            partial(_upload, take), [uploaded, *values], [picture, original, under, *shown], **how
        )
        builtin.click(_builtin, values, [picture, original, under, *shown], **how)

        # toggling "Square block" sets the width to the height
        controls.square.input(None, controls.height, controls.width, js="height => height")
        controls.square.input(_arrange_block, controls.square, [controls.height, controls.width], **last)
        own = [controls.square, controls.height, controls.width, controls.rate, controls.share_channels]
        own += [controls.progress, controls.curve]
        controls.method.input(_arrange_method, controls.method, own, **last)
    return content


def _controls(first: Settings) -> tuple[Controls, gr.Button]:
    """Make the controls, and the button that draws again."""
    with gr.Group():
        method = gr.Radio(
            METHODS,
            value=first.method,
            label="Method",
            info="Drops blocks, single units, or whole channels.",
            elem_id="method",
        )
        square = gr.Checkbox(True, label="Square block", elem_id="square")
        height = gr.Slider(
            1, LARGEST_BLOCK, first.block_size[0], step=1, label="Block size", info="In units of the map.",
            elem_id="height",
        )  # fmt: skip
        width = gr.Slider(
            1, LARGEST_BLOCK, first.block_size[1], step=1, label="Block width", elem_id="width", visible=False
        )
        keep_prob = gr.Slider(
            0, 1, first.keep_prob, step=0.01, label="Keep probability", info="The share of the units that is kept.",
            elem_id="keep-prob",
        )  # fmt: skip
        rate = gr.Radio(
            checks.RATES, value=first.rate, label="γ", elem_id="rate",
            info="exact drops the requested share; paper drops less if blocks overlap.",
        )  # fmt: skip
        share_channels = gr.Checkbox(
            first.share_channels, label="Shared channels", info="One mask for all three colours.", elem_id="share"
        )
    with gr.Group():
        map_side = gr.Slider(
            1, LARGEST_MAP, first.map_side, step=1, label="Map size", elem_id="map",
            info="Units of the feature map along the longer side of the picture.",
        )  # fmt: skip
        seed = gr.Number(
            first.seed, label="Seed", info="Random seed; the same one draws the same mask.", precision=0, elem_id="seed"
        )
        again = gr.Button("Draw again", variant="primary", elem_id="again")
    with gr.Group():
        progress = gr.Slider(
            0, 1, first.progress, step=1 / STEPS, label="Progress of the training", elem_id="progress",
            info="A schedule takes the layer from keeping all to its keep probability.",
        )  # fmt: skip
        curve = gr.Radio(list(CURVES), value=first.curve, label="Curve of the schedule", elem_id="curve")
    return Controls(
        method, square, height, width, keep_prob, rate, share_channels, map_side, seed, progress, curve
    ), again


def _settings(
    method: str, square: bool, height: int, width: int, keep_prob: float, rate: checks.Rate, share: bool, *rest: Any
) -> Settings:
    block = [("block height", height), ("block width", height if square else width)]
    height, width = (checks.whole_number(name, value, at_least=1) for name, value in block)
    return Settings(method, (height, width), checks.probability("keep_prob", keep_prob), rate, share, *rest)


def _show(picture: Picture | None, *values: Any) -> list[Any]:
    """Update the message, the picture, the numbers, the code and the details; an error updates the message alone."""
    empty = [name for name, value in zip(Controls._fields, values, strict=True) if value is None]
    if empty:
        return [page.message(f"{empty[0]} is empty"), *[gr.skip()] * 5]
    try:
        view = draw(_settings(*values), picture.levels if picture else builtin_levels())
    except (TypeError, ValueError) as error:
        return [page.message(str(error)), *[gr.skip()] * 5]
    parts = [page.caption(view), page.mask(view), page.numbers(view), view.settings.code(), page.details(view)]
    return ["", *parts]


def _upload(take: Callable[[str], Picture], name: str, _: Picture | None, *values: Any) -> list[Any]:
    try:
        picture = take(name)
    except ValueError as error:
        return [*[gr.skip()] * 3, page.message(str(error)), *[gr.skip()] * 5]
    return [picture, *_pictures(picture.levels, picture.name), *_show(picture, *values)]


def _builtin(_: Picture | None, *values: Any) -> list[Any]:
    return [None, *_pictures(builtin_levels(), BUILTIN), *_show(None, *values)]


def _pictures(levels: Levels, name: str) -> list[str]:
    return [page.original(levels, name), page.under_the_mask(levels)]


def _arrange_block(square: bool) -> list[Any]:
    return [gr.update(label="Block size" if square else "Block height"), gr.update(visible=not square)]


def _arrange_method(method: str) -> list[Any]:
    """Enable the controls of block, rate, shared channels and schedule for DropBlock alone."""
    return [gr.update(interactive=method == "DropBlock")] * 7
