"""Reading and checking of results.jsonl; errors name the file and the line."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Result = dict[str, Any]
Run = tuple[str, int]  # a row's name and a seed


@dataclass(frozen=True)
class Rule:
    """Constraint on a value, in words and as a check."""

    wanted: str
    holds: Callable[[Any], bool]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_curve(name: str, points: object) -> bool:
    """Check pairs of an epoch and a value; losses may be NaN, from a training that diverged."""
    is_value = _is_number if name.endswith("loss") else _is_share
    return isinstance(points, list) and all(
        isinstance(point, list) and len(point) == 2 and _is_whole(point[0], 1) and is_value(point[1])
        for point in points
    )


def _are_curves(value: object) -> bool:
    return isinstance(value, dict) and all(_is_curve(name, points) for name, points in value.items())


def _are_counts(value: object) -> bool:
    names = ("train", "val", "classes")
    return isinstance(value, dict) and all(_is_whole(value.get(name), 1) for name in names)


def _are_points(value: object, size: int) -> bool:
    return isinstance(value, list) and all(
        isinstance(point, list) and len(point) == size and all(map(_is_number, point)) for point in value
    )


def _is_pairs(value: object) -> bool:
    return _are_points(value, 2)


def _are_measures(value: object) -> bool:
    return isinstance(value, dict) and all(
        name in MEASURED
        and isinstance(numbers, dict)
        and all(key in numbers and holds(numbers[key]) for key, holds in MEASURED[name].items())
        for name, numbers in value.items()
    )


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (str, int, float))


SHARE = Rule("a number in [0, 1]", _is_share)
NUMBER = Rule("a number", _is_number)
TIME = Rule("a number above 0", lambda value: _is_number(value) and 0 < value < 1e15)
# content of each measure; an area under a curve is NaN if there are no two groups to tell apart
MEASURED: dict[str, dict[str, Callable[[Any], bool]]] = {
    "occlusion": {"auc": _is_share, "curve": _is_pairs},
    "corruption": {"mean": _is_share, **dict.fromkeys(("noise", "blur", "contrast", "jpeg"), _is_pairs)},
    "calibration": {"ece": _is_share, "nll": _is_number, "bins": lambda value: _are_points(value, 3)},
    "uncertainty": {
        "passes": lambda value: _is_whole(value, 1),
        **dict.fromkeys(("top1", "ece", "aurc"), _is_share),
        **dict.fromkeys(("auroc_errors", "auroc_others"), _is_number),
        "others": lambda value: isinstance(value, str),
    },
    "parts": {"share": _is_share},
}
NEEDED = {
    "row": Rule("the name of a row", lambda value: isinstance(value, str) and value.isprintable()),
    "seed": Rule("a whole number of at least 0", lambda value: _is_whole(value, 0)),
    "top1": SHARE,
    "step_ms": TIME,
    "seconds": TIME,
    "curves": Rule("lists of [epoch, value] by name", _are_curves),
    "machine": Rule(
        "plain values by name", lambda value: isinstance(value, dict) and all(map(_is_plain, value.values()))
    ),
}
# absent from some rows and from older results
OPTIONAL = {
    "top5": SHARE,
    "train_top1": SHARE,
    "loss": NUMBER,
    "train_loss": NUMBER,
    "images": Rule("counts of train, val and classes, each at least 1", _are_counts),
    "measures": Rule("the numbers of known measures", _are_measures),
    "processes": Rule("a whole number of at least 1", lambda value: _is_whole(value, 1)),
}


def read_results(file: Path) -> dict[Run, tuple[str, Result]]:
    """Return the text and the content of each run's last line, in the order in which the runs finished.

    Raises:
        ValueError: a line is not a valid result.
        OSError: the file cannot be read.
    """
    runs: dict[Run, tuple[str, Result]] = {}
    for number, line in enumerate(text_of(file).split("\n"), 1):
        if line.strip():
            result = _result(f"{file}, line {number}", line)
            runs[result["row"], result["seed"]] = line, result
    return runs


def _result(where: str, line: str) -> Result:
    result = json_object(where, line)
    for name, rule in (NEEDED | OPTIONAL).items():
        if name not in result and name in OPTIONAL:
            continue
        value = result.get(name)
        if not rule.holds(value):
            got = reprlib.repr(value)[:80] if name in result else "nothing"
            raise ValueError(
                f"{where}: {name} must be {rule.wanted}, got {got}; delete the line to train the run again"
            )
    return result


def json_object(where: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # also raised for huge numbers and deep nesting
        raise ValueError(f"{where} is damaged: {error}") from None
    if isinstance(value, dict):
        return value
    raise ValueError(f"{where} is damaged: it holds {text[:50]!r}")


def text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
