"""Other noise at the paper's places: where it acts, how much it drops, and that it is scheduled as DropBlock is."""

import pytest
import torch
from torchvision import models

from torch_dropblock import KeepProbSchedule, insert_dropblock_resnet
from torch_dropblock.compare import networks, regularisers
from torch_dropblock.networks import sites

KINDS = ("dropout", "spatial-dropout", "droppath", "dropblock")


def network(kind, keep_prob=0.6, model=None):
    model = networks.build("small", 10, 3, 32) if model is None else model
    regularisers.insert(model, kind, keep_prob, 3, "exact")
    return model


def layers(model):
    return {name: site.layer for name, site in sites.find(model).items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["small", "resnet18", "resnet50"])
def test_it_acts_at_the_papers_places(kind, name):
    """After each convolution and on each shortcut of groups 3 and 4; DropPath where the branch of a block ends."""
    build = (lambda: networks.build(name, 10, 3, 32)) if name == "small" else models.get_model_builder(name)
    with torch.device("meta"):
        for_paper, for_kind = build(), build()
    paper = insert_dropblock_resnet(for_paper)
    found = layers(network(kind, model=for_kind))
    if kind == "droppath":
        last = "bn3" if name == "resnet50" else "bn2"
        assert list(found) == [place for place in paper if place.endswith(last)]
        assert len(found) == {"small": 2, "resnet18": 4, "resnet50": 9}[name]
    else:
        assert list(found) == list(paper)
        assert len(found) == {"small": 6, "resnet18": 12, "resnet50": 36}[name]
    for place, layer in found.items():
        assert layer.target_keep_prob == pytest.approx(0.6 if place.startswith("layer4") else 0.9)


def test_dropblock_is_that_of_insert_dropblock_resnet():
    model = networks.build("small", 10, 3, 32)
    insert_dropblock_resnet(model, keep_prob=0.6, block_size=3)
    assert str(layers(network("dropblock"))) == str(layers(model))
    paper = networks.build("small", 10, 3, 32)
    regularisers.insert(paper, "dropblock", 0.6, 2, "paper")
    assert all(layer.rate == "paper" and layer.block_size == 2 for layer in layers(paper).values())


@pytest.mark.parametrize(
    ("kind", "units"),
    # which sums say whether an independent unit was dropped, of (samples, channels, 8, 8)
    [("dropout", ()), ("spatial-dropout", (2, 3)), ("droppath", (1, 2, 3))],
)
@pytest.mark.parametrize("keep_prob", [0.9, 0.5])
def test_it_drops_the_share_that_is_asked_in_its_own_units(z_score, kind, units, keep_prob):
    layer = layers(network(kind, keep_prob))["layer4.0.bn2"]
    shape = (4000, 2, 4, 4) if kind == "droppath" else (200, 16, 4, 4)
    output = layer.train()(torch.ones(shape))
    kept = (output != 0).double()
    if units:
        assert set(kept.mean(units).unique().tolist()) == {0.0, 1.0}
        kept = kept.mean(units)
    assert abs(z_score(kept, keep_prob)) < 4.5
    torch.testing.assert_close(output[output != 0], torch.full_like(output[output != 0], 1 / keep_prob))


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_scheduled_and_does_nothing_in_evaluation(kind):
    model = network(kind, 0.1)
    images = torch.randn(4, 3, 32, 32)
    schedule = KeepProbSchedule(model, 2)
    assert {layer.keep_prob for layer in layers(model).values()} == {1.0}
    plain = networks.build("small", 10, 3, 32)
    plain.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(model(images), plain(images))
    schedule.step()
    for place, layer in layers(model).items():
        assert layer.keep_prob == pytest.approx(0.55 if place.startswith("layer4") else 1 - 0.225 / 2)
    assert not torch.equal(model(images), model(images))
    plain.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(model.eval()(images), plain.eval()(images))


def test_droppath_leaves_the_shortcut_of_a_sample_whose_branch_goes():
    model = network("droppath", 0.0).train()
    block = model.layer4[0]
    x = torch.randn(5, 64, 8, 8)
    torch.testing.assert_close(block(x), torch.relu(block.downsample(x)))
