"""Open pages, limited in number so that a flood of them cannot exhaust memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .calls import Refused

MOST_SESSIONS = 32
MOST_STREAMS = 2  # per page: a new heartbeat may begin before the old one has ended


class Sessions:
    """Sessions, oldest first; an open page keeps a stream, its heartbeat.

    Args:
        forget: called with a session that has ended, to delete its data.
    """

    def __init__(self, forget: Callable[[str], None]) -> None:
        self._streams: dict[str, int] = {}
        self._forget = forget

    def enter(self, session: str) -> None:
        """Begin a session unless it has begun; at the limit, end the oldest one without an open page.

        Raises:
            Refused: `MOST_SESSIONS` pages are open.
        """
        if session not in self._streams and len(self._streams) >= MOST_SESSIONS:
            without_page = next((name for name, streams in self._streams.items() if not streams), None)
            if without_page is None:
                raise Refused(503, f"{MOST_SESSIONS} pages are open, the maximum; close one and reload this one")
            self._end(without_page)
        self._streams.setdefault(session, 0)

    @contextmanager
    def stream(self, session: str) -> Iterator[None]:
        """Keep a session while its page is open.

        Raises:
            Refused: `MOST_SESSIONS` pages, or `MOST_STREAMS` streams of this page, are open.
        """
        self.enter(session)
        if self._streams[session] >= MOST_STREAMS:
            raise Refused(503, f"a page has at most {MOST_STREAMS} heartbeats")
        self._streams[session] += 1
        try:
            yield
        finally:
            self._streams[session] -= 1
            if not self._streams[session]:
                self._end(session)

    def _end(self, session: str) -> None:
        del self._streams[session]
        self._forget(session)
