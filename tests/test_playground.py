"""What the page does with what it is given; how it looks in a browser is in test_playground_browser.py."""

import numpy as np
import pytest
from PIL import Image

from torch_dropblock import playground
from torch_dropblock.playground_view import Settings

VALUES = ("DropBlock", True, 7, 7, 0.7, "exact", False, 28, 0, 1.0, "linear")
SKIP = playground.gr.skip()


@pytest.fixture
def upload(tmp_path):
    """Upload a file as Gradio hands it over: in a folder of its own."""

    def upload(save, name="cat.png", **options):
        path = tmp_path / "hash" / name
        path.parent.mkdir()
        save(path, **options) if callable(save) else path.write_bytes(save)
        shown = playground._upload({"path": str(path), "orig_name": name}, None, *VALUES)
        assert not path.parent.exists()
        return shown

    return upload


def accepted(shown):
    picture, original, under, message, *_ = shown
    assert message == ""
    assert original.count("<img") == under.count("<img") == 1
    return picture.levels


def test_values_become_settings():
    assert playground._settings(*VALUES) == Settings()
    rest = (0.5, "paper", True, 40, 3, 0.2, "step")
    expected = Settings("DropBlock", (3, 9), 0.5, "paper", True, 40, 3, 0.2, "step")
    assert playground._settings("DropBlock", False, 3, 9, *rest) == expected
    assert playground._settings("DropBlock", True, 3, 9, *rest).block_size == (3, 3)


def test_what_is_wrong_is_said_and_the_rest_stays():
    message, *rest = playground._show(None, *VALUES[:8], None, *VALUES[9:])
    assert "seed is empty" in message
    assert rest == [SKIP] * 5


def test_a_visitors_picture_is_shown_and_the_builtin_one_comes_back():
    picture = playground.Picture("red.png", np.full((256, 512, 3), 255, np.uint8))
    shown = playground._show(picture, *VALUES)
    assert shown != playground._show(None, *VALUES)
    assert playground._builtin(picture, *VALUES)[0] is None
    assert playground._builtin(picture, *VALUES)[3:] == playground._show(None, *VALUES)


@pytest.mark.parametrize(
    ("image", "name", "options", "colour"),
    [
        (Image.new("RGB", (300, 200), "red"), "red.png", {}, (255, 0, 0)),
        (Image.new("CMYK", (300, 200), (0, 255, 255, 0)), "print.jpg", {}, (255, 0, 0)),
        (Image.new("RGBA", (300, 200), (255, 0, 0, 0)), "clear.png", {}, (255, 255, 255)),
        (Image.fromarray(np.full((200, 300), 32768, np.uint16)), "deep.png", {}, (128, 128, 128)),
        (
            Image.new("RGB", (300, 200), "lime"),
            "moving.gif",
            {"save_all": True, "append_images": [Image.new("RGB", (300, 200), "red")]},
            (0, 255, 0),
        ),
        (Image.new("RGB", (1, 1), "blue"), "dot.png", {}, (0, 0, 255)),
        (Image.new("RGB", (1, 20000), "blue"), "line.png", {}, (0, 0, 255)),
        (Image.new("L", (10_000, 5_000), 77), "50 megapixels.png", {}, (77, 77, 77)),
        (Image.new("RGB", (8_660, 5_773), (77, 77, 77)), "50 megapixels.jpg", {}, (77, 77, 77)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pictures_of_all_kinds(upload, image, name, options, colour):
    levels = accepted(upload(image.save, name, **options))
    assert max(levels.shape[:2]) == 512
    assert abs(levels.astype(int) - colour).max() <= 2


def test_a_picture_is_upright(upload):
    exif = Image.Exif()
    exif[0x112] = 6
    assert accepted(upload(Image.new("RGB", (300, 200)).save, exif=exif)).shape == (512, 341, 3)


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        (b"no picture", "notes.txt", "notes.txt is not an image that Pillow can read"),
        (b"", "<b>.png", "&lt;b&gt;.png is not an image that Pillow can read"),
        (Image.new("1", (20_000, 5_001)).save, "huge.png", "huge.png has more than 100,000,000 pixels"),
    ],
)
def test_what_is_no_picture_is_said_and_the_rest_stays(upload, tmp_path, content, name, said):
    shown = upload(content, name)
    assert said in shown[3]
    assert str(tmp_path) not in shown[3]
    assert [part for at, part in enumerate(shown) if at != 3] == [SKIP] * 8


def test_what_lies_beside_an_uploaded_file_stays(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    Image.new("RGB", (2, 2)).save(tmp_path / "cat.png")
    accepted(playground._upload({"path": str(tmp_path / "cat.png"), "orig_name": "cat.png"}, None, *VALUES))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_file_that_is_gone_already(tmp_path):
    gone = {"path": str(tmp_path / "hash" / "cat.png"), "orig_name": "cat.png"}
    assert "there is no file cat.png" in playground._upload(gone, None, *VALUES)[3]
