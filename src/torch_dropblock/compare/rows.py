"""Rows of the table: what each adds to the common recipe.

row     part + part + …           dropblock+label-smoothing
part    name:option=value:…       dropblock:block_size=3:keep_prob=0.95
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from ..core import checks
from .settings import CHOICES, Settings

# The paper's Table 1; its best ImageNet results with ResNet-50 have the values of KEEP_PROB.
TABLE_1 = (
    "baseline",
    "dropout",
    "droppath",
    "spatial-dropout",
    "cutout",
    "autoaugment",
    "label-smoothing",
    "dropblock",
    "dropblock+label-smoothing",
)
BASELINE = "baseline"
KEEP_PROB = {"dropout": 0.7, "droppath": 0.9, "spatial-dropout": 0.9}
NOISES = (*KEEP_PROB, "dropblock")
OPTIONS = {
    BASELINE: (),
    "dropout": ("keep_prob", "curve"),
    "droppath": ("keep_prob", "curve"),
    "spatial-dropout": ("keep_prob", "curve"),
    "dropblock": ("keep_prob", "curve", "block_size", "rate"),
    "cutout": ("area",),
    "autoaugment": (),
    "label-smoothing": ("amount",),
}


@dataclass(frozen=True)
class Noise:
    """Settings of what drops; keep_prob is that of the last group, block_size None means the same as in Settings."""

    kind: str
    keep_prob: float
    curve: str
    block_size: int | None
    rate: checks.Rate


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        name: name as given by the user.
        noise: what drops inside the network.
        cutout: share of each image's area that is blanked.
        autoaugment: apply the learned augmentation policy to the images.
        label_smoothing: argument of `torch.nn.CrossEntropyLoss`.
    """

    name: str
    noise: Noise | None = None
    cutout: float = 0.0
    autoaugment: bool = False
    label_smoothing: float = 0.0


def parsed(names: Sequence[str], settings: Settings) -> list[Row]:
    """Parse the names of rows; the baseline always comes first.

    Raises:
        ValueError: a name, an option or a value is invalid, or a row has two kinds of noise.
    """
    rows = [_row(name.strip(), settings) for name in names]
    unique = {row.name: row for row in rows}
    if len(unique) < len(rows):
        raise ValueError(f"--rows must name each row once, got {', '.join(names)}")
    return [unique.pop(BASELINE, Row(BASELINE)), *unique.values()]


def _row(name: str, settings: Settings) -> Row:
    kinds: dict[str, dict[str, str]] = {}
    for part in name.split("+"):
        kind, *options = part.split(":")
        if kind not in OPTIONS:
            close = difflib.get_close_matches(kind, OPTIONS, n=1)
            hint = f"; close to it: {close[0]}" if close else ""
            raise ValueError(f"--rows must be of {', '.join(OPTIONS)}, joined by +, got {kind!r}{hint}")
        if kind in kinds or (BASELINE in (kind, *kinds) and "+" in name):
            raise ValueError(f"row {name!r} must name parts that go together, each once, and baseline alone")
        kinds[kind] = _options(name, kind, options)
    noisy = [kind for kind in kinds if kind in NOISES]
    if len(noisy) > 1:
        raise ValueError(f"row {name!r} must have one of {', '.join(NOISES)}, since they act at the same places")
    smoothing, cutout = kinds.get("label-smoothing"), kinds.get("cutout")
    return Row(
        name,
        noise=_noise(name, noisy[0], kinds[noisy[0]], settings) if noisy else None,
        cutout=0.0 if cutout is None else _share(name, "area", cutout.get("area", "0.25")),
        autoaugment="autoaugment" in kinds,
        label_smoothing=0.0 if smoothing is None else _share(name, "amount", smoothing.get("amount", "0.1")),
    )


def _options(name: str, kind: str, texts: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for option, equals, value in pairs:
        if option not in OPTIONS[kind] or not equals or not value:
            allowed = f"option=value with {', '.join(OPTIONS[kind])}" if OPTIONS[kind] else "nothing"
            raise ValueError(f"row {name!r}: {kind} takes {allowed}, got {option + equals + value!r}")
    options = {option: value for option, _, value in pairs}
    if len(options) < len(pairs):
        raise ValueError(f"row {name!r} must name each option of {kind} once")
    return options


def _noise(name: str, kind: str, options: dict[str, str], settings: Settings) -> Noise:
    where = f"row {name!r}:"
    keep_prob = float_of(f"{where} keep_prob", options["keep_prob"]) if "keep_prob" in options else None
    block_size = settings.block_size
    if "block_size" in options:
        if not options["block_size"].isdecimal():
            raise ValueError(f"{where} block_size must be a whole number, got {options['block_size']!r}")
        block_size = checks.whole_number(f"{where} block_size", int(options["block_size"]), at_least=1)
    for option in ("curve", "rate"):
        if option in options and options[option] not in CHOICES[option]:
            raise ValueError(f"{where} {option} must be one of {', '.join(CHOICES[option])}, got {options[option]!r}")
    default = KEEP_PROB.get(kind, settings.keep_prob)
    return Noise(
        kind,
        checks.probability(f"{where} keep_prob", default if keep_prob is None else keep_prob),
        options.get("curve", settings.curve),
        block_size,
        checks.rate(options.get("rate", settings.rate)),
    )


def _share(name: str, option: str, text: str) -> float:
    value = float_of(f"row {name!r}: {option}", text)
    if not 0.0 < value < 1.0:
        raise ValueError(f"row {name!r}: {option} must be in (0, 1), got {text!r}")
    return value


def float_of(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{option} must be a number, got {text!r}") from None
