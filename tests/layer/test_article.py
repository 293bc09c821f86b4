"""What the article does with its layer, done with ours, on the photograph that matplotlib carries."""

import matplotlib.cbook
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from torch_dropblock import DropBlock

transforms = pytest.importorskip("torchvision.transforms", reason="the article resizes with torchvision")
resnet18 = pytest.importorskip("torchvision.models", reason="the article looks into a ResNet-18").resnet18


@pytest.fixture(scope="module")
def photograph():
    resize = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor()])
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        return resize(Image.open(file))


def test_blocks_of_the_photograph_are_dropped(photograph):
    drop_block = DropBlock(block_size=19, p=0.8)
    dropped = drop_block(photograph)
    assert dropped.shape == (3, 224, 224)
    assert 0.1 < (dropped == 0).float().mean() < 0.3
    left, right = Figure().subplots(1, 2)
    left.imshow(photograph.permute(1, 2, 0).numpy())
    shown = right.imshow(dropped[0, :, :].squeeze().numpy())
    assert (shown.get_array() == 0).any()


def test_feature_maps_of_a_network(photograph):
    network = resnet18(weights=None).eval()
    with torch.no_grad():
        x = network.maxpool(network.relu(network.bn1(network.conv1(photograph.unsqueeze(0)))))
        features = network.layer2(network.layer1(x))
    assert features.shape == (1, 128, 28, 28)
    plain = nn.ReLU()(features)
    dropped = nn.Sequential(DropBlock(block_size=7, p=0.5), nn.ReLU())(features)
    kept = dropped != 0
    scale = (dropped[kept] / plain[kept]).unique()
    assert scale.max() - scale.min() < 1e-5
    assert scale.mean() > 1.3
    assert (plain != 0).float().mean() > kept.float().mean()


def test_gamma_of_the_articles_example():
    assert DropBlock(block_size=2).calculate_gamma(torch.ones(1, 8, 16, 16)) == 0.14222222222222222


def test_block_1_is_dropout_and_the_whole_map_is_dropout2d():
    x = torch.ones(64, 64, 8, 8)
    torch.testing.assert_close((DropBlock(1, 0.5)(x) == 0).float().mean(), torch.tensor(0.5), atol=0.01, rtol=0)
    whole = DropBlock(8, 0.5)(x)
    assert torch.equal(whole, whole[..., :1, :1].expand_as(whole))
    torch.testing.assert_close((whole == 0).float().mean(), torch.tensor(0.5), atol=0.05, rtol=0)
