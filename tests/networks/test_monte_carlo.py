"""Monte Carlo DropBlock: the layers drop, everything else is in evaluation, and all is as it was afterwards."""

import asyncio
import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from helpers.interrupts import interrupt_at_every_line
from torch_dropblock import DropBlock2d, KeepProbSchedule, dropblock_summary, insert_dropblock, mc_dropblock
from torch_dropblock.networks import modes, sites

# torch's own compiler uses things that torch deprecates
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:torch.*"),
]


def network():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), DropBlock2d(3, keep_prob=0.7), nn.Flatten()
    )
    insert_dropblock(model, "0", block_size=3, keep_prob=0.7)
    return model


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("wrapped", [lambda m: m, nn.Sequential, lambda m: torch.compile(m, backend="eager")])
def test_layers_alone_drop(mode, wrapped):
    inner = network()
    model = wrapped(inner).train(mode)
    inner[2].train(not mode)  # a mode of its own, which must come back
    modes = [module.training for module in inner.modules()]
    statistics = inner[1].running_mean.clone()
    x = torch.randn(4, 3, 16, 16)
    with mc_dropblock(model) as same:
        assert same is model
        assert not any(inner[i].training for i in range(3))
        assert inner[3].training
        outputs = torch.stack([model(x) for _ in range(8)])
    assert [module.training for module in inner.modules()] == modes
    assert torch.equal(inner[1].running_mean, statistics)
    inner.eval()
    assert torch.equal(model(x), model(x))
    assert (outputs[0] != outputs[1]).any()
    # of one layer or the other; the ordinary dropout would have done it to half of the rest
    assert (outputs == 0).float().mean() == pytest.approx(1 - 0.7**2, abs=0.08)


def test_each_kind_of_layer_drops():
    for kept in (0, 3):
        model = network()
        (model[3] if kept == 0 else next(iter(model[0]._forward_hooks.values())).layer).keep_prob = 1.0
        x = torch.randn(2, 3, 16, 16)
        with mc_dropblock(model):
            assert not torch.equal(model(x), model(x))


def test_modes_come_back_after_an_error():
    model = network().train()
    with pytest.raises(KeyError), mc_dropblock(model):
        raise KeyError
    assert all(module.training for module in model.modules())
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(model.eval()(x), model(x))


def test_contexts_nest():
    model = network().eval()
    x = torch.randn(2, 3, 16, 16)
    with mc_dropblock(model):
        with mc_dropblock(model):
            assert not torch.equal(model(x), model(x))
        assert not torch.equal(model(x), model(x))
    assert torch.equal(model(x), model(x))


def drops(model):
    x = torch.ones(2, 3, 16, 16)
    return not torch.equal(model(x), model(x))


@pytest.mark.parametrize("mode", [True, False])
def test_generators_that_overlap(mode):
    def passes(model):
        with mc_dropblock(model):
            while True:
                yield drops(model)

    model = network().train(mode)
    first, second = passes(model), passes(model)
    assert next(first)
    assert next(second)
    first.close()
    assert next(second), "it drops until it has ended itself"
    second.close()
    assert all(module.training is mode for module in model.modules())
    assert not drops(model.eval())


def test_a_generator_that_is_forgotten_gives_back_what_it_took():
    model = network().eval()
    context = mc_dropblock(model)
    context.__enter__()
    del context
    gc.collect()
    assert not drops(model)


def test_tasks_that_overlap():
    async def passes(model, seconds):
        with mc_dropblock(model):
            await asyncio.sleep(seconds)
            return drops(model)

    async def both(model):
        return await asyncio.gather(passes(model, 0.01), passes(model, 0.02))

    model = network().eval()
    assert asyncio.run(both(model)) == [True, True]
    assert not drops(model)


def test_threads_that_overlap():
    model = network().eval()

    def passes(_):
        with torch.no_grad(), mc_dropblock(model):
            return drops(model)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(passes, range(200)))
    assert not drops(model)
    assert not any(module.training for module in model.modules())
    assert not modes._open


def test_a_summary_in_a_context_changes_nothing():
    model = network().eval()
    with mc_dropblock(model):
        model[1].train()
        dropblock_summary(model, (1, 3, 16, 16))
        assert model[1].training
        assert drops(model)
    assert not drops(model)


@pytest.mark.parametrize("mode", [True, False])
def test_an_interrupt_leaves_the_modes_as_they_were(mode):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), DropBlock2d(3)).train(mode)
    insert_dropblock(model, "0")
    layers = [model, *model, sites.hooks_of(model[0])[0].layer]
    model[1].train(not mode)

    def enter():
        with mc_dropblock(model):
            pass

    assert interrupt_at_every_line(enter, lambda: ([layer.training for layer in layers], dict(modes._open))) > 100
    assert not modes._open


def test_predictive_entropy_grows_with_the_share_dropped():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 10)).eval()
    (layer,) = insert_dropblock(model, "1", block_size=5).values()
    x = 10 * torch.randn(16, 3, 16, 16)
    spreads = []
    for layer.keep_prob in (0.99, 0.8, 0.4):
        with torch.no_grad(), mc_dropblock(model):
            probabilities = torch.stack([model(x).softmax(-1) for _ in range(50)])
        mean = probabilities.mean(0)
        entropy = torch.special.entr(mean).sum(-1)
        expected = torch.special.entr(probabilities).sum(-1).mean(0)
        spreads.append((entropy - expected).mean().item())  # the part that comes from the masks
    assert 0 < spreads[0] < spreads[1] < spreads[2]


def test_nothing_to_drop_warns():
    model = network()
    KeepProbSchedule(model, 10)
    with pytest.warns(UserWarning, match="keep_prob of every DropBlock layer is 1"), mc_dropblock(model):
        pass
    assert model.training


def test_errors():
    with pytest.raises(ValueError, match="ReLU has no DropBlock layer"), mc_dropblock(nn.ReLU()):
        pass
    with pytest.raises(TypeError, match="model must be a torch.nn.Module"), mc_dropblock(len):
        pass
    model = nn.SyncBatchNorm.convert_sync_batchnorm(_with_a_site_on_a_norm())
    with pytest.raises(RuntimeError, match="insert after converting"), mc_dropblock(model):
        pass


def _with_a_site_on_a_norm():
    model = network()
    insert_dropblock(model, "1")
    return model


def test_the_warning_points_at_the_caller():
    model = nn.Sequential(DropBlock2d(3, keep_prob=1.0))
    with pytest.warns(UserWarning, match="nothing will be dropped") as caught, mc_dropblock(model):
        pass
    assert caught[0].filename == __file__
