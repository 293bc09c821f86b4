import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from torch_dropblock.playground import page
from torch_dropblock.playground.view import Settings, builtin_levels, draw


def pictures(html):
    sources = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [np.array(Image.open(io.BytesIO(base64.b64decode(source)))) for source in sources]


class Balance(HTMLParser):
    """Every element is closed, in order, and every picture has words for those who do not see it."""

    def __init__(self, html):
        super().__init__()
        self.open = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert tag != "img" or "alt" in dict(attributes)
        if tag != "img":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        """Of a drawing: opened and closed at once."""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(block_size=(3, 40), share_channels=True, progress=0.3, curve="step"),
        Settings(method="Dropout", keep_prob=0.0),
        Settings(method="SpatialDropout", keep_prob=1.0, map_side=1),
    ],
    ids=repr,
)
def test_every_part(settings):
    view = draw(settings, builtin_levels())
    np.testing.assert_array_equal(pictures(page.mask(view)), [255 * view.kept.transpose(1, 2, 0)])
    dark, light = np.array([29, 39, 51]), np.array([207, 225, 242])  # as in figures
    np.testing.assert_array_equal(pictures(page.masks(view)), np.where(view.kept[..., None], light, dark))
    Balance(page.caption(view) + page.mask(view) + page.numbers(view) + page.details(view))


def test_the_numbers():
    view = draw(Settings(keep_prob=0.5, rate="paper"), builtin_levels())
    cells = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page.numbers(view)))
    assert cells["γ: seed probability"] == "0.01653"
    assert cells["Dropped: requested"] == "50.0 %"
    assert cells["Dropped: expected"] == "37.2 %"  # the paper's approximation
    assert re.fullmatch(r"3[67]\.\d\d ± 0\.\d\d %", cells["Dropped: in 425 draws"])
    assert cells["Kept: scaled by"] == f"{1 / (1 - view.share_dropped):.3f}"
    assert "clamped" not in page.numbers(view)


def test_a_block_larger_than_the_map_is_told_of():
    view = draw(Settings(block_size=(64, 3)), builtin_levels())
    assert "The block was clamped to 28×3" in page.numbers(view)
    assert "DropBlock 28×3" in page.caption(view)


def test_keep_rates():
    view = draw(Settings(), builtin_levels())
    image, bar = pictures(page.keep_rates(view))
    assert image.shape == (28, 28, 3)
    np.testing.assert_array_equal(image[0, 0], bar[0, -1])  # most kept: the end of the scale
    np.testing.assert_array_equal(image[14, 14], bar[0, 0])
    assert "corner 98.8 %, centre 54.2 %, mean 70.0 %" in page.keep_rates(view).replace("\N{NO-BREAK SPACE}", " ")
    flat = page.keep_rates(draw(Settings(method="Dropout"), builtin_levels()))
    assert "70.0 % everywhere" in flat
    assert len(pictures(flat)) == 1


def test_the_schedule_marks_now():
    drawn = page.schedule(draw(Settings(progress=0.5), builtin_levels()))
    assert "After 50 % of the training: 0.85; at the end: 0.7" in drawn.replace("\N{NO-BREAK SPACE}", " ")
    (cx, cy) = map(float, re.search(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn).groups())
    points = [tuple(map(float, point.split(","))) for point in re.search('points="(.*?)"', drawn)[1].split()]
    assert min(abs(x - cx) + abs(y - cy) for x, y in points) < 0.2
    assert "Dropout has no schedule" in page.schedule(draw(Settings(method="Dropout"), builtin_levels()))


def test_what_a_visitor_names_is_text():
    name = "<script>alert(1)</script>\"'.png"
    for html in (page.original(builtin_levels(), name), page.message(name)):
        assert "<script" not in html
        assert "&lt;script&gt;" in html
        Balance(html)


def test_no_message():
    assert page.message("") == ""


def test_the_style_asks_for_nothing():
    assert "http" not in page.STYLE
    assert "url(" not in page.STYLE
    assert "@import" not in page.STYLE
