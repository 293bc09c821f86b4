"""Folders of images: what is a class, and what becomes of images that are not of 8 bits."""

import numpy as np
import pytest
from PIL import Image

from torch_dropblock.compare.image_folder import UnreadableImageError, image_folder, read_image


def test_classes_are_the_folders_that_are_not_hidden(tmp_path):
    for name in ("b", "a", ".thumbnails"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 5)).save(tmp_path / name / "1.png")
    images = image_folder(tmp_path)
    assert (images.classes, images.targets) == (["a", "b"], [0, 1])
    assert (images[0][0].mode, images[0][0].size) == ("RGB", (4, 5))


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
