"""`mc_predict`: known answers, keys, and what it refuses."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from torch_dropblock import DropBlock2d, drop_block2d, insert_dropblock, mc_predict
from torch_dropblock.core.keys import word
from torch_dropblock.networks import prediction

# torch's own compiler uses things that torch deprecates
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:torch.*"),
]
X = torch.arange(1.0, 5.0)[:, None, None, None].expand(4, 3, 6, 6).contiguous()


class Given(nn.Module):
    """Return given logits, one item per call, and drop something that they do not depend on."""

    def __init__(self, *logits):
        super().__init__()
        self.drop, self.left = DropBlock2d(1, keep_prob=0.5), list(logits)

    def forward(self, x):
        self.drop(torch.ones(1, 1, 2, 2))
        return self.left.pop(0)


class Two(nn.Module):
    """Two layers that drop, and the mean of each channel of what is left."""

    def __init__(self):
        super().__init__()
        self.first, self.second = DropBlock2d(3, keep_prob=0.6), DropBlock2d(2, keep_prob=0.8)

    def forward(self, x):
        return self.second(self.first(x) + 1).mean((2, 3))


def by_hand(x, key, group):
    first = drop_block2d(x, 3, keep_prob=0.6, key=word(key, group, 0))
    return drop_block2d(first + 1, 2, keep_prob=0.8, key=word(key, group, 1)).mean((2, 3)).softmax(1)


def entropy(probabilities):
    return -(probabilities * probabilities.log()).sum(1)


def test_known_answers(monkeypatch):
    monkeypatch.setattr(prediction, "ELEMENTS", 1)  # one pass a call
    odds = torch.tensor([[math.log(3.0), 0.0]])
    mean, predictive, information = mc_predict(Given(odds, -odds), torch.ones(1), 2)
    assert mean.tolist() == [pytest.approx([0.5, 0.5])]
    assert predictive.item() == pytest.approx(math.log(2))
    assert information.item() == pytest.approx(math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    agreed = mc_predict(Given(odds, odds), torch.ones(1), 2)
    assert agreed.predictive_entropy.item() == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert agreed.mutual_information.item() == pytest.approx(0.0, abs=1e-7)
    sure = mc_predict(Given(odds * 1000, -odds * 1000), torch.ones(1), 2)  # a probability of 0 is no NaN
    assert sure.mutual_information.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(("elements", "groups"), [(prediction.ELEMENTS, [5]), (2 * X.numel(), [2, 2, 1]), (1, [1] * 5)])
def test_layers_get_keys_in_the_order_of_their_calls(monkeypatch, elements, groups):
    monkeypatch.setattr(prediction, "ELEMENTS", elements)
    state = torch.get_rng_state()
    found = mc_predict(Two(), X, 5, key=9)
    assert torch.equal(torch.get_rng_state(), state)
    runs = [by_hand(torch.cat([X] * count), 9, group).view(count, 4, 3) for group, count in enumerate(groups)]
    passes = torch.cat(runs)
    torch.testing.assert_close(found.mean_probability, passes.mean(0))
    torch.testing.assert_close(found.predictive_entropy, entropy(passes.mean(0)))
    expected = entropy(passes.mean(0)) - torch.stack([entropy(each) for each in passes]).mean(0)
    torch.testing.assert_close(found.mutual_information, expected, atol=1e-6, rtol=1e-4)


def test_a_key_determines_it_and_without_one_pytorchs_generator_does():
    model, key = Two(), -5
    first, other = mc_predict(model, X, key=key), mc_predict(model, X, key=6)
    assert torch.equal(first.mean_probability, mc_predict(model, X, key=torch.tensor(key)).mean_probability)
    assert torch.equal(first.mean_probability, mc_predict(model, X, key=key + 2**64).mean_probability)
    assert not torch.equal(first.mean_probability, other.mean_probability)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(mc_predict(model, X).mean_probability)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_modes_gradients_and_batch_norms_stay_as_they_were():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    insert_dropblock(model, "1", block_size=3, keep_prob=0.5)
    mean, *_ = mc_predict(model, X.to(memory_format=torch.channels_last).requires_grad_(), key=1)
    assert not mean.requires_grad
    assert model.training
    assert model[1].num_batches_tracked == 0
    torch.testing.assert_close(mean, mc_predict(model.eval(), X, key=1).mean_probability)


def test_a_segmentation_has_an_entropy_for_each_place():
    found = mc_predict(nn.Sequential(nn.Conv2d(3, 7, 1), DropBlock2d(3)), X.half().float(), 3, key=2)
    assert [tuple(part.shape) for part in found] == [(4, 7, 6, 6), (4, 6, 6), (4, 6, 6)]
    assert mc_predict(Two().double(), X.double(), key=1).mean_probability.dtype == torch.float64
    assert mc_predict(Two(), X.bfloat16(), key=1).mean_probability.dtype == torch.float32


@pytest.mark.parametrize("compiled", [torch.compile, lambda model: model.compile(backend="eager") or model])
def test_compiled_parts_run_eagerly_with_the_same_keys(compiled):
    model = Two()
    expected = mc_predict(model, X, key=4)
    fast = torch.compile(model, backend="eager") if compiled is torch.compile else compiled(model)
    fast(X)
    state = torch.get_rng_state()
    assert torch.equal(mc_predict(fast, X, key=4).mean_probability, expected.mean_probability)
    assert torch.equal(torch.get_rng_state(), state)
    counts = []
    torch._dynamo.reset()
    torch.compile(model.first, backend=lambda graph, _: counts.append(1) or graph.forward)(X)
    assert counts  # compilation is on again


def test_threads_have_keys_of_their_own():
    models = [Two() for _ in range(8)]
    expected = [mc_predict(model, X, key=key).mean_probability for key, model in enumerate(models)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda key: mc_predict(models[key], X, key=key).mean_probability, range(8)))
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"passes": 0}, ValueError, "passes must be"),
        ({"passes": 2.5}, TypeError, "passes must be"),
        ({"key": 0.5}, TypeError, "key must be"),
        ({"input": [1.0]}, TypeError, "input must be a tensor of shape \\(N, ...\\), got list"),
        ({"input": torch.ones(())}, ValueError, "with N at least 1, got shape \\(\\)"),
        ({"input": torch.ones(0, 3, 4, 4)}, ValueError, "got shape \\(0, 3, 4, 4\\)"),
        ({"model": nn.ReLU()}, ValueError, "ReLU has no DropBlock layer"),
        ({"model": len}, TypeError, "model must be a torch.nn.Module"),
        ({"model": nn.DataParallel(Two())}, ValueError, "model must not be an nn.DataParallel"),
        ({"model": Given((1, 2))}, TypeError, "got a tuple; wrap it"),
        ({"model": Given(torch.ones(20, 2, dtype=torch.int64))}, TypeError, "dtype torch.int64"),
        ({"model": Given(torch.ones(7, 2))}, ValueError, "got shape \\(7, 2\\) for 80 samples"),
        ({"model": Given(torch.ones(80))}, ValueError, "got shape \\(80,\\)"),
    ],
)
def test_what_it_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        mc_predict(**({"model": Two(), "input": X} | arguments))


def test_passes_of_layers_that_share_a_mask_over_the_batch_run_one_by_one():
    """In one batch all passes would agree."""
    layer = DropBlock2d(3, keep_prob=0.6, share_batch=True)
    mean, _, information = mc_predict(nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(2)), X, passes=6, key=5)
    assert (information > 0).all()
    model = nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    mean = mc_predict(model, X, passes=3, key=5).mean_probability
    by_hand = [drop_block2d(X, 3, keep_prob=0.6, share_batch=True, key=word(5, group, 0)) for group in range(3)]
    torch.testing.assert_close(mean, torch.stack([y.mean((2, 3)).softmax(1) for y in by_hand]).mean(0))
