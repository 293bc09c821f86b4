"""Interrupt a function at every line, like a signal, and check the state that it leaves."""

import contextlib
import linecache
import sys
from itertools import count

from torch.nn.modules import module
from torch.utils import hooks

from torch_dropblock.backends import choice
from torch_dropblock.networks import modes, monte_carlo, sites, summary

FILES = {source.__file__ for source in (choice, modes, sites, summary, monte_carlo, contextlib, module, hooks)}


class Interrupt(BaseException):
    """Exception that stands for one of a signal handler."""


def _leaves_the_lock(frame):
    """Return True at the end of a block under the lock, where a trace has a line but Python handles no signal."""
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    return line.strip() == "with _lock:" and modes._lock._is_owned()


def interrupt_at_every_line(function, state):
    """Interrupt the function at each line, check that the state is unchanged, and return the number of lines."""
    before = state()
    for moment in count():
        left = moment

        def trace(frame, event, _):
            nonlocal left
            if frame.f_code.co_filename not in FILES:
                return None
            if event == "line" and not _leaves_the_lock(frame):
                left -= 1
                if left < 0:
                    where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                    raise Interrupt(where)
            return trace

        outer = sys.gettrace()
        where = ""
        sys.settrace(trace)
        try:
            function()
        except Interrupt as interrupt:
            where = str(interrupt)
        finally:
            sys.settrace(outer)
        assert state() == before, f"interrupted at {where or 'no line'}"
        assert not modes._lock._is_owned(), "another thread would wait for it for ever"
        if not where:
            return moment
    return None
