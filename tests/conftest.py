"""Fixtures for all tests: a fixed random seed, z tests, and saved figures."""

import math
import os

import pytest
import torch
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each of the processes that share the cores, and for their own
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

# deadline: a busy machine is no failure. derandomize: continuous integration runs the same examples each time.
settings.register_profile("here", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("here")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(20181030)


@pytest.fixture
def z_score():
    """Distance of the mean of independent `samples` from `expected`, in standard errors."""

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
    """Figures that were saved, in order."""
    import matplotlib.figure  # here, so that the tests of the layer do not need matplotlib

    figures = []
    savefig = matplotlib.figure.Figure.savefig

    def keep_and_save(figure, *args, **kwargs):
        figures.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep_and_save)
    return figures
