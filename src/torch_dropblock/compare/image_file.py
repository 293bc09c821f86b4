"""One image file: read upright, in colour and with 8 bits, or named as unreadable."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageOps

# others that Pillow opens are documents, icons or hand over to another program
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
SHOWN = 5


class UnreadableImageError(ValueError):
    """Files that are no images, or damaged ones.

    Attributes:
        files: each file with the reason.
    """

    def __init__(self, message: str, files: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.files = files


def suffixes() -> frozenset[str]:
    """Those of the formats that this Pillow reads."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, name in known.items() if name in FORMATS and name in Image.OPEN)


def read_image(path: str) -> Image.Image:
    """An image as RGB with 8 bits, turned as its EXIF orientation says; of an animation the first frame."""
    try:
        with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            image.load()  # so that damaged pixels are not taken for a damaged orientation
            return _eight_bits(_upright(image)).convert("RGB")
    except Exception as error:  # what Pillow raises on a damaged file may be anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImageError(f"cannot read the image {path}: {reason}") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - the picture is whole, only what is said about it is not
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """Pillow clips levels above 255, which makes a 16-bit image white."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # up to Pillow 11.2
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its mode is {image.mode}, whose levels have no range; save it with 8 or 16 bits")
    return image


def unreadable(files: Sequence[str]) -> UnreadableImageError | None:
    """One error for all files that are no images, after reading each; None if every file is one."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        bad = [reason for reason in pool.map(_reason, files) if reason]
    if not bad:
        return None
    if len(bad) == 1:
        return UnreadableImageError(bad[0], bad)
    more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    named = "; ".join(reason.removeprefix("cannot read the image ") for reason in bad[:SHOWN])
    return UnreadableImageError(f"cannot read {len(bad)} of {len(files)} images: {named}{more}", bad)


def _reason(file: str) -> str | None:
    try:
        read_image(file)
    except UnreadableImageError as error:
        return str(error)
    return None
