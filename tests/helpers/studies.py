"""Small studies, in this process and in others, for the tests of `compare`."""

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch

from torch_dropblock.compare import data, rows
from torch_dropblock.compare.distributed import Machine
from torch_dropblock.compare.records import Records
from torch_dropblock.compare.settings import Settings
from torch_dropblock.compare.study import Study

# three steps per epoch
SMALL = {"epochs": 2, "batch_size": 50, "limit_train": 150}
TIMEOUT = 180


class Heard:
    """A listener that records its calls."""

    def __init__(self):
        self.started, self.ended, self.others, self.measured, self.steps = [], [], [], [], 0

    def run_starts(self, row, seed, steps_done):
        self.started.append((row.name, seed, steps_done))

    def run_is_others(self, row, seed):
        self.others.append((row.name, seed))

    def measure_starts(self, row, seed, measure):
        self.measured.append((row.name, seed, measure))

    def step_done(self):
        self.steps += 1

    def run_ends(self, result):
        self.ended.append((result["row"], result["seed"]))


class Stops(Heard):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def step_done(self):
        super().step_done()
        if self.steps == self.step:
            raise KeyboardInterrupt


def settings(**changes):
    return Settings(**(SMALL | changes))


@functools.cache
def source(wanted):
    return data.load(wanted, Path())


def study(path, names=("baseline",), seeds=1, listener=None, save_weights=False, workers=0, measures=(), **changes):
    wanted = settings(**changes)
    return Study(
        wanted,
        rows.parsed(names, wanted),
        range(seeds),
        source(wanted),
        Records(path, wanted, measures),
        listener or Heard(),
        Machine("cpu", workers=workers),
        save_weights=save_weights,
    )


def comparable(result):
    """Return a result without its times."""
    return {name: value for name, value in result.items() if name not in ("step_ms", "finished", "seconds")}


def results(path):
    lines = (path / "results.jsonl").read_text().splitlines() if (path / "results.jsonl").exists() else []
    return {(result["row"], result["seed"]): comparable(result) for result in map(json.loads, lines)}


def arguments(path, names="baseline", **changes):
    options = {"out": path, "rows": names, "accelerator": "cpu"} | SMALL | {"seeds": 1} | changes
    words = [(f"--{name.replace('_', '-')}", str(value)) for name, value in options.items()]
    return ["compare", *(word for pair in words for word in pair)]


def start(*words, before=(), **environment):
    """Start the command in its own process group, as in a terminal."""
    return subprocess.Popen(
        [*(before or [sys.executable]), "-m", "torch_dropblock", *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process, timeout=TIMEOUT):
    """Wait for a process; return its exit code, its output and its errors."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return str(listening.getsockname()[1])


def wait_for(happens, process, timeout=TIMEOUT):
    """Wait until `happens()` is true; fail if the process ends first."""
    until = time.monotonic() + timeout
    while not happens():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until, "it takes too long"
        time.sleep(0.02)


@contextlib.contextmanager
def one_thread():
    """Use one thread: several take longer for so small a task."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        torch.set_num_threads(threads)
