"""Loading of the images that a study's settings name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch.utils.data import Subset

from .arrays import NAMES, arrays
from .batches import Arrays
from .folders import folder
from .settings import Settings
from .source import Source, split

FOLDER = "folder:"


def load(settings: Settings, data_dir: Path, download: bool = False) -> Source:
    """Load the images that the settings name.

    Raises:
        ValueError: there are no such data, or too few of them.
        OSError: a folder cannot be read.
    """
    if settings.data.startswith(FOLDER):
        source, labels = folder(Path(settings.data.removeprefix(FOLDER)).expanduser(), settings.image_size)
    elif settings.data in NAMES:
        source, labels = arrays(settings.data, data_dir, download)
    else:
        raise ValueError(f"--data must be {', '.join(NAMES)} or folder:DIR, got {settings.data!r}")
    if settings.limit_train is None:
        return source
    if not source.classes <= settings.limit_train <= len(labels):
        raise ValueError(
            f"--limit-train must be from {source.classes}, one image of each class, to all {len(labels)} of them, "
            f"got {settings.limit_train}"
        )
    if settings.limit_train == len(labels):
        return source
    part, _ = split(labels, settings.limit_train, f"--limit-train {settings.limit_train}")
    if isinstance(source.train, Arrays):
        return replace(source, train=Arrays(source.train.images[part], source.train.labels[part]))
    return replace(source, train=Subset(source.train, part))
