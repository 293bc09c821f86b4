"""What a directory holds of a study: its settings, a line for each finished run, and where an unfinished one goes on.

Each file is replaced as a whole or not at all, so what is there is always true, whenever the process was killed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from .rows import Row
from .settings import Settings

SETTINGS, RESULTS, LOCKS, WEIGHTS = "settings.json", "results.jsonl", ".locks", "weights"

Result = dict[str, Any]


class Records:
    """A directory of a study, which several commands may work on at the same time, each at a run of its own.

    Args:
        path: the directory; it is made where there is none.
        settings: of all runs in it.

    Raises:
        ValueError: the directory holds a study with other settings, or something else.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path = path
        (path / LOCKS).mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path / LOCKS / "results.lock")
        with self._lock:
            self._check(settings)
            _replace(path / SETTINGS, json.dumps(asdict(settings), indent=1) + "\n")

    def _check(self, settings: Settings) -> None:
        file = self.path / SETTINGS
        if file.exists():
            different = settings.differences(_json(file, file.read_text()))
            if different:
                raise ValueError(
                    f"{self.path} holds runs made with {'; '.join(different)}: use the same settings, or another --out"
                )
        elif (self.path / RESULTS).exists():
            raise ValueError(f"{self.path} has {RESULTS} but no {SETTINGS}, which says how they were made")

    def results(self) -> list[Result]:
        """The finished runs, in the order in which they finished."""
        file = self.path / RESULTS
        lines = file.read_text().splitlines() if file.exists() else []
        return [_json(file, line) for line in lines]

    def finished(self, row: Row, seed: int) -> bool:
        return any(result["row"] == row.name and result["seed"] == seed for result in self.results())

    def add(self, result: Result) -> None:
        with self._lock:
            lines = [json.dumps(known) for known in (*self.results(), result)]
            _replace(self.path / RESULTS, "\n".join(lines) + "\n")

    @contextmanager
    def claimed(self, row: Row, seed: int) -> Iterator[bool]:
        """Whether this process is the one to train a run: it is unfinished, and nobody else is at it."""
        claim = FileLock(self.path / LOCKS / f"{self._name_of(row, seed)}.lock")
        try:
            claim.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield not self.finished(row, seed)
        finally:
            claim.release()

    def write(self, name: str, text: str) -> Path:
        return _replace(self.path / name, text)

    def save_weights(self, row: Row, seed: int, state_dict: dict[str, Any]) -> None:
        file = self.path / WEIGHTS / f"{self._name_of(row, seed)}.pt"
        file.parent.mkdir(exist_ok=True)
        torch.save(state_dict, part := file.with_suffix(".part"))
        os.replace(part, file)

    def folder_of(self, row: Row, seed: int) -> Path:
        """Where an unfinished run keeps its checkpoint."""
        return self.path / "unfinished" / self._name_of(row, seed)

    def _name_of(self, row: Row, seed: int) -> str:
        name = re.sub(r"[^a-z0-9.]+", "-", row.name)
        if name != row.name:  # which no two rows share then
            name += "-" + sha256(row.name.encode()).hexdigest()[:6]
        return f"{name}-seed{seed}"

    def forget_unfinished(self, row: Row, seed: int) -> None:
        folder = self.folder_of(row, seed)
        shutil.rmtree(folder, ignore_errors=True)
        if folder.parent.exists() and not any(folder.parent.iterdir()):
            folder.parent.rmdir()


def _replace(file: Path, text: str) -> Path:
    part = file.with_name(file.name + ".part")
    with part.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, file)
    return file


def _json(file: Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file} is damaged: it holds {text[:50]!r}")  # noqa: TRY004 - it is a file
    return value
