"""Modes that overlapping contexts set come back with the last of them, in whatever order they end."""

from itertools import permutations

import pytest
from torch import nn

from torch_dropblock.networks import modes


def held(module, wanted):
    hold = modes.Hold([(module, wanted)])
    hold.take()
    return hold


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_contexts_that_overlap(mode, order):
    module = nn.ReLU().train(mode)
    wants = [True, False, True]
    holds = [held(module, wanted) for wanted in wants]
    open_ = set(order)
    for i in order:
        assert module.training or not any(wants[j] for j in open_), "a context that drops goes on dropping"
        holds[i].give_back()
        open_.remove(i)
    assert module.training is mode
    assert not modes._open


def test_contexts_that_nest_give_back_what_they_found():
    module = nn.ReLU()
    outer = held(module, False)
    module.train()
    held(module, False).give_back()
    assert module.training
    outer.give_back()
    assert module.training


def test_giving_back_again_does_no_harm():
    module = nn.ReLU()
    hold = held(module, False)
    hold.give_back()
    module.eval()
    hold.give_back()
    assert not module.training


def test_two_modules_that_share_a_mode():
    """As a compiled module and its own do."""

    class Alias(nn.Module):
        def __init__(self, other):
            super().__init__()
            object.__setattr__(self, "other", other)

        @property
        def training(self):
            return self.other.training

        @training.setter
        def training(self, value):
            if hasattr(self, "other"):
                self.other.training = value

    module = nn.ReLU()
    for pair in ((Alias(module), module), (module, Alias(module))):
        hold = modes.Hold([(part, False) for part in pair])
        hold.take()
        assert not module.training
        hold.give_back()
        assert module.training
