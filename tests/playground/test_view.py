import re
import threading

import numpy as np
import pytest
import torch
from torch import nn

from torch_dropblock import DropBlock2d, expected_keep_rate, keep_rate_map, seed_probability
from torch_dropblock.pictures.draws import first_near
from torch_dropblock.playground.view import LARGEST_SEED, METHODS, SIDE, Settings, as_levels, builtin_levels, draw

WHITE = np.full((64, 64, 3), 255, np.uint8)
CASES = [
    Settings(),
    Settings(block_size=(3, 11), keep_prob=0.5, rate="paper", map_side=40, seed=5),
    Settings(share_channels=True, progress=0.4, curve="cosine", seed=LARGEST_SEED),
    Settings(progress=0.49, curve="step"),
    Settings(block_size=(64, 64), map_side=10),
    Settings(method="Dropout", keep_prob=0.8),
    Settings(method="SpatialDropout", keep_prob=0.4),
    Settings(keep_prob=0.0),
    Settings(keep_prob=1.0),
    Settings(map_side=1),
]


@pytest.mark.parametrize("settings", CASES, ids=repr)
def test_the_code_makes_the_layer_that_is_shown(settings):
    view, names = draw(settings, WHITE), {}
    exec(settings.code(), names)
    assert repr(names["layer"]) == repr(settings.layer())
    torch.manual_seed(settings.seed)
    y = names["layer"](torch.ones(1, 3, *view.size))[0]
    np.testing.assert_array_equal(y != 0, view.kept)
    assert view.scale == y.max()


def test_the_layers():
    layers = [Settings(method=method, keep_prob=0.9).layer() for method in METHODS]
    assert [type(layer) for layer in layers] == [DropBlock2d, nn.Dropout, nn.Dropout2d]
    assert [layer.p for layer in layers[1:]] == [0.1, 0.1]


@pytest.mark.parametrize("settings", CASES, ids=repr)
def test_the_numbers_are_the_librarys(settings):
    view = draw(settings, WHITE)
    keep_prob = getattr(settings.layer(), "keep_prob", settings.keep_prob)
    block = {"Dropout": 1, "SpatialDropout": view.size}.get(settings.method, settings.block_size)
    gamma = seed_probability(view.size, block, keep_prob, settings.rate)
    assert (view.keep_prob, view.gamma) == (keep_prob, gamma)
    assert view.expected == 1 - expected_keep_rate(view.size, block, gamma)
    torch.testing.assert_close(view.keep_rates, keep_rate_map(view.size, block, gamma))
    assert view.share_dropped == pytest.approx(1 - view.kept.mean())


@pytest.mark.parametrize("settings", CASES, ids=repr)
def test_what_is_measured_is_what_is_expected(settings, z_score):
    view = draw(settings, WHITE)
    assert abs(z_score(torch.from_numpy(view.shares), view.expected)) < 4.5
    mean, error = view.measured
    assert mean == pytest.approx(view.shares.mean())
    assert error == pytest.approx(view.shares.std(ddof=1) / len(view.shares) ** 0.5)


def test_the_first_view_is_the_first_draw_near_the_mean():
    shares = (draw(Settings(seed=seed), builtin_levels()).share_dropped for seed in range(100))
    assert first_near(shares, 0.3) == Settings().seed


def test_the_schedule():
    settings = Settings(keep_prob=0.5)
    assert [settings.keep_prob_at(progress) for progress in (0, 0.5, 1)] == [1.0, 0.75, 0.5]
    assert Settings(method="Dropout", keep_prob=0.5).keep_prob_at(0) == 0.5
    assert draw(Settings(progress=0), WHITE).kept.all()


@pytest.mark.parametrize(
    ("shape", "side", "size"), [((512, 4), 28, (28, 1)), ((3, 512), 1, (1, 1)), ((5, 7), 7, (5, 7))]
)
def test_the_map_has_the_proportions_of_the_picture(shape, side, size):
    levels = np.zeros((*shape, 3), np.uint8)
    assert Settings(map_side=side).map_size(levels) == size
    assert draw(Settings(map_side=side), levels).kept.shape == (3, *size)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    draw(Settings(), WHITE)
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_do_not_disturb_each_other():
    expected = [draw(Settings(method=METHODS[seed % 3], seed=seed), WHITE).kept for seed in range(6)]
    wrong = []

    def many(seed):
        views = (draw(Settings(method=METHODS[seed % 3], seed=seed), WHITE) for _ in range(20))
        wrong.extend(seed for view in views if (view.kept != expected[seed]).any())

    threads = [threading.Thread(target=many, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (400, 2), (512, 512), (600, 512), (1024, 100), (64, 64)])
def test_levels(shape):
    photo = torch.rand(3, *shape)
    levels = as_levels(photo)
    assert levels.dtype == np.uint8
    assert max(levels.shape[:2]) == SIDE
    assert min(levels.shape[:2]) == max(1, round(SIDE * min(shape) / max(shape)))
    assert abs(levels.mean() / 255 - photo.mean().item()) < 0.02


def test_levels_of_a_picture_of_that_size_are_its_own():
    photo = torch.rand(3, SIDE, 100)
    np.testing.assert_array_equal(as_levels(photo), (photo * 255).round().byte().movedim(0, -1))


def test_the_builtin_photo_is_square_and_nobody_can_change_it():
    assert builtin_levels().shape == (512, 512, 3)
    with pytest.raises(ValueError, match="read-only"):
        builtin_levels()[0] = 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"method": "DropPath"},
            ValueError,
            "method must be one of DropBlock, Dropout, SpatialDropout, got 'DropPath'",
        ),
        ({"curve": "sine"}, ValueError, "curve must be one of linear, cosine, constant, step, got 'sine'"),
        (
            {"block_size": (0, 7)},
            ValueError,
            "block_size must be a positive int or a sequence of 2 of them, got (0, 7)",
        ),
        ({"keep_prob": 1.1}, ValueError, "keep_prob must be a number in [0, 1], got 1.1"),
        ({"rate": "fast"}, ValueError, "rate must be 'exact' or 'paper', got 'fast'"),
        ({"share_channels": 1}, TypeError, "share_channels must be True or False, got 1"),
        ({"map_side": 0}, ValueError, "map_side must be an int of at least 1, got 0"),
        ({"map_side": 129}, ValueError, "map_side must be at most 128, got 129"),
        ({"seed": None}, TypeError, "seed must be an int of at least 0, got None of type NoneType"),
        ({"seed": 2**32}, ValueError, "seed must be at most 4294967295, got 4294967296"),
        ({"progress": -0.1}, ValueError, "progress must be a number in [0, 1], got -0.1"),
    ],
)
def test_what_cannot_be_set(change, error, message):
    with pytest.raises(error, match=re.escape(message)):
        Settings(**change)


def test_spatial_dropout_drops_whole_channels():
    view = draw(Settings(method="SpatialDropout", keep_prob=0.5), np.zeros((64, 48, 3), np.uint8))
    assert view.block == view.size


def test_a_large_picture_is_scaled_down_smoothly():
    board = torch.arange(3 * SIDE).view(-1, 1).add(torch.arange(3 * SIDE)).remainder(2).float().expand(3, -1, -1)
    levels = as_levels(board)
    assert levels.shape == (SIDE, SIDE, 3)
    assert np.abs(levels.astype(int) - 128).max() < 32
