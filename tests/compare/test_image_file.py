"""One image file: what is read, how, and what is named as unreadable."""

import numpy as np
import pytest
from PIL import Image

from torch_dropblock.compare.image_file import FORMATS, UnreadableImageError, read_image, suffixes, unreadable


def test_suffixes_are_those_of_images():
    assert {".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".gif", ".tga", ".bmp", ".webp", ".tif", ".jp2"} <= suffixes()
    assert {"", ".eps", ".pdf", ".mpo", ".ico", ".heic", ".txt"}.isdisjoint(suffixes())


@pytest.mark.parametrize("suffix", [".jpe", ".jfif", ".gif", ".tga", ".bmp", ".webp", ".ppm", ".png"])
def test_each_kind_is_read_in_colour(tmp_path, suffix):
    Image.new("RGB", (6, 4), (200, 40, 0)).save(tmp_path / f"a{suffix}")
    image = read_image(str(tmp_path / f"a{suffix}"))
    assert (image.mode, image.size) == ("RGB", (6, 4))
    assert np.abs(np.asarray(image).astype(int) - (200, 40, 0)).max() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_as_their_camera_was_held(tmp_path, orientation):
    turns = [
        None,
        Image.Transpose.FLIP_LEFT_RIGHT,
        Image.Transpose.ROTATE_180,
        Image.Transpose.FLIP_TOP_BOTTOM,
        Image.Transpose.TRANSPOSE,
        Image.Transpose.ROTATE_90,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_270,
    ]
    upright = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)
    turn = turns[orientation - 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    (upright if turn is None else upright.transpose(turn)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(read_image(str(tmp_path / "a.png")).convert("L")), np.asarray(upright))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # which a study does not show
def test_a_damaged_orientation_turns_nothing(tmp_path):
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x07\0\xff\xff\xff\x7f\0\0"
    Image.new("L", (6, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(str(tmp_path / "a.jpg")).size == (6, 4)


@pytest.mark.parametrize(("kind", "mode"), [("png", "I;16"), ("tif", "I;16"), ("tif", "I;16B")])
def test_16_bit_levels_keep_their_order(tmp_path, kind, mode):
    levels = np.linspace(0, 65535, 64).round().reshape(8, 8)
    image = Image.frombytes(mode, (8, 8), levels.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    image.save(tmp_path / f"a.{kind}")
    read = np.asarray(read_image(str(tmp_path / f"a.{kind}")))
    assert np.array_equal(read, np.repeat(levels[..., None] // 256, 3, axis=-1))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_levels_without_a_range_are_refused(tmp_path, dtype):
    Image.fromarray(np.zeros((8, 8), dtype)).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableImageError, match=r"a\.tif: its mode is [IF], whose levels have no range"):
        read_image(str(tmp_path / "a.tif"))


def test_nothing_is_handed_over_to_another_program(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match=r"cannot read the image .*a\.png: cannot identify"):
        read_image(str(tmp_path / "a.png"))
    assert "EPS" not in FORMATS


@pytest.mark.parametrize("error", [NotImplementedError("no such codec"), RuntimeError("decoder"), IndexError()])
def test_whatever_pillow_raises_names_the_file(tmp_path, monkeypatch, error):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(UnreadableImageError, match=f"cannot read the image a.avif: {str(error) or 'IndexError'}$"):
        read_image("a.avif")


def test_all_bad_files_are_found_at_once(tmp_path):
    files = [str(tmp_path / f"{i}.png") for i in range(9)]
    for file in files:
        Image.new("L", (4, 4)).save(file)
    assert unreadable(files) is None
    (tmp_path / "3.png").write_bytes(b"x")
    one = unreadable(files)
    assert str(one).startswith(f"cannot read the image {files[3]}: ")
    for file in files[:7]:
        (tmp_path / file).write_bytes(b"x")
    several = unreadable(files)
    assert str(several).startswith(f"cannot read 7 of 9 images: {files[0]}: cannot identify")
    assert str(several).endswith("; and 2 more")
    assert [file in line for file, line in zip(files, several.files, strict=False)] == [True] * 7
