"""What the page does with what it is given; how it looks in a browser is in test_playground_browser.py."""

import numpy as np

from torch_dropblock.playground import app
from torch_dropblock.playground.uploads import Picture
from torch_dropblock.playground.view import Settings

VALUES = ("DropBlock", True, 7, 7, 0.7, "exact", False, 28, 6, 1.0, "linear")
SKIP = app.gr.skip()


def test_values_become_settings():
    assert app._settings(*VALUES) == Settings()
    rest = (0.5, "paper", True, 40, 3, 0.2, "step")
    expected = Settings("DropBlock", (3, 9), 0.5, "paper", True, 40, 3, 0.2, "step")
    assert app._settings("DropBlock", False, 3, 9, *rest) == expected
    assert app._settings("DropBlock", True, 3, 9, *rest).block_size == (3, 3)


def test_what_is_wrong_is_said_and_the_rest_stays():
    message, *rest = app._show(None, *VALUES[:8], None, *VALUES[9:])
    assert "seed is empty" in message
    assert rest == [SKIP] * 5


def test_a_visitors_picture_is_shown_and_the_builtin_one_comes_back():
    picture = Picture("red.png", np.full((256, 512, 3), 255, np.uint8))
    shown = app._show(picture, *VALUES)
    assert shown != app._show(None, *VALUES)
    assert app._builtin(picture, *VALUES)[0] is None
    assert app._builtin(picture, *VALUES)[3:] == app._show(None, *VALUES)


def test_an_upload_is_shown():
    picture = Picture("<b>.png", np.full((256, 512, 3), 255, np.uint8))
    shown = app._upload({"a": picture}.pop, "a", None, *VALUES)
    assert shown[0] is picture
    assert "&lt;b&gt;.png" in shown[1]
    assert shown[1].count("<img") == shown[2].count("<img") == 1
    assert shown[3:] == app._show(picture, *VALUES)


def test_what_is_wrong_with_an_upload_is_said_and_the_rest_stays():
    def take(name):
        raise ValueError(f"<{name}> is no picture")

    shown = app._upload(take, "a", None, *VALUES)
    assert "&lt;a&gt; is no picture" in shown.pop(3)
    assert shown == [SKIP] * 8
