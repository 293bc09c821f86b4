"""What all tests share: a fixed state of randomness, and z tests."""

import math
import os

import pytest
import torch
from hypothesis import settings

# a busy machine is no failure, and continuous integration tries the same examples each time
settings.register_profile("here", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("here")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(20181030)


@pytest.fixture
def z_score():
    """How many standard errors the mean of independent `samples` is from `expected`."""

    def z(samples, expected):
        samples = samples.double().flatten()
        error = samples.std(correction=1).item() / math.sqrt(len(samples))
        off = samples.mean().item() - expected
        if error == 0.0:
            return 0.0 if abs(off) < 1e-12 else math.inf
        return off / error

    return z


@pytest.fixture
def saved(monkeypatch):
    """The figures that are saved, in order."""
    import matplotlib.figure  # here, so that the tests of the layer need no more than it does

    figures = []
    savefig = matplotlib.figure.Figure.savefig

    def keep_and_save(figure, *args, **kwargs):
        figures.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep_and_save)
    return figures
