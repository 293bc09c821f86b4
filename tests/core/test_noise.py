"""Noise is a function of the key: standard normal, independent for each key."""

import math

import pytest
import torch

from torch_dropblock.core import keys, noise


def normal(key, shape, dtype):
    return noise.normal(torch.tensor(key), shape, dtype)


def test_numbers_are_made_as_by_hand():
    drawn = normal(42, (5,), torch.float64).tolist()
    for i, number in enumerate(drawn):
        word = keys.word(42, -1, i // 2) % 2**64
        radius = math.sqrt(-2 * math.log(((word >> 32) + 1) / 2**32))
        angle = 2 * math.pi * (word % 2**32) / 2**32
        assert number == pytest.approx(radius * (math.sin if i % 2 else math.cos)(angle), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments(dtype, z_score):
    drawn = normal(7, (1000, 1001), dtype)
    assert drawn.dtype == dtype
    assert drawn.isfinite().all()
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0), (6, 15.0)):
        assert abs(z_score(drawn.double() ** power, moment)) < 5
    for lag in (1, 2, 3):
        assert abs(z_score(drawn.flatten()[lag:] * drawn.flatten()[:-lag], 0.0)) < 5
    below = (drawn < 1.0).double()
    assert abs(z_score(below, 0.5 * (1 + math.erf(math.sqrt(0.5))))) < 5


def test_keys_are_independent(z_score):
    a, b = (normal(key, (10**6,), torch.float32) for key in (1, 2))
    assert abs(z_score(a * b, 0.0)) < 5


def test_float32_is_float64_rounded():
    a, b = (normal(-5, (10**5,), dtype) for dtype in (torch.float32, torch.float64))
    torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-3)


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (3, 5, 7)])
def test_any_shape_is_a_part_of_the_same_sequence(shape):
    whole = normal(9, (200,), torch.float32)
    assert torch.equal(normal(9, shape, torch.float32), whole[: math.prod(shape)].view(shape))


def test_the_number_of_words_at_once_does_not_matter(monkeypatch):
    whole = normal(3, (1001,), torch.float32)
    monkeypatch.setattr(noise, "WORDS_AT_ONCE", 7)
    assert torch.equal(normal(3, (1001,), torch.float32), whole)


def test_the_key_is_left_alone():
    key = torch.tensor(3)
    noise.normal(key, (4,), torch.float32)
    assert key.item() == 3
