"""Layers that are there and drop less than was asked for: inside adapters, and in traces that lost others."""

import warnings

import pytest
import torch
from torch import fx, nn

from torch_dropblock import KeepProbSchedule, dropblock_summary, insert_dropblock, mc_dropblock
from torch_dropblock import remove_dropblock as remove
from torch_dropblock.networks import notices


class LowRank(nn.Module):
    """A module of low rank beside another, whose outputs are added: the way of LoRA and its kin."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.down = nn.Conv2d(base_layer.in_channels, 2, base_layer.kernel_size, bias=False)
        self.up = nn.Conv2d(2, base_layer.out_channels, 1, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))


def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())


def adapted(model):
    model[0], model[2] = LowRank(model[0]), LowRank(model[2])
    return model


def test_an_adapter_is_told_by_schedule_summary_mc_and_removal():
    model = network()
    insert_dropblock(model, ["[02]", "3"], block_size=3)
    schedule = KeepProbSchedule(model, 10)
    schedule.step()
    adapted(model)
    text = r"2 inserted DropBlock layer\(s\) act inside .*0.base_layer in a .*LowRank, 2.base_layer in a .*LowRank"

    def monte_carlo():
        with mc_dropblock(model):
            pass

    for tell in (schedule.step, lambda: KeepProbSchedule(model, 10, start_step=1), monte_carlo):
        with pytest.warns(UserWarning, match=text) as caught:
            tell()
        assert [warning.filename for warning in caught] == [__file__]
    schedule.step()  # once
    (notice,) = [note for note in dropblock_summary(model, (1, 3, 12, 12)).notes if "inside" in note]
    with pytest.warns(UserWarning, match=text):
        assert remove(model) == 3
    assert "remove_dropblock(model), then insert again" in notice
    insert_dropblock(model, ["[02]", "3"], block_size=3, keep_prob=0.5)
    assert not notices.of(model)
    assert (model[0](torch.randn(2, 3, 16, 16)) == 0).float().mean() > 0.2


class Checkpointed(nn.Module):
    def __init__(self, module):
        super().__init__()
        self._checkpoint_wrapped_module = module

    def forward(self, x):
        return self._checkpoint_wrapped_module(x)


@pytest.mark.parametrize(
    "wrap", [lambda m: nn.Sequential(m, nn.ReLU()), Checkpointed, lambda m: nn.Sequential(Checkpointed(m))]
)
def test_what_hands_the_output_on_is_no_adapter(wrap):
    model = network()
    insert_dropblock(model, "[02]", block_size=3)
    model[0] = wrap(model[0])
    assert not notices.of(model)
    model[0] = LowRankOf(model[0])
    assert len(notices.of(model)) == 1


class LowRankOf(nn.Module):
    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer

    def forward(self, x):
        return self.base_layer(x) + 1


class Block(nn.Module):
    """A module that `torch.fx` takes apart, so that a layer after it becomes a member of the trace."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x):
        return x + self.bn(self.conv(x))


def blocks():
    return nn.Sequential(nn.Conv2d(3, 8, 3), Block(), nn.Sequential(Block()))


def test_a_trace_with_all_of_its_layers():
    model = blocks()
    insert_dropblock(model, ["1", "1.bn", "2.0", "2.0.bn"], block_size=3)
    for traced in (model, model[2], nn.Sequential(model), nn.ModuleDict({"net": model})["net"]):
        assert not notices.of(fx.symbolic_trace(traced))


@pytest.mark.parametrize("part", [lambda m: m, lambda m: m[2], nn.Sequential], ids=["whole", "part", "larger"])
def test_a_trace_that_lost_some(part):
    model = blocks()
    insert_dropblock(model, ["1", "1.bn", "2.0", "2.0.bn"], block_size=3)
    traced = fx.symbolic_trace(part(model))
    name = next(name for name, module in traced.named_modules() if name.endswith("0.bn"))
    traced.set_submodule(name, nn.BatchNorm2d(8))
    (notice,) = notices.of(nn.Sequential(traced))
    wanted = 2 if traced.get_submodule(name.rpartition(".")[0]) is traced.get_submodule("0") else 4
    assert f"1 of {wanted} DropBlock layers" in notice
    assert f"torch.fx: {name}." in notice


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning", "ignore:.*reduce_range")
def test_quantisation_of_a_trace_tells_what_it_lost():
    quantization = pytest.importorskip("torch.ao.quantization")
    fx_quantization = pytest.importorskip("torch.ao.quantization.quantize_fx")
    model = blocks()
    insert_dropblock(model, ["1", "1.bn", "2.0", "2.0.bn"], block_size=3)
    configuration = quantization.get_default_qat_qconfig_mapping()
    prepared = fx_quantization.prepare_qat_fx(model, configuration, (torch.randn(1, 3, 12, 12),))
    text = r"2 of 4 DropBlock layers .* missing in a trace of torch.fx: 1\.bn, 2\.0\.bn\."
    with pytest.warns(UserWarning, match=text):
        KeepProbSchedule(prepared, 10)
    assert any("2 of 4 DropBlock layers" in note for note in dropblock_summary(prepared, (1, 3, 12, 12)).notes)
    with pytest.warns(UserWarning, match=text):
        assert remove(prepared) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(insert_dropblock(prepared, ["1.conv", "2.0.conv"], block_size=3)) == ["1.conv", "2.0.conv"]
        KeepProbSchedule(prepared, 10)
