"""The files that report a study, made from its results alone."""

from __future__ import annotations

from collections.abc import Sequence

from . import measure_report, report
from .result_lines import Result
from .settings import Settings


def files_of(
    settings: Settings, results: Sequence[Result], order: Sequence[str], train: int, val: int
) -> dict[str, str | bytes]:
    """Return the table in Markdown and the plots of some results, by file name.

    Args:
        settings: settings of the study.
        results: its finished runs.
        order: names of the rows.
        train: number of images to train on.
        val: number of images to validate on.
    """
    title = report.title_of(settings)
    tables = [report.markdown(report.lines_of(results, order), report.about(settings, train, val, results))]
    tables += map(str, measure_report.tables(results, order))
    return {
        "table.md": "\n".join(tables),
        **report.draw(results, order, title),
        **measure_report.draw(results, order, title),
    }
