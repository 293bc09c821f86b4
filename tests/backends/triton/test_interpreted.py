"""Every test of this folder that needs no GPU, in Triton's interpreter: a process of its own, since it is for all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.gpu_path import INTERPRETED


@pytest.mark.skipif(INTERPRETED, reason="this is the process in which the others run")
@pytest.mark.parametrize("kind", ["not sweep", pytest.param("sweep", marks=pytest.mark.sweep)])
def test_in_the_interpreter(kind):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", f"not gpu and {kind}", "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [*command, Path(__file__).parent], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
