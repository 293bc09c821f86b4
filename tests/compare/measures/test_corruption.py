"""Accuracy on corrupted images."""

import statistics

import pytest

from helpers.measured import constant, images, perfect, trained
from torch_dropblock.compare.measures.corruption import measure
from torch_dropblock.compare.measures.corruptions import LEVELS


def test_a_constant_network_is_as_good_as_before():
    result = measure(trained(constant(9.0, 0.0, 0.0, 0.0)))
    assert result["mean"] == pytest.approx(0.25)
    assert result.keys() == {"mean", *LEVELS}
    for kind, (small, _) in LEVELS.items():
        assert result[kind] == [[level, 0.25] for level in small]


def test_what_does_not_change_the_colour_does_not_harm_a_network_that_needs_it():
    result = measure(trained(perfect))
    assert {accuracy for _, accuracy in result["blur"]} == {1.0}  # plain images stay plain
    values = [accuracy for kind in LEVELS for _, accuracy in result[kind]]
    assert result["mean"] == pytest.approx(statistics.mean(values))


def test_large_images_have_imagenets_levels():
    result = measure(trained(constant(9.0, 0.0, 0.0, 0.0), images(4, side=72)))
    assert [level for level, _ in result["jpeg"]] == [25, 15, 7]
