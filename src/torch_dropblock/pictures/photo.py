"""Photographs as tensors: the built-in one, or an image file of a common format."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib import cbook
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

LONG_SIDE = 1024
# 0.8 GB as Pillow decodes RGB, and 3 to 4 GB inside the decoders of WebP and JPEG 2000
MAX_PIXELS = 200_000_000
# Pillow reads more formats, some of them with other programs: EPS with Ghostscript
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
BAND_PIXELS = 250_000  # per conversion
REDUCING_GAP = 2  # as in Pillow's `thumbnail`: averages first, and a good filter for the last halving
ORIENTATION = 0x0112  # in EXIF

_opening = threading.Lock()


def builtin_photo(long_side: int = LONG_SIDE) -> Tensor:
    """Read the portrait of Grace Hopper that comes with matplotlib; see `read_photo`."""
    return read_photo(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False), long_side)


def read_photo(path: str | Path, long_side: int = LONG_SIDE, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read the picture in a file of one of `FORMATS` by `photo_tensor`; an animation yields its first frame.

    Memory stays near Pillow's need to decode the file: 4 bytes per pixel, and up to 20 for WebP, AVIF and JPEG 2000.

    Args:
        path: the file.
        long_side: a picture with a longer side than this is scaled down to it.
        max_pixels: the largest picture that is decoded. A JPEG is decoded at down to an eighth of its size, and
            counts at that size unless it is progressive.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        ValueError: the file is not an image, is damaged, has more than `max_pixels`, or needs too much memory.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not an image file")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about a file's size and metadata do not help the user
        try:
            with _opened(path) as image:
                width, height = image.size
                image.draft("RGB", (long_side, long_side))
                decoded = width * height if "progressive" in image.info else image.width * image.height
                if decoded <= max_pixels:
                    return photo_tensor(image, long_side)
        except UnidentifiedImageError:
            formats = ", ".join(FORMATS)
            raise ValueError(f"{path} is not an image that Pillow can read as one of {formats}") from None
        except MemoryError:
            raise ValueError(f"{path} takes more memory to read than there is; scale it down first") from None
        except PermissionError:
            raise
        except Exception as error:  # Pillow may raise anything on a damaged file
            raise ValueError(f"{path} cannot be read; it may be damaged or cut short: {error}") from error
    raise ValueError(f"{path} has more than {max_pixels:,} pixels ({width}×{height}); scale it down first")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image and read its header, without Pillow's check of its size."""
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]  # older versions of Pillow lack AVIF and QOI
    with _opening:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(path, formats=known)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with image:
        yield image


def photo_tensor(image: Image.Image, long_side: int = LONG_SIDE) -> Tensor:
    """Convert an image of any mode, upright and in colour, to a float32 tensor of shape (3, H, W) in [0, 1].

    Transparent pixels become white. 16-bit levels keep their range. 32-bit integers, and floats outside [0, 1], are
    scaled so that the smallest value is black and the largest white.

    Args:
        image: a Pillow image.
        long_side: an image with a longer side than this is scaled down to it.
    """
    image.load()  # raises on damaged pixels here, not inside _upright
    scale = min(1.0, long_side / max(image.size))
    width, height = (max(1, round(scale * side)) for side in image.size)
    factor = max(1, int(1 / scale / REDUCING_GAP))
    exact = (0.0, 0.0, image.width / factor, image.height / factor)
    small = _reduced(image, factor).resize((width, height), Image.Resampling.LANCZOS, exact)
    levels = torch.from_numpy(np.array(_upright(small, image), dtype=np.float32))
    if small.mode == "F":
        return levels.clamp(0, 1).expand(3, -1, -1)  # the scaling filter may overshoot
    return levels.movedim(-1, 0) / 255


def _upright(small: Image.Image, image: Image.Image) -> Image.Image:
    """Rotate the small image by the EXIF orientation of the original."""
    try:
        small.getexif()[ORIENTATION] = image.getexif().get(ORIENTATION, 1)
        return ImageOps.exif_transpose(small)
    except Exception:  # noqa: BLE001 - the pixels are fine, only the metadata is damaged
        return small


def _reduced(image: Image.Image, factor: int) -> Image.Image:
    """Average factor² pixels into one; the mode is RGB, or F in [0, 1] for levels that 8 bits cannot hold.

    Bands are converted one after the other, because a conversion takes up to 40 bytes per pixel.
    """
    many_levels = image.mode[0] in "IF"
    low, high = _range(image) if many_levels else (0.0, 1.0)
    size = (math.ceil(image.width / factor), math.ceil(image.height / factor))
    small = Image.new("F" if many_levels else "RGB", size)
    for top, band in _bands(image, factor):
        converted = Image.fromarray(_unit_range(band, low, high)) if many_levels else _rgb(band)
        small.paste(converted.reduce(factor), (0, top // factor))
    return small


def _bands(image: Image.Image, multiple: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """Yield bands with their first row; the height of all but the last is a multiple of `multiple`."""
    rows = multiple * max(1, BAND_PIXELS // (multiple * image.width))
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # Pillow converts La only to LA
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _range(image: Image.Image) -> tuple[float, float]:
    """Return the levels that become black and white."""
    if image.mode.startswith("I;16"):
        return 0.0, 65535.0
    low, high = np.inf, -np.inf
    for _, band in _bands(image):
        levels: npt.NDArray[np.float64] = np.asarray(band, dtype=np.float64)
        finite = levels[np.isfinite(levels)]
        low, high = finite.min(initial=low), finite.max(initial=high)
    return (0.0, 1.0) if image.mode == "F" and low >= 0 and high <= 1 else (float(low), float(high))


def _unit_range(image: Image.Image, low: float, high: float) -> npt.NDArray[np.float32]:
    levels: npt.NDArray[np.float64] = np.asarray(image, dtype=np.float64)
    if high <= low:
        return np.zeros(levels.shape, np.float32)
    scaled: npt.NDArray[np.float64] = np.nan_to_num((levels - low) / (high - low), posinf=1.0, neginf=0.0)
    return scaled.astype(np.float32)
