"""Which modules return maps, in which layout."""

import pytest
import torch
from torch import nn

from helpers.small_networks import ChannelsLast, Pyramid, Transformer
from torch_dropblock.networks.probe import probe


def of(model, shape=(1, 3, 32, 32), dims=2):
    return probe(model, shape, dims)


@pytest.mark.parametrize(("dims", "shape"), [(1, (2, 3, 64)), (2, (1, 3, 32, 64)), (3, (1, 3, 16, 32, 32))])
def test_channels_first(dims, shape):
    found = of(Pyramid(dims), shape, dims)
    assert not found.fixed
    assert found.maps["stage3.1"][:2] == ("channels_first", tuple(side // 8 for side in shape[2:]))
    assert "head" not in found.maps


def test_channels_last_and_tokens():
    found = of(ChannelsLast())
    assert found.maps["stage1"][:2] == ("channels_last", (8, 8))
    assert found.maps["stage2.1.linear"][:2] == ("channels_last", (4, 4))
    found = of(Transformer())
    assert found.maps["blocks.2"][:2] == ("tokens", (8, 8))
    assert of(Transformer(), (1, 3, 16, 64)).maps["blocks.2"][:2] == ((4, 16), (4, 16))


@pytest.mark.parametrize("image", [(32, 32), (32, 64)])
def test_one_size_alone(image):
    found = of(Transformer(fixed=image[1]), (1, 3, *image))
    grid = (image[0] // 4, image[1] // 4)
    assert found.fixed
    assert found.maps["blocks.2"].size == found.maps["embed"].size == grid
    assert found.maps["embed"].layout == "channels_first"


def test_scrambled_tokens_are_none():
    found = of(Transformer(scrambled=True))
    assert found.scrambled
    assert all(site.layout == "channels_first" for site in found.maps.values())
    ordered = of(Transformer(scrambled=True).to("meta"))
    assert not ordered.scrambled, "a model without values cannot be looked at"


def test_points_and_windows_are_none():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.inner, self.pool = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 4), nn.AdaptiveAvgPool2d(1)

        def forward(self, x):
            x = self.conv(x)
            windows = x.unflatten(3, (-1, 4)).unflatten(2, (-1, 4)).permute(0, 2, 4, 3, 5, 1).flatten(0, 1)
            return self.inner(windows).sum() + self.pool(x).sum()

    assert of(Windows()).maps.keys() == {"conv"}


def test_shared_module_with_maps_of_several_sizes_is_none():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x)[..., ::2, ::2])

    assert of(Shared()).maps.keys() == {""}, "the model itself returns one size"


def test_model_that_needs_values_runs_for_real():
    class Needs(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Pyramid()

        def forward(self, x):
            if x.sum().item() > 1:
                raise ValueError("no zeros")
            return self.net(x)

    assert of(Needs()).maps["net.stage3.1"].size == (4, 4)


def test_several_inputs_keywords_and_tensors():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.embed = Pyramid(), nn.Embedding(5, 3)

        def forward(self, image, *, word):
            return self.net(image + self.embed(word)[:, :, None, None])

    sizes = {"image": (2, 3, 32, 32), "word": torch.ones(2, dtype=torch.int64)}
    assert of(Two(), sizes).maps["net.stage3"].size == (4, 4)


def test_refusals():
    with pytest.raises(ValueError, match=r"does not run on an input of shape \(1, 5, 32, 32\) \(batch first\): Given"):
        of(Pyramid(), (1, 5, 32, 32))
    with pytest.raises(ValueError, match="with 2 spatial dimensions, as dims=2 says, got"):
        of(Pyramid(), (5,))
