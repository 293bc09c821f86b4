"""Settings common to all rows of a study, and presets."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from ..core import checks
from ..networks.schedule import CURVES

CHOICES: dict[str, tuple[str, ...]] = {
    "rate": checks.RATES,
    "decay": ("cosine", "steps"),
    "precision": ("32-true", "bf16-mixed", "16-mixed", "64-true"),
    "curve": tuple(CURVES),
}
# The paper, section 4.1: shares of the training at which the learning rate is divided by 10.
MILESTONES = (125 / 270, 200 / 270, 250 / 270)
WARMUP = 5 / 270


def option(name: str) -> str:
    """Return the command-line option of a setting."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class Settings:
    """The data, the network and the recipe.

    Args:
        data: `digits`, `fashion-mnist`, `cifar10` or `folder:DIR`.
        model: `small`, `small-32`, `small-64`, or the name of one of torchvision's classification ResNets.
        epochs: passes over the training images.
        batch_size: images per step, over all devices.
        learning_rate: highest learning rate for a batch of 256; it scales with the batch size.
        decay: `cosine`, or `steps`, the paper's division by 10 at 125, 200 and 250 of 270 epochs.
        weight_decay: weight decay of all parameters.
        precision: argument of Lightning's Trainer.
        keep_prob: keep_prob of DropBlock in the last group.
        block_size: block size of DropBlock; None means the side of the last group's map, at most 7 (the paper's value).
        rate: `exact` or `paper`.
        curve: curve of the schedule of every row that drops something.
        limit_train: number of training images, the same for all rows and seeds; None means all.
        image_size: side of a folder's images after cropping.
        validate_every: epochs between validations; must divide `epochs`.
    """

    data: str = "digits"
    model: str = "small"
    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 0.1
    decay: str = "cosine"
    weight_decay: float = 5e-4
    precision: str = "32-true"
    keep_prob: float = 0.9
    block_size: int | None = None
    rate: str = "exact"
    curve: str = "linear"
    limit_train: int | None = None
    image_size: int = 224
    validate_every: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "image_size", "validate_every"):
            checks.whole_number(option(name), getattr(self, name), at_least=1)
        for name in ("block_size", "limit_train"):
            if getattr(self, name) is not None:
                checks.whole_number(option(name), getattr(self, name), at_least=1)
        for name, least in (("learning_rate", "above 0"), ("weight_decay", "at least 0")):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (name == "learning_rate" and value == 0):
                raise ValueError(f"{option(name)} must be a finite number {least}, got {value!r}")
        checks.probability(option("keep_prob"), self.keep_prob)
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{option(name)} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.epochs % self.validate_every:
            raise ValueError(f"--validate-every must divide the {self.epochs} epochs, got {self.validate_every}")

    @property
    def highest_learning_rate(self) -> float:
        return self.learning_rate * self.batch_size / 256

    def differences(self, other: dict[str, Any]) -> list[str]:
        """Describe each setting that differs from the recorded ones."""
        mine = {name: getattr(self, name) for name in NAMES}
        return [
            f"{option(name)} {other.get(name)!r}, and now {value!r}"
            for name, value in mine.items()
            if other.get(name) != value
        ]


NAMES = tuple(field.name for field in fields(Settings))
PRESETS: dict[str, dict[str, Any]] = {
    # a table in minutes on a laptop
    "quick": {"epochs": 6, "batch_size": 64},
    # small images, long enough to overfit
    "standard": {"epochs": 30, "batch_size": 128},
    # section 4.1 of the paper, and its code: ImageNet with ResNet-50
    "paper": {
        "model": "resnet50",
        "epochs": 270,
        "batch_size": 1024,
        "learning_rate": 0.1,
        "decay": "steps",
        "weight_decay": 1e-4,
        "precision": "bf16-mixed",
        "keep_prob": 0.9,
        "block_size": 7,
    },
}


def settings_of(preset: str | None, **chosen: Any) -> Settings:
    """Return a preset with the chosen settings replaced; None keeps the preset's.

    Raises:
        TypeError, ValueError: there is no such preset, or a setting is out of range.
    """
    data = chosen.get("data") or "digits"
    folder = data.startswith("folder:")
    if folder:
        chosen["data"] = data.rstrip("/") if data != "folder:/" else data
    if preset is None:
        preset = "quick" if data == "digits" else "standard"
    if preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    given = {name: value for name, value in chosen.items() if value is not None}
    return Settings(**({"model": "resnet50" if folder else "small"} | PRESETS[preset] | given))
