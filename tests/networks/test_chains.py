"""Blocks are what is repeated; stages give way to them."""

from torch import nn

from helpers.small_networks import ChannelsLast, Pyramid, Residual
from torch_dropblock.networks.chains import Chains
from torch_dropblock.networks.probe import probe


def blocks(model, shape=(1, 3, 32, 32)):
    chains = Chains(probe(model, shape, 2))
    return chains.without_strays(chains.blocks())


def unit(inputs, outputs, stride=1):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())


class Doubled(nn.Module):
    """A residual block of two units, themselves a chain."""

    def __init__(self, channels):
        super().__init__()
        self.units = nn.Sequential(unit(channels, channels), unit(channels, channels))

    def forward(self, x):
        return x + self.units(x)


def test_stages_give_way_to_blocks_of_any_stride():
    assert blocks(Pyramid()) == [f"stage{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1)]
    assert blocks(ChannelsLast()) == [f"stage{stage}.{block}" for stage in (1, 2) for block in (0, 1)]


def test_outer_blocks_count():
    model = nn.Sequential(unit(3, 8, 2), Doubled(8), Doubled(8), unit(8, 8, 2), Doubled(8), nn.Conv2d(8, 2, 1))
    assert blocks(model) == ["1", "2", "4"]


def test_plain_sequences_of_the_same_members():
    model = nn.Sequential(unit(3, 8), unit(8, 8), nn.MaxPool2d(2), unit(8, 8), nn.Conv2d(8, 2, 1))
    assert blocks(model) == ["0", "1", "3"]


def test_blocks_of_two_classes_that_take_turns():
    class Other(Residual):
        pass

    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), Residual(8), Other(8), Residual(8), Other(8), nn.Conv2d(8, 2, 1))
    assert blocks(model) == ["1", "2", "3", "4"]


def test_one_block_for_each_stage():
    model = nn.Sequential(Residual(3), Residual(8, inputs=3, stride=2), Residual(8, inputs=8, stride=2))
    model.append(nn.Conv2d(8, 2, 1))
    assert blocks(model) == ["0", "1", "2"]


def test_dense_connections():
    class Layer(nn.Module):
        def __init__(self, inputs):
            super().__init__()
            self.conv = nn.Conv2d(inputs, 4, 3, padding=1)

        def forward(self, maps):
            import torch

            return self.conv(torch.cat(maps, 1))

    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.head = nn.ModuleList(Layer(3 + 4 * i) for i in range(3)), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            maps = [x]
            for layer in self.layers:
                maps.append(layer(maps))
            return self.head(maps[-1])

    assert blocks(Dense()) == ["layers.0", "layers.1", "layers.2"]


def test_nothing_is_repeated():
    assert blocks(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))) == []


def test_strays_and_blocks_of_another_kind_in_a_sequence():
    class Other(Residual):
        pass

    stem = nn.Sequential(Other(3), Other(3), nn.Conv2d(3, 8, 3, 2, 1))
    stage = nn.Sequential(Other(8), Residual(8), Residual(8))
    model = nn.Sequential(stem, stage, Other(8), nn.Conv2d(8, 2, 1))
    chains = Chains(probe(model, (1, 3, 32, 32), 2))
    last = [name for name in chains.blocks() if not name.startswith("0")]
    assert last == ["1.0", "1.1", "1.2", "2"]
    assert chains.without_strays(last) == ["1.0", "1.1", "1.2"]
