"""Reading of one image file, upright and as RGB with 8 bits; errors that name unreadable files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageOps

# Pillow's other formats are documents, icons, or need another program
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
SHOWN = 5


class UnreadableImageError(ValueError):
    """Raised for files that are no images or are damaged.

    Attributes:
        files: one message per file, with the reason.
    """

    def __init__(self, message: str, files: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.files = files


def suffixes() -> frozenset[str]:
    """Return the file suffixes of the formats that the installed Pillow can read."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, name in known.items() if name in FORMATS and name in Image.OPEN)


def read_image(path: str) -> Image.Image:
    """Read an image as RGB with 8 bits, rotated by its EXIF orientation; an animation yields its first frame."""
    try:
        with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            image.load()  # raises on damaged pixels here, not inside _upright
            return _eight_bits(_upright(image)).convert("RGB")
    except Exception as error:  # Pillow may raise anything on a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImageError(f"cannot read the image {path}: {reason}") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - the pixels are fine, only the metadata is damaged
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit levels to 8 bits; Pillow would clip them at 255, which makes the image white."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # up to Pillow 11.2
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its mode is {image.mode}, whose levels have no range; save it with 8 or 16 bits")
    return image


def unreadable(files: Sequence[str]) -> UnreadableImageError | None:
    """Read every file; return one error that names all unreadable ones, or None."""
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
