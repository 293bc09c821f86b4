"""The share of the class activation map."""

import pytest

from helpers.measured import perfect, trained
from torch_dropblock.compare.measures.parts import measure


def test_plain_maps_are_all_above_half_or_none():
    subject = trained(perfect)
    weight = subject.model.network.fc.weight
    weight.data.fill_(1.0)
    assert measure(subject) == {"share": 1.0}
    subject = trained(perfect)
    subject.model.network.fc.weight.data[:] = weight.new_tensor([[1.0], [-1.0], [-1.0], [1.0]])
    assert measure(subject) == {"share": pytest.approx(0.5)}  # of the predicted class
