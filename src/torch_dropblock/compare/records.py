"""The directory of a study: settings, one line per finished run, and checkpoints of unfinished runs.

Files are replaced atomically, so the directory stays consistent if the process is killed.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
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
    """The directory of a study. Several commands may share it, each training a different run.

    Args:
        path: the directory; created if it does not exist.
        settings: settings of all runs in it.
        measures: what is measured of each trained network. A run is finished when its line has them, or cannot get
            them because its weights were not saved.

    Raises:
        ValueError: the directory holds a study with other settings, or damaged files.
        OSError: the directory cannot be read or written.
    """

    def __init__(self, path: Path, settings: Settings, measures: Sequence[str] = ()) -> None:
        self.path, self.settings, self.measures = path, settings, measures
        (path / LOCKS).mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path / LOCKS / "results.lock")
        with self._lock:
            if (path / RESULTS).exists() or any((path / UNFINISHED).glob("*")):
                self._check()
            replace(path / SETTINGS, json.dumps(asdict(settings), indent=1) + "\n")
        for result in self.results():  # left over if a process was killed after it added the result
            shutil.rmtree(self._folder_of(result["row"], result["seed"]), ignore_errors=True)

    def _check(self) -> None:
        file = self.path / SETTINGS
        if not file.exists():
            raise ValueError(f"{self.path} holds runs but not {SETTINGS}, their settings; use another --out")
        different = self.settings.differences(_settings(file))
        if different:
            raise ValueError(
                f"{self.path} holds runs made with {'; '.join(different)}: use the same settings, or another --out"
            )

    def results(self) -> list[Result]:
        """Return the finished runs in the order in which they finished."""
        return [result for _, result in self._lines().values()]

    def _lines(self) -> dict[Run, tuple[str, Result]]:
        file = self.path / RESULTS
        return read_results(file) if file.exists() else {}

    def result(self, row: Row, seed: int) -> Result | None:
        """Return the result of a run that was trained."""
        _, result = self._lines().get((row.name, seed), ("", None))
        return result

    def finished(self, row: Row, seed: int) -> bool:
        result = self.result(row, seed)
        return result is not None and not (self.missing(result) and self.weights_of(row, seed).exists())

    def missing(self, result: Result) -> list[str]:
        """Return the wanted measures that a result lacks."""
        return [name for name in self.measures if name not in result.get("measures", {})]

    def add(self, result: Result) -> None:
        with self._lock:
            lines = {run: line for run, (line, _) in self._lines().items()}
            lines[result["row"], result["seed"]] = json.dumps(result)
            replace(self.path / RESULTS, "\n".join(lines.values()) + "\n")

    @contextmanager
    def claimed(self, row: Row, seed: int, patience: float = 0.0) -> Iterator[bool]:
        """Yield True if this process may train the run: it is unfinished, and no other process trains it.

        Args:
            row: row of the run.
            seed: random seed of the run.
            patience: seconds to wait for another process that holds the run.
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
                    self._check()  # another command may have started a study here since __init__
                    self.folder_of(row, seed).mkdir(parents=True, exist_ok=True)
            yield mine
        finally:
            with self._lock:
                if self.finished(row, seed):
                    shutil.rmtree(self.folder_of(row, seed), ignore_errors=True)
                for folder in (self.folder_of(row, seed), self.path / UNFINISHED):
                    with suppress(OSError):  # not empty
                        folder.rmdir()
            claim.release()

    def write(self, name: str, content: str | bytes) -> Path:
        with self._lock:
            return replace(self.path / name, content)

    def save_weights(self, row: Row, seed: int, state_dict: dict[str, Any]) -> None:
        file = self.weights_of(row, seed)
        file.parent.mkdir(exist_ok=True)
        save(state_dict, file)

    def weights_of(self, row: Row, seed: int) -> Path:
        return self.path / WEIGHTS / f"{_name_of(row.name, seed)}.pt"

    def folder_of(self, row: Row, seed: int) -> Path:
        """Return the folder of an unfinished run's checkpoint."""
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
    if name != row:  # rows that differ only in replaced characters stay distinct
        name += "-" + sha256(row.encode()).hexdigest()[:6]
    return f"{name}-seed{seed}"


def save(value: object, file: Path) -> None:
    """Call `torch.save` atomically; a full disk raises OSError."""
    stream = io.BytesIO()
    torch.save(value, stream)
    replace(file, stream.getbuffer())


def replace(file: Path, content: str | bytes | memoryview) -> Path:
    """Write a file atomically; on failure the old content stays.

    Raises:
        OSError: the file cannot be written; `filename` is its path.
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
