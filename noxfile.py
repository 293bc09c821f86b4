"""Check a change in fresh environments: all of them with `nox`, or one with `nox -s oldest`."""

import nox

nox.options.error_on_missing_interpreters = True

OLDEST = ("torch==2.8.0", "torchvision==0.23.0")
# compiled code had gradients of 0 with this torch; numpy 2.4 breaks the interpreter of this torch's Triton
BETWEEN = ("torch==2.11.0", "torchvision==0.26.0", "numpy<2.4")


@nox.session
def lint(session: nox.Session) -> None:
    """Run ruff, and mypy in its strict mode."""
    session.install("-e", ".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session(python="3.10")
def oldest(session: nox.Session) -> None:
    """Run the tests on the oldest supported Python and torch."""
    session.install(*OLDEST, "-e", ".[test]")
    session.run("python", "-m", "pytest", "-n", "auto", "--dist", "loadfile", *session.posargs)


@nox.session
def between(session: nox.Session) -> None:
    """Run the tests on a torch between the two, and this Python."""
    session.install(*BETWEEN, "-e", ".[test]")
    session.run("python", "-m", "pytest", "-n", "auto", "--dist", "loadfile", *session.posargs)


@nox.session
def newest(session: nox.Session) -> None:
    """Run the tests on the newest torch, and this Python."""
    session.install("--upgrade", "--upgrade-strategy", "eager", "-e", ".[test]")
    session.run("python", "-m", "pytest", "-n", "auto", "--dist", "loadfile", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation strictly, and test it in a browser if one is installed; needs Python 3.11 or later."""
    session.install("-e", ".[docs,test]")
    session.run("python", "website/build.py")
    session.run("python", "-m", "pytest", "tests/repository/test_website.py", "tests/repository/test_examples.py")
