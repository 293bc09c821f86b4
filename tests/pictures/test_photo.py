"""Pictures as tensors: every mode, every kind of damaged file."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from torch_dropblock.pictures import photo
from torch_dropblock.pictures.photo import FORMATS, builtin_photo, photo_tensor, read_photo

CLEAR_PEAK = Path("/proc/self/clear_refs")

BRICK = (200, 60, 40)
LUMINANCE = (0.299 * 200 + 0.587 * 60 + 0.114 * 40) / 255


def brick(mode):
    image = Image.new("RGB", (6, 4), BRICK)
    if mode in ("P", "PA"):  # the colour itself in the palette; conversion would dither it from other ones
        image = image.quantize(2)
    if mode in ("La", "RGBa"):  # Pillow has no way from RGB to a premultiplied mode but through the plain one
        image = image.convert(mode.upper())
    return image.convert(mode)


def has(kind):
    Image.init()
    return kind in Image.SAVE


def check_colour(tensor, colour, atol=0.002):
    assert tensor.dtype == torch.float32
    assert tensor.shape[0] == 3
    expected = torch.tensor(colour).view(3, 1, 1).expand_as(tensor)
    torch.testing.assert_close(tensor, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "P", "PA"])
def test_a_colour_mode_keeps_its_colour(mode):
    # 8 bits of another colour space round
    check_colour(photo_tensor(brick(mode)), [c / 255 for c in BRICK], atol=0.012)


@pytest.mark.parametrize("mode", ["L", "LA", "La"])
def test_a_grey_mode_is_grey_in_all_three_colours(mode):
    check_colour(photo_tensor(brick(mode)), [LUMINANCE] * 3)


def test_a_bitmap_is_black_and_white():
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert torch.equal(photo_tensor(image), torch.tensor([[[0.0, 1.0]]] * 3))


@pytest.mark.parametrize(("mode", "dtype"), [("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2"), ("I;16N", "=u2")])
def test_16_bit_levels_keep_their_range(mode, dtype):
    levels = np.array([[0, 256, 32768, 65535]], dtype)
    tensor = photo_tensor(Image.frombytes(mode, (4, 1), levels.tobytes()))
    torch.testing.assert_close(tensor[0], torch.tensor([[0, 256, 32768, 65535]]) / 65535)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (np.array([[-50, 0, 150]], np.int32), [0, 0.25, 1]),
        (np.array([[7, 7, 7]], np.int32), [0, 0, 0]),
        (np.array([[0.25, 0.5, 0.75]], np.float32), [0.25, 0.5, 0.75]),
        (np.array([[0, 64, 256]], np.float32), [0, 0.25, 1]),
        (np.array([[-1, 1, np.nan]], np.float32), [0, 1, 0]),
        (np.array([[-np.inf, 1, 3, np.inf]], np.float32), [0, 0, 1, 1]),
        (np.array([[np.nan, np.inf]], np.float32), [0, 1]),
    ],
)
def test_values_with_no_range_of_their_own_are_stretched(levels, expected):
    assert photo_tensor(Image.fromarray(levels))[1].tolist() == [expected]


def test_a_16_bit_png_is_not_stretched(tmp_path):
    Image.fromarray(np.array([[16384, 32768]], np.uint16)).save(tmp_path / "grey.png")
    torch.testing.assert_close(read_photo(tmp_path / "grey.png")[2], torch.tensor([[16384, 32768]]) / 65535)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_what_is_transparent_becomes_white(mode):
    alpha = Image.new("L", (2, 1), 255)
    alpha.putpixel((1, 0), 0)
    image = Image.new("L", (2, 1)).convert(mode.replace("A", "")).convert(mode)
    image.putalpha(alpha)
    assert image.mode == mode
    assert photo_tensor(image)[:, 0].tolist() == [[0.0, 1.0]] * 3


def test_a_transparent_entry_of_a_palette_becomes_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png", transparency=0)
    assert read_photo(tmp_path / "palette.png")[:, 0].tolist() == [[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path, orientation):
    upright = torch.arange(6.0).view(2, 3) / 10
    # how a camera held that way stores the picture
    stored = {
        1: upright,
        2: upright.flip(1),
        3: upright.flip(0, 1),
        4: upright.flip(0),
        5: upright.T,
        6: upright.rot90(1),
        7: upright.flip(0, 1).T,
        8: upright.rot90(-1),
    }[orientation]
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray((stored * 255).round().byte().numpy()).save(tmp_path / "turned.png", exif=exif)
    torch.testing.assert_close(read_photo(tmp_path / "turned.png")[0], upright, atol=0.003, rtol=0)


def test_a_damaged_orientation_does_not_matter(tmp_path):
    Image.new("RGB", (3, 2), "red").save(tmp_path / "red.png", exif=b"Exif\0\0no such thing")
    assert read_photo(tmp_path / "red.png")[0].tolist() == [[1.0] * 3] * 2


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "lime")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    check_colour(read_photo(tmp_path / "two.gif"), [1.0, 0.0, 0.0])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "F"])
def test_a_large_picture_is_scaled_down(mode):
    step = Image.fromarray(np.repeat(np.array([0, 255], np.uint8), 1000)[None].repeat(500, 0))
    tensor = photo_tensor(step.convert(mode), long_side=100)
    assert tensor.shape == (3, 25, 100)
    assert 0 <= tensor.min() <= tensor.max() <= 1
    check_colour(tensor[..., :40], [0.0] * 3)
    check_colour(tensor[..., 60:], [1.0] * 3)


def test_a_picture_is_never_enlarged_nor_scaled_to_nothing():
    assert photo_tensor(Image.new("RGB", (30, 20)), long_side=100).shape == (3, 20, 30)
    assert photo_tensor(Image.new("RGB", (3000, 2)), long_side=100).shape == (3, 1, 100)


def test_the_builtin_photo():
    photo = builtin_photo(long_side=60)
    assert photo.shape == (3, 60, 51)
    assert photo.std() > 0.2


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*cat\.png"):
        read_photo(tmp_path / "cat.png")


def test_a_folder(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read_photo(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_no_image(tmp_path, content):
    (tmp_path / "cat.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"cat\.png is not an image that Pillow can read"):
        read_photo(tmp_path / "cat.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "JPEG2000", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "TGA"])
def test_a_file_cut_short(tmp_path, kind):
    if not has(kind):
        pytest.skip(f"this Pillow has no {kind}")
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    whole = io.BytesIO()
    turned = Image.Exif()
    turned[0x112] = 6
    Image.fromarray(noise).save(whole, kind, exif=turned)
    (tmp_path / "cat").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(ValueError, match=r"cat (cannot be read; it may be damaged|is not an image)"):
        read_photo(tmp_path / "cat")


def test_pictures_above_the_size_that_pillow_warns_of_are_scaled(tmp_path, monkeypatch):
    Image.new("RGB", (500, 300), "red").save(tmp_path / "large.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    assert read_photo(tmp_path / "large.jpg", long_side=50).shape == (3, 30, 50)
    assert Image.MAX_IMAGE_PIXELS == 10_000


@pytest.mark.parametrize("limit", [100, 1000])
def test_too_many_pixels(tmp_path, limit):
    Image.new("1", (50, 30)).save(tmp_path / "bomb.png")
    with pytest.raises(ValueError, match=rf"bomb\.png has more than {limit:,} pixels \(50×30\)"):
        read_photo(tmp_path / "bomb.png", max_pixels=limit)


def test_a_jpeg_counts_as_it_is_decoded(tmp_path):
    """At an eighth of its size, unless it is progressive, which takes memory for all of it."""
    picture = Image.new("RGB", (800, 400), "red")
    picture.save(tmp_path / "plain.jpg")
    picture.save(tmp_path / "progressive.jpg", progressive=True)
    assert read_photo(tmp_path / "plain.jpg", long_side=50, max_pixels=5000).shape == (3, 25, 50)
    for max_pixels, name in ((4999, "plain.jpg"), (319_999, "progressive.jpg")):
        with pytest.raises(ValueError, match=rf"{name} has more than {max_pixels:,} pixels \(800×400\)"):
            read_photo(tmp_path / name, long_side=50, max_pixels=max_pixels)
    assert read_photo(tmp_path / "progressive.jpg", long_side=50, max_pixels=320_000).shape == (3, 25, 50)


@pytest.mark.skipif(not CLEAR_PEAK.exists(), reason="needs Linux, which tells the peak of a process's memory")
@pytest.mark.parametrize("mode", ["I;16", "F", "RGB"])
def test_memory_stays_near_what_the_picture_takes(mode):
    picture = Image.new(mode, (4000, 2500))
    photo_tensor(picture.crop((0, 0, 10, 10)))
    before = memory("VmRSS")
    CLEAR_PEAK.write_text("5")
    assert photo_tensor(picture).shape == (3, 640, 1024)
    assert memory("VmHWM") - before < 60e6  # all of it converted at once: 400e6 for I;16, 80e6 for RGB


def memory(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def test_more_memory_than_there_is(tmp_path, monkeypatch):
    Image.new("RGB", (2, 2)).save(tmp_path / "cat.png")

    def fail(_image):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", fail)
    with pytest.raises(ValueError, match=r"cat\.png takes more memory to read than there is; scale it down first"):
        read_photo(tmp_path / "cat.png")


@pytest.mark.parametrize("kind", ["EPS", "DDS", "PCX"])
def test_formats_that_are_not_meant_are_not_opened(tmp_path, kind):
    """Pillow opens EPS with Ghostscript."""
    Image.new("RGB", (4, 4)).save(tmp_path / "cat.png", kind)
    with pytest.raises(ValueError, match=r"cat\.png is not an image that Pillow can read as one of AVIF, BMP, "):
        read_photo(tmp_path / "cat.png")


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_that_are_read(tmp_path, kind):
    if not has(kind):
        pytest.skip(f"this Pillow writes no {kind}")
    Image.new("RGB", (6, 4), BRICK).save(tmp_path / "cat", kind)
    check_colour(read_photo(tmp_path / "cat"), [c / 255 for c in BRICK], atol=0.05)


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, SyntaxError])
def test_whatever_a_decoder_raises_is_the_usual_message(tmp_path, monkeypatch, error):
    Image.new("RGB", (2, 2)).save(tmp_path / "cat.png")

    def fail(_image):
        raise error("failed to decode frame 0")

    monkeypatch.setattr(Image.Image, "load", fail)
    with pytest.raises(ValueError, match=r"cat\.png cannot be read; it may be damaged .*: failed to decode frame 0"):
        read_photo(tmp_path / "cat.png")


@pytest.mark.parametrize("mode", ["I;16", "F"])
def test_many_levels_are_scaled_in_bands_without_seams(monkeypatch, mode):
    """Also where the last band, and the last average in it, is smaller than the others."""
    monkeypatch.setattr(photo, "BAND_PIXELS", 3000)
    ramp = np.linspace(0, 65535, 1003).astype(np.uint16)[:, None].repeat(601, 1)
    picture = Image.fromarray(ramp if mode == "I;16" else ramp.astype(np.float32))
    tensor = photo_tensor(picture, long_side=100)
    assert tensor.shape == (3, 100, 60)
    torch.testing.assert_close(tensor[0, :, 30], torch.linspace(0.5 / 100, 99.5 / 100, 100), atol=0.01, rtol=0)
