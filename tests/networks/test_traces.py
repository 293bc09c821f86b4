"""A trace has every call, and the model is not touched."""

import pickle
import random

import pytest
import torch
from torch import nn

from helpers.small_networks import Pyramid, Residual, Transformer
from torch_dropblock.networks.inputs import Inputs
from torch_dropblock.networks.traces import Copy


def inputs(model, *shape):
    return Inputs.of(model, shape)


def test_calls_flow_and_attention():
    model = Transformer()
    trace = Copy(model, on_meta=True).run(inputs(model, 1, 3, 16, 16))
    assert trace.calls["blocks.0"][0].output.shape == (1, 17, 8)
    assert trace.calls["blocks.1"][0].inputs[0].id == trace.calls["blocks.0"][0].output.id
    assert trace.attends == {"blocks.0", "blocks.1", "blocks.2"}
    assert trace.read == {"embed", *(f"blocks.{i}.{part}" for i in range(3) for part in ("norm", "all"))}
    assert trace.returned == {trace.calls["head"][0].output.id}
    assert not trace.stopped


@pytest.mark.parametrize("on_meta", [True, False])
def test_model_stays_as_it_is(on_meta):
    model = Pyramid().train()
    model.stage2.eval()
    model.stem.weight.requires_grad_(False)
    seen = []
    model.stage1.register_forward_hook(lambda *_: seen.append(1))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    hooks = pickle.dumps([len(module._forward_hooks) for module in model.modules()])
    random_states = torch.get_rng_state(), random.getstate()
    with torch.random.fork_rng():
        Copy(model, on_meta=on_meta).run(inputs(model, 2, 3, 16, 16))
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert hooks == pickle.dumps([len(module._forward_hooks) for module in model.modules()])
    assert not model.stem.weight.requires_grad
    assert torch.equal(random_states[0], torch.get_rng_state())
    assert random_states[1] == random.getstate()
    assert not seen, "a function could write anywhere"


class Draws(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x):
        self.runs += 1
        random.random()
        return self.conv(x + torch.rand_like(x))


@pytest.mark.parametrize("on_meta", [True, False])
def test_randomness_and_buffers_of_a_forward(on_meta):
    model = Draws()
    states = torch.get_rng_state(), random.getstate()
    Copy(model, on_meta=on_meta).run(inputs(model, 1, 3, 8, 8))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert model.runs == 0


class Detector(nn.Module):
    def __init__(self, after=1):
        super().__init__()
        self.blocks = nn.Sequential(*(Residual(3) for _ in range(4)))
        self.late = nn.Sequential(*(Residual(3) for _ in range(after)))

    def forward(self, x):
        x = self.blocks(x)
        return self.late(x[x.sum((1, 2, 3)) > 0])


def test_trace_up_to_where_values_are_needed():
    model = Detector()
    trace = Copy(model, on_meta=True).run(inputs(model, 1, 3, 8, 8), partly=True)
    assert trace.stopped
    assert "blocks.3" in trace.calls
    assert "late.0" not in trace.calls
    with pytest.raises(Exception, match="meta"):
        Copy(model, on_meta=True).run(inputs(model, 1, 3, 8, 8))
    with pytest.raises(Exception, match="meta"):  # too early
        Copy(Detector(after=4), on_meta=True).run(inputs(model, 1, 3, 8, 8), partly=True)


def test_model_that_cannot_be_copied():
    model = nn.Conv2d(3, 4, 3)
    model.lock = __import__("threading").Lock()
    with pytest.raises(ValueError, match=r"copy\.deepcopy can copy"):
        Copy(model, on_meta=True)
