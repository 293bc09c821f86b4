"""What a directory holds of a study: its settings, a line for each finished run, and where an unfinished one goes on.

Each file is replaced as a whole or not at all, so what is there is always true, whenever the process was killed.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from .result_lines import Result, Run, json_object, read_results, text_of
from .rows import Row
from .settings import Settings

SETTINGS, RESULTS, LOCKS, UNFINISHED, WEIGHTS = "settings.json", "results.jsonl", ".locks", "unfinished", "weights"


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
        self.path, self.settings = path, settings
        (path / LOCKS).mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path / LOCKS / "results.lock")
        with self._lock:
            if (path / RESULTS).exists() or any((path / UNFINISHED).glob("*")):
                self._check()
            replace(path / SETTINGS, json.dumps(asdict(settings), indent=1) + "\n")
        for result in self.results():  # of which the process may have been killed before it did this
            shutil.rmtree(self._folder_of(result["row"], result["seed"]), ignore_errors=True)

    def _check(self) -> None:
        file = self.path / SETTINGS
        if not file.exists():
            raise ValueError(f"{self.path} holds runs but no {SETTINGS}, which says how they were made")
        different = self.settings.differences(_settings(file))
        if different:
            raise ValueError(
                f"{self.path} holds runs made with {'; '.join(different)}: use the same settings, or another --out"
            )

    def results(self) -> list[Result]:
        """The finished runs, in the order in which they finished."""
        return [result for _, result in self._lines().values()]

    def _lines(self) -> dict[Run, tuple[str, Result]]:
        file = self.path / RESULTS
        return read_results(file) if file.exists() else {}

    def finished(self, row: Row, seed: int) -> bool:
        return (row.name, seed) in self._lines()

    def add(self, result: Result) -> None:
        with self._lock:
            known = self._lines()
            known.pop((result["row"], result["seed"]), None)
            lines = [*(line for line, _ in known.values()), json.dumps(result)]
            replace(self.path / RESULTS, "\n".join(lines) + "\n")

    @contextmanager
    def claimed(self, row: Row, seed: int, patience: float = 0.0) -> Iterator[bool]:
        """Whether this process is the one to train a run: it is unfinished, and nobody else is at it.

        Args:
            row: of the run.
            seed: of the run.
            patience: seconds to wait for who else is at it.
        """
        claim = FileLock(self.path / LOCKS / f"{_name_of(row.name, seed)}.lock")
        try:
            claim.acquire(timeout=patience)
        except Timeout:
            yield False
            return
        try:
            mine = not self.finished(row, seed)
            if mine:
                with self._lock:
                    self._check()  # another command may have found the directory unused since this one did
                    self.folder_of(row, seed).mkdir(parents=True, exist_ok=True)
            yield mine
        finally:
            with self._lock:
                if self.finished(row, seed):
                    shutil.rmtree(self.folder_of(row, seed), ignore_errors=True)
                for folder in (self.folder_of(row, seed), self.path / UNFINISHED):
                    with suppress(OSError):  # there is something in it
                        folder.rmdir()
            claim.release()

    def write(self, name: str, content: str | bytes) -> Path:
        with self._lock:
            return replace(self.path / name, content)

    def save_weights(self, row: Row, seed: int, state_dict: dict[str, Any]) -> None:
        file = self.path / WEIGHTS / f"{_name_of(row.name, seed)}.pt"
        file.parent.mkdir(exist_ok=True)
        save(state_dict, file)

    def folder_of(self, row: Row, seed: int) -> Path:
        """Where an unfinished run keeps its checkpoint."""
        return self._folder_of(row.name, seed)

    def _folder_of(self, row: str, seed: int) -> Path:
        return self.path / UNFINISHED / _name_of(row, seed)


def _settings(file: Path) -> dict[str, Any]:
    values = json_object(str(file), text_of(file))
    nested = [name for name, value in values.items() if isinstance(value, (dict, list))]
    if nested:
        raise ValueError(f"{file} is damaged: {nested[0]} is no plain value")
    return values


def _name_of(row: str, seed: int) -> str:
    name = re.sub(r"[^a-z0-9.]+", "-", row)
    if name != row:  # which no two rows share then
        name += "-" + sha256(row.encode()).hexdigest()[:6]
    return f"{name}-seed{seed}"


def save(value: object, file: Path) -> None:
    """`torch.save`, to the whole file or none, and with an OSError where there is no room for it."""
    stream = io.BytesIO()
    torch.save(value, stream)
    replace(file, stream.getbuffer())


def replace(file: Path, content: str | bytes | memoryview) -> Path:
    """Write a file as a whole, or leave what was there.

    Raises:
        OSError: it cannot be written; its `filename` is the file's.
    """
    part = file.with_name(file.name + ".part")
    try:
        with part.open("wb") as stream:
            stream.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, file)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise OSError(error.errno, error.strerror, str(file)) from error
    return file
