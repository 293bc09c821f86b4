"""Sessions that need an environment of their own: `nox -s oldest`."""

import nox

nox.options.error_on_missing_interpreters = True

OLDEST = ("torch==2.8.0", "torchvision==0.23.0")


@nox.session
def oldest(session: nox.Session) -> None:
    """The tests on the oldest torch that is supported; `--force-python 3.10` for the oldest Python as well."""
    session.install(*OLDEST, "-e", ".[test]")
    session.run("python", "-m", "pytest", *session.posargs)
