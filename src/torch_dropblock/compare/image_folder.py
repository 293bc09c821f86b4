"""A folder with a folder of images for each class: read in colour and 8 bits, or named as unreadable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision import datasets


class UnreadableImageError(ValueError):
    """A file that is no image, or a damaged one."""


class _ImageFolder(datasets.ImageFolder):  # type: ignore[misc]
    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """Without hidden folders, in which programs keep previews."""
        classes = [name for name in super().find_classes(directory)[0] if not name.startswith(".")]
        if not classes:
            raise FileNotFoundError(f"Couldn't find any class folder in {directory}.")
        return classes, {name: number for number, name in enumerate(classes)}


def image_folder(path: Path) -> Any:
    """A data set of PIL images and classes.

    Raises:
        ValueError: there is no folder of images for a class; once an image is read, UnreadableImageError.
    """
    try:
        return _ImageFolder(path, loader=read_image)
    except FileNotFoundError as error:  # which names the classes, not where they are
        raise ValueError(f"{path} must hold a folder of images for each class: {error}") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Pillow clips levels above 255, which makes a 16-bit image white."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # up to Pillow 11.2
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its mode is {image.mode}, whose levels have no range; save it with 8 or 16 bits")
    return image


def read_image(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return _eight_bits(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(f"cannot read the image {path}: {error}") from error
