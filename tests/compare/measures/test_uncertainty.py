"""Averages of passes, and whether their entropy tells errors and other images."""

import math

import pytest
import torch
from torch import nn

from helpers.measured import Known, constant, images, perfect, trained
from torch_dropblock import DropBlock2d
from torch_dropblock.compare.measures.trained import Trained
from torch_dropblock.compare.measures.uncertainty import PASSES, aurc, auroc, entropy, measure


def test_a_network_that_is_perfect_and_knows_no_other_images():
    def certain(pixels):
        foreign = pixels[:, 0, 0, 0] == 99
        return torch.where(foreign[:, None], 0.0, perfect(pixels))

    result = measure(trained(certain))
    assert (result["passes"], result["top1"], result["aurc"], result["others"]) == (1, 1, 0, "grey")
    assert result["auroc_others"] == 1
    assert math.isnan(result["auroc_errors"])  # it makes none


def test_a_constant_network_tells_nothing():
    result = measure(trained(constant(2.0, 0.0, 0.0, 0.0)))
    assert (result["top1"], result["auroc_errors"], result["auroc_others"]) == (0.25, 0.5, 0.5)


class Noisy(Known):
    """Its logits of class 0 are what a layer leaves of ones: with it on, it drops half of them."""

    def __init__(self):
        super().__init__(None)
        self.network.drop = DropBlock2d(1, keep_prob=0.5)

    def forward(self, pixels):
        self.network.avgpool(pixels[:, :1].float())
        kept = self.network.drop(torch.ones(len(pixels), 1, 2, 2)).flatten(1)
        return nn.functional.pad(kept[:, :1], (0, 3))


def test_noise_is_on_in_all_passes_and_follows_from_the_seed():
    model = Noisy().eval()
    state = torch.get_rng_state()
    results = [measure(Trained(model, images(), drops=True, seed=seed)) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert results[0] == results[1] != results[2]
    assert results[0]["passes"] == PASSES
    assert not model.network.drop.training
    still = measure(Trained(model, images(), drops=False))
    assert still["ece"] != pytest.approx(results[0]["ece"], abs=1e-4)


def test_a_network_that_diverged_is_as_uncertain_as_can_be():
    class Diverged(Noisy):
        def forward(self, pixels):
            return super().forward(pixels) * math.nan

    result = measure(Trained(Diverged().eval(), images(), drops=True))
    assert (result["top1"], result["auroc_errors"], result["auroc_others"]) == (0.25, 0.5, 0.5)


def test_entropy_is_a_share_of_the_highest():
    assert entropy(torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]])).tolist() == pytest.approx([1, 0, 0.5])


def test_areas():
    low, high = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.25, 0.9])
    assert auroc(high, low) == pytest.approx(5 / 6)
    assert math.isnan(auroc(high, low[:0]))
    wrong = torch.tensor([False, True, False, True])
    assert aurc(torch.tensor([0.1, 0.4, 0.2, 0.3]), wrong) == pytest.approx((0 + 0 + 1 / 3 + 2 / 4) / 4)
    assert aurc(torch.tensor([0.4, 0.1, 0.3, 0.2]), wrong) == pytest.approx((1 + 1 + 2 / 3 + 2 / 4) / 4)
