"""A second process for the runs of a study."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers import studies
from helpers.studies import results, study
from torch_dropblock.compare import side_by_side
from torch_dropblock.compare.side_by_side import Work, helped, worth_it

# a process that starts another and says which
FIRST = """
import functools, time, types
from torch_dropblock.compare.side_by_side import helped
if __name__ == "__main__":
    with helped(types.SimpleNamespace(run=functools.partial(time.sleep, 600))) as process:
        print(process.pid, flush=True)
        time.sleep(600)
"""


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with studies.one_thread():
        yield


@pytest.mark.sweep
def test_both_make_the_study_that_one_makes(tmp_path):
    wanted = {"epochs": 1, "limit_train": 50}
    work = study(tmp_path / "both", ["cutout"], 2, save_weights=True, measures=["parts"], **wanted)
    shared = Work(work.settings, ["baseline", "cutout"], work.seeds, work.records.path, ["parts"], "cpu", True)
    with helped(shared) as process:
        while not results(work.records.path):  # the first run is the other's
            assert process.is_alive()
            time.sleep(0.02)
        work.run()
        process.join()
    assert process.exitcode == 0
    assert work.unfinished == []
    assert len(list((work.records.path / "weights").iterdir())) == 4
    study(tmp_path / "one", ["cutout"], 2, measures=["parts"], **wanted).run()
    assert results(work.records.path) == results(tmp_path / "one")


def gone(process):
    """A process that has ended may remain as an entry until another one asks for its exit code."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="processes are not files here")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_second_process_ends_with_the_first(tmp_path, number):
    (tmp_path / "first.py").write_text(FIRST)
    command = [sys.executable, tmp_path / "first.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as first:
        second = int(first.stdout.readline())
        first.send_signal(number)
    until = time.monotonic() + 60
    while not gone(second):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_one_that_fails_says_nothing(capfd):
    with helped(SimpleNamespace(run=functools.partial(int, "nonsense"))) as process:
        process.join()
    assert process.exitcode == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("cores", "steps", "worth"), [(2, 1000, True), (1, 1000, False), (2, 999, False)])
def test_it_is_worth_it_on_two_cores_for_a_minute_of_steps(monkeypatch, cores, steps, worth):
    monkeypatch.setattr(side_by_side.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert worth_it(steps) == worth
