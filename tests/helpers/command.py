"""Calls of the command, for the tests of its parts."""

import io
import itertools
import re
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest
from matplotlib.text import Text

from torch_dropblock.__main__ import main


def call(*arguments, columns=80):
    """Run the command; return its exit code, its output and its errors."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["torch-dropblock", *map(str, arguments)])
        patch.setenv("MPLBACKEND", "agg")  # restored at the end, in case the command sets it
        patch.setenv("COLUMNS", str(columns))  # otherwise the width of the terminal of the tests
        with pytest.raises(SystemExit) as exit:
            main()
    # typer colours its help in continuous integration, even in a pipe
    printed, complained = (re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()) for stream in (out, err))
    return exit.value.code, printed, complained


def succeed(*arguments, columns=80):
    code, out, err = call(*arguments, columns=columns)
    assert (code, err) == (0, "")
    return out


def complaint(*arguments):
    """Return the one-line error of the command, without `error: `."""
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: .+\n", err)
    return err.removeprefix("error: ").rstrip("\n")


def table_rows(out):
    """Return the cells of the rows below the rule of a table."""
    lines = iter(line.strip() for line in out.splitlines())
    next(line for line in lines if set(line) == {"─"})
    return [re.split(r"\s{2,}", line) for line in itertools.takewhile(bool, lines)]


def check_texts(figure):
    """Check that every text lies on the page and none covers another."""
    hidden = {text for axes in figure.axes for text in _not_drawn(axes)}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text() and text not in hidden]
    boxes = [text.get_window_extent() for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        assert min(box.x0, box.y0) >= 0, f"{text.get_text()!r} is cut off"
        assert box.x1 <= figure.bbox.x1, f"{text.get_text()!r} is cut off"
        assert box.y1 <= figure.bbox.y1, f"{text.get_text()!r} is cut off"
    for (one, a), (other, b) in itertools.combinations(zip(texts, boxes, strict=True), 2):
        assert not a.overlaps(b), f"{one.get_text()!r} covers {other.get_text()!r}"


def _not_drawn(axes):
    """Return the texts of invisible axes, and of ticks outside the view."""
    if not axes.get_visible():
        return axes.findobj(Text)
    texts = []
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not low <= tick.get_loc() <= high:
                texts += [tick.label1, tick.label2]
    return texts
