"""Run the tests with older versions of Python and torch: `nox`, or `nox -s oldest`; `.ci/run` has the newest."""

import nox

nox.options.error_on_missing_interpreters = True

OLDEST = ("torch==2.8.0", "torchvision==0.23.0")
# compiled code had gradients of 0 with this torch; numpy 2.4 breaks the interpreter of this torch's Triton
BETWEEN = ("torch==2.11.0", "torchvision==0.26.0", "numpy<2.4")


@nox.session(python="3.10")
def oldest(session: nox.Session) -> None:
    """Run the tests on the oldest supported Python and torch."""
    session.install(*OLDEST, "-e", ".[test]")
    session.run("python", "-m", "pytest", "-n", "auto", "--dist", "worksteal", "-m", "", *session.posargs)


@nox.session
def between(session: nox.Session) -> None:
    """Run the tests on a torch between the two, and this Python."""
    session.install(*BETWEEN, "-e", ".[test]")
    session.run("python", "-m", "pytest", "-n", "auto", "--dist", "worksteal", "-m", "", *session.posargs)
