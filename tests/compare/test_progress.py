"""What a study says while it runs: `torch_dropblock.compare.progress`."""

import io
import re

import pytest
from rich.console import Console

from torch_dropblock.compare.progress import StudyProgress
from torch_dropblock.compare.rows import Row


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def progress_of_a_study(clock, width=100, terminal=True):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, get_time=clock, color_system=None)
    return StudyProgress(console, quiet=False)


def steps(progress, clock, number, seconds=1.0):
    for _ in range(number):
        clock.now += seconds
        progress.step_done()


def shown(progress):
    with progress.console.capture() as capture:
        progress.console.print(progress.progress)
    return capture.get().strip("\n")


def test_progress_says_what_runs_and_how_long_it_takes(clock):
    progress = progress_of_a_study(clock)
    progress.expect(6, 6, 100)
    progress.run_starts(Row("dropblock"), 1, 0)
    steps(progress, clock, 60)
    line = shown(progress)
    assert line.startswith("1/6 dropblock, seed 1 ")
    assert line.endswith(" 60/600 steps, 0:01:00 so far, 0:09:00 left")


def test_time_left_after_a_resume_counts_the_steps_of_this_command(clock):
    progress = progress_of_a_study(clock)
    progress.expect(6, 2, 100)
    progress.run_starts(Row("dropblock"), 1, 80)
    steps(progress, clock, 20)
    progress.run_ends({"row": "dropblock", "seed": 1, "top1": 0.5, "seconds": 100})
    progress.run_starts(Row("cutout"), 1, 0)
    steps(progress, clock, 10)
    assert shown(progress).endswith("30/120 steps, 0:00:30 so far, 0:01:30 left")
    assert shown(progress).startswith("6/6 cutout, seed 1 ")


def test_runs_of_others_are_not_waited_for(clock):
    progress = progress_of_a_study(clock)
    progress.expect(3, 3, 100)
    progress.run_is_others(Row("baseline"), 0)
    progress.run_starts(Row("cutout"), 0, 0)
    steps(progress, clock, 50)
    assert shown(progress).endswith("50/200 steps, 0:00:50 so far, 0:02:30 left")
    # it had been trained to its end when it was killed
    progress.run_ends({"row": "cutout", "seed": 0, "top1": 0.5, "seconds": 100})
    assert "50/150 steps" in shown(progress)
    progress.run_ends({"row": "dropout", "seed": 0, "top1": 0.5, "seconds": 100})
    assert "50/50 steps" in shown(progress)


def test_long_names_leave_room_for_the_numbers(clock):
    progress = progress_of_a_study(clock, width=80)
    progress.expect(27, 27, 1000)
    progress.run_starts(Row("dropblock:keep_prob=0.95:block_size=3+label-smoothing"), 1, 0)
    steps(progress, clock, 200)
    (line,) = shown(progress).splitlines()
    assert len(line) <= 80
    assert re.match(r"1/27 dropblock\S*…, seed 1 ", line)
    assert line.endswith("200/27000 steps, 0:03:20 so far, 7:26:40 left")


def test_elsewhere_there_is_a_line_for_each_run_alone(clock):
    progress = progress_of_a_study(clock, terminal=False)
    with progress:
        progress.expect(1, 1, 10)
        progress.run_starts(Row("baseline"), 0, 0)
        steps(progress, clock, 10)
        progress.run_ends({"row": "baseline", "seed": 0, "top1": 0.98765, "seconds": 12.3})
    assert progress.console.file.getvalue() == "baseline, seed 0: top-1 98.77 % in 12 s\n"
