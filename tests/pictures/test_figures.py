"""Panels show what they are given, and pages have room for it."""

import math

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from helpers.command import check_texts
from torch_dropblock import keep_rate_map
from torch_dropblock.pictures import figures


@pytest.fixture(autouse=True)
def _style():
    with figures.house_style():
        yield


def axes():
    return Figure(figsize=(4, 4)).add_axes((0, 0, 1, 1))


def rendered(figure):
    """The figure as an array of RGB values in [0, 255]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


# --- panels ------------------------------------------------------------------------------------------------------


def test_draw_mask_is_dark_where_dropped():
    kept = torch.tensor([[True, False, True], [False, True, True], [True, True, False]])
    panel = figures.draw_mask(axes(), kept)
    picture = rendered(panel.figure).sum(-1)
    height, width = picture.shape
    rows = [int(height * (i + 0.5) / 3) for i in range(3)]
    columns = [int(width * (i + 0.5) / 3) for i in range(3)]
    assert torch.equal(torch.tensor(picture[np.ix_(rows, columns)] > 400), kept)


def test_draw_picture_shows_the_colours_and_sharp_pixels():
    # one and a half dots for a pixel, which matplotlib would smooth
    picture = torch.tensor([[[1.0, 0.0]], [[0.0, 0.4]], [[0.0, 1.0]]]).repeat(1, 400, 200)
    panel = figures.draw_picture(axes(), picture)
    colours = {tuple(pixel) for pixel in rendered(panel.figure)[10:-10, 10:-10].reshape(-1, 3).tolist()}
    assert colours == {(255, 0, 0), (0, 102, 255)}


def test_draw_picture_averages_what_it_has_no_dots_for():
    stripes = torch.arange(2000).remainder(2).float().expand(3, 2000, -1)
    panel = figures.draw_picture(axes(), stripes)
    inside = rendered(panel.figure)[100:-100, 100:-100]
    assert inside.min() > 90
    assert inside.max() < 165


def test_draw_keep_rates_has_a_colour_bar_in_percent():
    panel = figures.draw_keep_rates(axes(), keep_rate_map((9, 9), 3, 0.05))
    (bar,) = panel.child_axes
    low, high = bar.get_ylim()
    assert math.isclose(low, 100 * 0.95**9)
    assert math.isclose(high, 100 * 0.95)
    panel.figure.draw_without_rendering()
    assert all(label.get_text().endswith(" %") for label in bar.get_yticklabels())


def test_draw_middle_row_draws_the_middle_row():
    exact, paper = torch.rand(5, 7, dtype=torch.float64), torch.rand(5, 7, dtype=torch.float64)
    panel = figures.draw_middle_row(axes(), exact, paper, 0.9)
    drawn = {patch.get_label(): patch.get_data().values for patch in panel.patches}
    np.testing.assert_allclose(drawn["exact γ"], 100 * exact[2])
    np.testing.assert_allclose(drawn["γ of the paper"], 100 * paper[2])


# --- pages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (40, 30), (3, 900), (900, 3)])
def test_photo_page_keeps_the_shape_of_the_picture(size):
    masks = {"Whole": None, "Masked": torch.ones(size, dtype=torch.bool), "Gone": torch.zeros(size, dtype=torch.bool)}
    panels = {name: (mask, "one line" if mask is None else "two\nlines") for name, mask in masks.items()}
    page = figures.photo_page(torch.ones(3, *size), panels, "title", "note\nof two lines", columns=2, scale=1)
    page.draw_without_rendering()
    check_texts(page)
    assert [panel.get_title(loc="left") for panel in page.axes] == list(masks)
    tops = [text.get_window_extent().y1 for panel in page.axes[:2] for text in panel.texts]
    assert math.isclose(*tops), "details of a row begin at one height"
    for panel in page.axes:
        box = panel.get_window_extent()
        assert math.isclose(box.height / box.width, size[0] / size[1], rel_tol=1e-6)
        assert page.bbox.containsx(box.x1)
        assert page.bbox.containsy(box.y1)


@pytest.mark.parametrize("scale", [1, 2])
def test_photo_page_has_a_dot_for_each_pixel(scale):
    page = figures.photo_page(torch.ones(3, 500, 1000), {"Whole": (None, "")}, "title", "note", columns=1, scale=scale)
    page.draw_without_rendering()
    assert page.axes[0].get_window_extent().width >= scale * 1000 - 0.5


def test_photo_page_colours_what_is_dropped_and_leaves_the_rest():
    photo = torch.full((3, 60, 60), 0.4)
    kept = torch.ones(60, 60, dtype=torch.bool)
    kept[:, 30:] = False
    page = figures.photo_page(photo, {"Half": (kept, "half dropped")}, "title", "note", columns=1, scale=4)
    picture = rendered(page)
    box = page.axes[0].get_window_extent()
    middle = picture.shape[0] - int((box.y0 + box.y1) / 2)
    quarter = int(box.width / 4)
    assert picture[middle, int(box.x0) + quarter].tolist() == [102] * 3
    assert picture[middle, int(box.x1) - quarter].tolist() == [round(255 * level) for level in to_rgb(figures.HOLE)]


def test_keep_rates_page_states_the_mean_that_was_asked():
    page = figures.keep_rates_page((14, 14), 7, 0.9)
    page.draw_without_rendering()
    check_texts(page)
    texts = [text.get_text() for panel in page.axes for text in panel.texts]
    assert any("mean 90.0 %" in text for text in texts)


def test_house_style_overrides_and_restores_the_users_settings():
    with matplotlib.rc_context({"font.size": 33, "savefig.transparent": True}):
        with figures.house_style():
            assert matplotlib.rcParams["font.size"] == 10
            assert not matplotlib.rcParams["savefig.transparent"]
        assert matplotlib.rcParams["font.size"] == 33
        assert matplotlib.rcParams["savefig.transparent"]
