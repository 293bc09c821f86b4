from contextlib import ExitStack

import pytest

from torch_dropblock.playground.calls import Refused
from torch_dropblock.playground.sessions import MOST_SESSIONS, MOST_STREAMS, Sessions


@pytest.fixture
def forgotten():
    return []


@pytest.fixture
def sessions(forgotten):
    return Sessions(forgotten.append)


def test_a_session_is_forgotten_when_its_page_is_closed(sessions, forgotten):
    with sessions.stream("a"):
        sessions.enter("a")
        with sessions.stream("a"):
            pass
        assert forgotten == []
    assert forgotten == ["a"]


def test_sessions_without_a_page_end_when_others_come(sessions, forgotten):
    with sessions.stream("page"):
        for number in range(3 * MOST_SESSIONS):
            sessions.enter(str(number))
        assert forgotten == [str(number) for number in range(2 * MOST_SESSIONS + 1)]
        sessions.enter("page")
    assert forgotten[-1] == "page"


def test_no_more_pages_than_there_may_be(sessions, forgotten):
    with ExitStack() as pages:
        for number in range(MOST_SESSIONS):
            pages.enter_context(sessions.stream(str(number)))
        sessions.enter("0")
        for refused in (lambda: sessions.enter("new"), sessions.stream("new").__enter__):
            with pytest.raises(Refused, match=f"{MOST_SESSIONS} pages are open") as error:
                refused()
            assert error.value.status == 503
    assert len(forgotten) == MOST_SESSIONS
    sessions.enter("new")


def test_no_more_streams_of_a_page_than_there_may_be(sessions, forgotten):
    with ExitStack() as streams:
        for _ in range(MOST_STREAMS):
            streams.enter_context(sessions.stream("a"))
        with pytest.raises(Refused, match="heartbeats"):
            streams.enter_context(sessions.stream("a"))
        assert forgotten == []
