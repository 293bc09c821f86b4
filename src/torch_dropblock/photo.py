"""A photograph as a tensor: the built-in one, or any image file that Pillow reads."""

from __future__ import annotations

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
# the largest picture that is read, to be scaled down: 2 GB as RGB once it is decoded
MAX_PIXELS = 700_000_000


def builtin_photo(long_side: int = LONG_SIDE) -> Tensor:
    """The portrait of Grace Hopper that comes with matplotlib; otherwise as `read_photo`."""
    return read_photo(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False), long_side)


def read_photo(path: str | Path, long_side: int = LONG_SIDE, max_pixels: int = MAX_PIXELS) -> Tensor:
    """The picture in a file, as `photo_tensor` makes it; of an animation the first frame.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        ValueError: the file is no image, is damaged, or has more than `max_pixels`.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not an image file")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    with warnings.catch_warnings(), _large_images(max_pixels):
        warnings.simplefilter("ignore")  # remarks on a file's size and metadata are of no use to its owner
        try:
            with Image.open(path) as image:
                if image.width * image.height > max_pixels:
                    raise Image.DecompressionBombError  # noqa: TRY301 - Pillow would say so at twice its limit
                image.draft("RGB", (long_side, long_side))  # a JPEG can be decoded at an eighth of its size
                return photo_tensor(image, long_side)
        except UnidentifiedImageError:
            raise ValueError(f"{path} is not an image that Pillow can read") from None
        except Image.DecompressionBombError:
            raise ValueError(f"{path} has more than {max_pixels:,} pixels; scale it down first") from None
        except (PermissionError, MemoryError):
            raise
        except Exception as error:  # what Pillow raises on a damaged file may be anything
            raise ValueError(f"{path} cannot be read; it may be damaged or cut short: {error}") from error


@contextmanager
def _large_images(pixels: int) -> Iterator[None]:
    """Let Pillow open what is well above the size that it warns of, which cameras have passed."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def photo_tensor(image: Image.Image, long_side: int = LONG_SIDE) -> Tensor:
    """An image of any mode, upright and in colour: a float32 tensor of shape (3, H, W) in [0, 1].

    What is transparent becomes white. 16-bit levels keep their range. Values that have no range of their own, 32-bit
    integers and floats outside [0, 1], go from the smallest, black, to the largest, white.

    Args:
        image: a Pillow image.
        long_side: an image with a longer side than this is scaled down to it.
    """
    image = _known_mode(_upright(image))
    image.thumbnail((long_side, long_side), Image.Resampling.LANCZOS)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    levels = torch.from_numpy(np.array(image, dtype=np.float32))
    if image.mode == "F":
        return levels.clamp(0, 1).expand(3, -1, -1)  # the filter that scales down may overshoot
    return levels.movedim(-1, 0) / 255


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says."""
    image.load()  # so that damaged pixels are not taken for a damaged orientation
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - the picture is whole, only what is said about it is not
        return image


def _known_mode(image: Image.Image) -> Image.Image:
    """The image as RGB or RGBA, or, if it has levels that 8 bits cannot hold, as F in [0, 1]."""
    if image.mode[0] in "IF":
        return Image.fromarray(_unit_range(image))
    if image.mode == "La":  # Pillow converts a premultiplied mode to its plain one only
        image = image.convert("LA")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _unit_range(image: Image.Image) -> npt.NDArray[np.float32]:
    levels: npt.NDArray[np.float64] = np.asarray(image, dtype=np.float64)
    finite = levels[np.isfinite(levels)]
    low, high = finite.min(initial=np.inf), finite.max(initial=-np.inf)
    if image.mode.startswith("I;16"):
        low, high = 0.0, 65535.0
    elif image.mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    if high <= low:
        return np.zeros(levels.shape, np.float32)
    scaled: npt.NDArray[np.float64] = np.nan_to_num((levels - low) / (high - low), posinf=1.0, neginf=0.0)
    return scaled.astype(np.float32)
