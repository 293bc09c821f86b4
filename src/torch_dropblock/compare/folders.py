"""Data sets of image files: one folder per class, already split into parts or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, Subset
from torchvision.transforms import v2

from .folder_parts import Parts, parts_of
from .image_folder import Reader, some
from .source import HELD_OUT, Source, split

# ImageNet's, which torchvision's networks were trained with
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def folder(path: Path, side: int) -> tuple[Source, list[int]]:
    """Read DIR/train/CLASS/* and DIR/val/CLASS/*, or DIR/CLASS/* with a fifth of each class for validation."""
    if not path.is_dir():
        raise ValueError(f"--data must name a folder of images, got {path}, which is none")
    where, reader = parts_of(path), Reader()
    parts: tuple[Dataset[Any], Dataset[Any]]
    whole = reader.read(where.train)
    if where.val:
        val = reader.read(where.val)
        if whole.classes != val.classes:
            only = sorted(set(whole.classes) ^ set(val.classes))
            raise ValueError(
                f"{where.train.name} and {where.val.name} of {path} must have the same classes; in one: {some(only)}"
            )
        labels, parts, files = whole.targets, (whole, val), [*whole.files, *val.files]
    else:
        few = [name for number, name in enumerate(whole.classes) if whole.targets.count(number) < 2]
        if few:
            raise ValueError(f"each class of {path} must have two images, one of them to validate on: {some(few)}")
        kept, held_out = split(whole.targets, 1.0 - HELD_OUT, str(path))
        labels, parts = [whole.targets[i] for i in kept], (Subset(whole, kept), Subset(whole, held_out))
        files = whole.files
    if len(whole.classes) < 2:
        raise ValueError(f"{path} must have two classes or more, it has {whole.classes[0]!r} only")
    source = Source(
        train=parts[0],
        val=parts[1],
        classes=len(whole.classes),
        channels=3,
        side=side,
        mean=MEAN,
        std=STD,
        place=(v2.RandomResizedCrop(side, antialias=True), v2.RandomHorizontalFlip()),
        place_val=(v2.Resize(round(side * 256 / 224), antialias=True), v2.CenterCrop(side)),
        policy=v2.AutoAugmentPolicy.IMAGENET,
        files=files,
        notes=_notes(where, reader),
    )
    return source, labels


def _notes(where: Parts, reader: Reader) -> list[str]:
    """Describe the parts found, unless they are plain train and val, and the files left out."""
    notes = []
    if where.val and (where.left_out or (where.train.name, where.val.name) != ("train", "val")):
        beside = f"; not used: {some(where.left_out)}" if where.left_out else ""
        notes.append(f"training on {where.train}, validating on {where.val}{beside}")
    if reader.left_out:
        counts = ", ".join(f"{number:,} {what}" for what, number in reader.left_out.most_common())
        notes.append(f"left out: {counts}")
    return notes
