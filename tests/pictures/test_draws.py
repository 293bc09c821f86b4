"""A mask of a key is the layer's, and the mask shown is the first near the mean."""

import pytest
import torch

from torch_dropblock import drop_block2d, keep_rate_map, seed_probability
from torch_dropblock.pictures.draws import Draws, first_near, mask_of, share_dropped


@pytest.mark.parametrize("rate", ["exact", "paper"])
def test_a_mask_is_what_the_layer_keeps(rate):
    kept = drop_block2d(torch.ones(1, 40, 30), (7, 3), keep_prob=0.7, rate=rate, key=5)[0] != 0
    assert torch.equal(mask_of(5, (40, 30), (7, 3), 0.7, rate), kept)
    assert share_dropped(kept) == 1 - kept.double().mean().item()


@pytest.mark.parametrize(
    ("shares", "index"),
    [
        ([0.27, 0.332, 0.304, 0.3], 2),  # the first that rounds to the mean, not the nearest
        ([0.27, 0.33, 0.28], 2),  # the nearest, where none rounds to it
        ([0.0, 1.0, 0.0], 0),
        ([0.3], 0),
    ],
)
def test_the_first_share_near_the_mean(shares, index):
    assert first_near(shares, 0.3) == index


def test_shares_after_the_first_near_the_mean_are_not_computed():
    shares = iter([0.1, 0.3, 0.5])
    assert first_near(shares, 0.3) == 1
    assert next(shares) == 0.5


def test_draws(z_score):
    draws = Draws.of((14, 14), (5, 5), 0.7, range(100, 600))
    masks = [mask_of(key, (14, 14), (5, 5), 0.7) for key in range(100, 600)]
    assert draws.shares.tolist() == [share_dropped(mask) for mask in masks]
    assert torch.equal(draws.kept, masks[draws.key - 100])
    assert round(100 * draws.share) == 30
    assert all(round(100 * share) != 30 for share in draws.shares[: draws.key - 100].tolist())
    expected = 1 - keep_rate_map((14, 14), 5, seed_probability((14, 14), 5, 0.7)).mean().item()
    assert abs(z_score(draws.shares, expected)) < 4.5
    assert draws.mean == pytest.approx(draws.shares.mean().item())
    assert draws.error == pytest.approx(draws.shares.std().item() / 500**0.5)


def test_keys_draw_independent_masks(z_score):
    """The first mask of a key says nothing about that of the next key."""
    shares = Draws.of((7, 7), (5, 5), 0.7, range(4000)).shares - 0.3
    assert abs(z_score(shares[1:] * shares[:-1], 0)) < 4.5
