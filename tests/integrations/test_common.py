"""What the callbacks share."""

import pytest
import torch
from torch import nn

from torch_dropblock import DropBlock2d, KeepProbSchedule
from torch_dropblock.integrations.common import (
    check_options,
    generators_of,
    hash_of,
    log_lines,
    mask_generators,
    step_to,
)


@pytest.mark.parametrize(
    ("options", "error"),
    [(("cos",), ValueError), ((3,), TypeError), (("linear", 0), ValueError), (("step", 1.5), TypeError)],
)
def test_bad_options(options, error):
    with pytest.raises(error):
        check_options(*options)
    check_options("linear", 10)


def test_lines_and_steps():
    schedule = KeepProbSchedule(nn.Sequential(DropBlock2d(3, keep_prob=0.9)), 10)
    step_to(schedule, 5)
    step_to(schedule, 4)
    assert schedule.steps == 5
    assert log_lines(schedule) == {"dropblock/keep_prob": 0.95, "dropblock/keep_prob/0": 0.95}


def test_generators():
    generators = generators_of(nn.Linear(1, 1))
    assert generators == [torch.default_generator]
    assert mask_generators(generators) == [0]
    assert mask_generators([*generators, torch.Generator(), torch.Generator()]) == [1, 2]  # stands for two devices
    assert 0 <= hash_of(b"1") < 2**63
    assert hash_of(b"1") != hash_of(b"2")
