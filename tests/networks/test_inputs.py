"""Inputs from shapes, and larger ones."""

import pytest
import torch
from torch import nn

from torch_dropblock.networks.inputs import Inputs

MODEL = nn.Conv2d(3, 4, 3, dtype=torch.float64)


def shapes(inputs):
    return [tuple(x.shape) for x in inputs.tensors]


@pytest.mark.parametrize(
    ("input_size", "args", "kwargs"),
    [
        ((1, 3, 8, 8), 1, set()),
        ([(1, 3, 8, 8), (1, 5)], 2, set()),
        ({"pixels": (1, 3, 8, 8), "mask": (1, 8, 8)}, 0, {"pixels", "mask"}),
        ([[(3, 8, 8), (3, 6, 8)]], 1, set()),
        ([{"image": (1, 3, 8, 8)}], 1, set()),
        (torch.zeros(2, 3, 8, 8), 1, set()),
    ],
)
def test_forms(input_size, args, kwargs):
    inputs = Inputs.of(MODEL, input_size)
    assert (len(inputs.args), inputs.kwargs.keys()) == (args, kwargs)
    assert not isinstance(inputs.args[:1], list)
    if not isinstance(input_size, torch.Tensor):
        assert all(x.dtype == torch.float64 for x in inputs.tensors)


def test_larger():
    inputs = Inputs.of(MODEL, [(2, 3, 8, 6), torch.zeros(2, 5), torch.zeros(2, 8, 6)])
    assert (inputs.batch(2), inputs.image(2)) == (2, (8, 6))
    assert shapes(inputs.with_batch_doubled(2)) == [(4, 3, 8, 6), (4, 5), (4, 8, 6)]
    assert shapes(inputs.with_side_doubled(2, 0)) == [(2, 3, 16, 6), (2, 5), (2, 16, 6)]
    assert shapes(inputs.with_side_doubled(2, 1)) == [(2, 3, 8, 12), (2, 5), (2, 8, 12)]
    last = Inputs.of(MODEL, (2, 8, 6, 3)).with_side_doubled(2, 1, channels_last=True)
    assert shapes(last) == [(2, 8, 12, 3)]


def test_list_of_images():
    inputs = Inputs.of(MODEL, [[(3, 8, 6), (3, 8, 6)]])
    assert inputs.batch(2) == 2
    assert [len(arg) for arg in inputs.with_batch_doubled(2).args] == [4]
    assert shapes(inputs.with_side_doubled(2, 1)) == [(3, 8, 12)] * 2


@pytest.mark.parametrize("input_size", [(), "big", 5, None, {}, [None]])
def test_what_is_no_size(input_size):
    with pytest.raises(TypeError, match="input_size must be the shape of an input, such as"):
        Inputs.of(MODEL, input_size)


def test_size_that_is_not_positive():
    with pytest.raises(ValueError, match="input_size must be a positive int or a sequence"):
        Inputs.of(MODEL, (1, 3, 0, 8))
