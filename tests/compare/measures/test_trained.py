"""What measures share: logits, accuracy and class activation maps."""

import math

import pytest
import torch
from torch import nn

from helpers.measured import constant, images, perfect, trained
from torch_dropblock.compare import networks
from torch_dropblock.compare.measures import trained as module
from torch_dropblock.compare.measures.choice import MEASURES
from torch_dropblock.compare.measures.trained import Trained, spread


def test_batches_make_no_difference(monkeypatch):
    whole = trained(perfect)
    assert whole.accuracy(whole.images.val) == 1.0
    monkeypatch.setattr(module, "BATCH_PIXELS", 7 * 8**2)
    parts = Trained(whole.model, images())
    assert [len(batch) for batch in parts.batches(parts.images.val)] == [7] * 5 + [5]
    assert torch.equal(parts.clean, whole.clean)
    assert torch.equal(parts.spreads, whole.spreads)


def test_validation_images_go_through_the_network_once():
    seen = []

    def logits(pixels):
        seen.append(len(pixels))
        return perfect(pixels)

    subject = trained(logits)
    for name in ("calibration", "parts"):
        MEASURES[name](subject)
    assert subject.share_right(subject.clean) == 1.0
    assert seen == [40]


def test_a_network_that_diverged_has_equal_logits():
    subject = trained(constant(math.nan, math.inf, -math.inf, 0.0))
    assert subject.clean.unique().tolist() == [0.0]
    assert all(measure(subject) for measure in MEASURES.values())


@pytest.mark.parametrize("name", ["small", "resnet18"])
def test_maps_are_those_that_the_logits_are_means_of(name, monkeypatch):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = networks.build(name, 4, 3, 32)

        def forward(self, pixels):
            return self.network(pixels.float() / 255)

    seen = []
    monkeypatch.setattr(module, "spread", lambda maps, weights: seen.append((maps, weights)) or spread(maps, weights))
    model = Model().eval()
    subject = Trained(model, images(6, side=32))
    best = subject.clean.max(1)
    ((maps, weights),) = seen
    means = (maps.mean((2, 3)) * weights).sum(1) + model.network.fc.bias[best.indices]
    assert torch.allclose(means, best.values, atol=1e-4)
    assert not model.network.avgpool._forward_pre_hooks


def test_the_share_above_half_of_the_maximum():
    maps = torch.tensor([[[[4.0, 3.0], [2.0, 0.0]]], [[[-1.0, -2.0], [-3.0, 0.0]]]])
    assert spread(maps, torch.ones(2, 1)).tolist() == [0.5, 0.0]
    assert spread(maps, torch.tensor([[-1.0], [-1.0]])).tolist() == [0.0, 0.5]
