"""What corruptions do to images."""

import pytest
import torch

from torch_dropblock.compare.measures import corruptions
from torch_dropblock.compare.measures.corruptions import LEVELS, corrupted


def pixels(channels=3, side=16):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (6, channels, side, side), dtype=torch.uint8, generator=generator)


def made(images, kind, level, seed=0):
    return corrupted(images, kind, level, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_stay_images_and_get_worse_with_the_level(kind, channels):
    images = pixels(channels)
    results = [made(images, kind, level) for level in LEVELS[kind][0]]
    assert all(result.shape == images.shape and result.dtype == torch.uint8 for result in results)
    distances = [(result.float() - images.float()).square().mean().item() for result in results]
    assert 0 < distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize(("kind", "level"), [(kind, levels[0][2]) for kind, levels in LEVELS.items()])
def test_the_smallest_images_can_be_corrupted(kind, level):
    assert made(pixels(1, 8), kind, level).shape == (6, 1, 8, 8)


def test_noise_has_its_deviation_and_follows_from_the_generator():
    grey = torch.full((50, 1, 16, 16), 128, dtype=torch.uint8)
    noisy = made(grey, "noise", 0.1)
    assert noisy.float().std().item() == pytest.approx(25.5, rel=0.03)
    assert torch.equal(noisy, made(grey, "noise", 0.1))
    assert not torch.equal(noisy, made(grey, "noise", 0.1, seed=1))


def test_contrast_is_that_share_of_the_distance_from_the_mean():
    images = pixels(1)
    low = made(images, "contrast", 0.15).float()
    assert (low.std((1, 2, 3)) / images.float().std((1, 2, 3))).tolist() == pytest.approx([0.15] * 6, abs=0.01)


def test_chunks_make_no_difference(monkeypatch):
    images = pixels()
    whole = {kind: made(images, kind, levels[0][1]) for kind, levels in LEVELS.items()}
    monkeypatch.setattr(corruptions, "CHUNK_PIXELS", 2 * 16**2)
    assert all(torch.equal(made(images, kind, LEVELS[kind][0][1]), whole[kind]) for kind in whole if kind != "noise")
