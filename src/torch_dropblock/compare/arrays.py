"""Data sets that fit into memory: digits, Fashion-MNIST and CIFAR-10."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2

from .batches import Arrays
from .source import HELD_OUT, Source, split

NAMES = ("digits", "fashion-mnist", "cifar10")


def arrays(name: str, data_dir: Path, download: bool) -> tuple[Source, list[int]]:
    if name == "digits":
        (train, labels), (val, val_labels) = _digits()
        policy, mirror = v2.AutoAugmentPolicy.SVHN, False  # a mirrored digit is no longer the same digit
    elif name == "fashion-mnist":
        (train, labels), (val, val_labels) = (_fashion_mnist(data_dir, part, download) for part in (True, False))
        policy, mirror = v2.AutoAugmentPolicy.CIFAR10, True
    else:
        (train, labels), (val, val_labels) = (_cifar10(data_dir, part, download) for part in (True, False))
        policy, mirror = v2.AutoAugmentPolicy.CIFAR10, True
    side = train.shape[-1]
    pixels = train.float().div_(255)
    source = Source(
        train=Arrays(train, labels),
        val=Arrays(val, val_labels),
        classes=int(labels.max()) + 1,
        channels=train.shape[1],
        side=side,
        mean=tuple(pixels.mean((0, 2, 3)).tolist()),
        std=tuple(pixels.std((0, 2, 3)).tolist()),
        policy=policy,
        shift=side // 8,
        mirror=mirror,
        are_digits=name == "digits",
    )
    return source, labels.tolist()


Part = tuple[Tensor, Tensor]


def _digits() -> tuple[Part, Part]:
    """Return 1,797 handwritten digits of 8×8 pixels; a fifth is for validation."""
    digits = load_digits()
    # 17 shades of grey
    images = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(digits.target)
    train, val = split(labels.tolist(), 1.0 - HELD_OUT, "digits")
    return (images[train], labels[train]), (images[val], labels[val])


def _fashion_mnist(data_dir: Path, train: bool, download: bool) -> Part:
    data = _from_torchvision(datasets.FashionMNIST, "fashion-mnist", data_dir, train, download)
    return data.data[:, None], data.targets


def _cifar10(data_dir: Path, train: bool, download: bool) -> Part:
    part = "train" if train else "test"
    files = [data_dir / "cifar10" / f"{part}_{what}.npy" for what in ("images", "labels")]
    if all(file.exists() for file in files):
        images, labels = map(_array, files)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or images.shape[1] != images.shape[2]:
            raise ValueError(
                f"{files[0]} must hold uint8 images of shape (N, S, S, 3), got {images.dtype} of {images.shape}"
            )
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or labels.min(initial=0) < 0:
            raise ValueError(
                f"{files[1]} must hold a class from 0 for each of the {len(images)} images of {files[0].name}, got "
                f"{labels.dtype} of {labels.shape}"
            )
        labels = labels.astype(np.int64)
    else:
        data = _from_torchvision(datasets.CIFAR10, "cifar10", data_dir, train, download)
        images, labels = data.data, data.targets
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.as_tensor(labels)


def _array(file: Path) -> Any:
    try:
        return np.load(file)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{file} must be an array that NumPy saved; reading it failed: {error}") from error


def _from_torchvision(kind: Any, name: str, data_dir: Path, train: bool, download: bool) -> Any:
    if download:
        data_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(data_dir / f".{name}.lock"):  # the processes of one run download at the same time
            try:
                return kind(data_dir, train=train, download=True)
            except RuntimeError as error:
                raise ValueError(f"cannot get {name} into the folder {data_dir}: {error}") from error
    try:
        return kind(data_dir, train=train)
    except (
        RuntimeError,
        ValueError,
        AssertionError,
        EOFError,
    ) as error:  # raised on damaged files
        raise ValueError(
            f"--data-dir must be a folder with all files of {name}, got {data_dir}; name another one, or add --download"
        ) from error
