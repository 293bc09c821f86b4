"""Progress display of a study, in a terminal or a log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

if TYPE_CHECKING:
    from .result_lines import Result
    from .rows import Row

# columns for the numbers to the right of the progress bar, and for the narrowest bar
NUMBERS_WIDTH = 52


class StudyProgress:
    """Show the progress of a study: a bar in a terminal, and a line per finished run."""

    def __init__(self, console: Console, quiet: bool) -> None:
        self.console, self.quiet = console, quiet
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("steps,"),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            TextColumn("so far,"),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            TextColumn("left"),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
            speed_estimate_period=300,
            expand=True,
        )
        self.task = self.progress.add_task("starting", total=None)
        self._runs = self._number = self._steps = self._done = 0

    def __enter__(self) -> StudyProgress:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def expect(self, runs: int, unfinished: int, steps: int) -> None:
        """Set the numbers of runs, of unfinished runs, and of steps per run."""
        self._runs, self._number, self._steps = runs, runs - unfinished, steps
        self.progress.update(self.task, total=unfinished * steps)

    def note(self, lines: Sequence[str]) -> None:
        for line in () if self.quiet else lines:
            self.progress.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def run_starts(self, row: Row, seed: int, steps_done: int) -> None:
        self._describe(row, f", seed {seed}")
        self._done = steps_done
        self._leave_out(steps_done)

    def measure_starts(self, row: Row, seed: int, measure: str) -> None:
        self._describe(row, f", seed {seed}: {measure}")

    def step_done(self) -> None:
        self._done += 1
        self.progress.advance(self.task)

    def run_is_others(self, row: Row, seed: int) -> None:
        self._number += 1
        self._leave_out(self._steps)

    def run_ends(self, result: Result) -> None:
        self._number += 1
        self._leave_out(self._steps - self._done)
        self._done = 0
        if not self.quiet:
            name = f"{result['row']}, seed {result['seed']}"
            text = f"{name}: top-1 {100 * result['top1']:.2f} % in {result['seconds']:.0f} s"
            self.progress.console.print(text, highlight=False, soft_wrap=True)

    def _describe(self, row: Row, what: str) -> None:
        number = f"{min(self._number + 1, self._runs)}/{self._runs} "
        name = Text(row.name)
        room = self.progress.console.width - NUMBERS_WIDTH - len(number + what)
        name.truncate(max(10, room), overflow="ellipsis")
        self.progress.update(self.task, description=number + name.plain + what)

    def _leave_out(self, steps: int) -> None:
        """Subtract steps that will not run from the total; counting them as done would distort the estimated time."""
        total = self.progress.tasks[0].total or 0
        self.progress.update(self.task, total=max(0, total - steps))
