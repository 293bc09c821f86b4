"""Calibration of networks whose confidence is known."""

import math

import pytest
import torch

from helpers.measured import constant, perfect, trained
from torch_dropblock.compare.measures.calibration import expected_error, measure, reliability


def test_a_perfect_network_that_is_certain_has_no_error():
    result = measure(trained(perfect))
    assert result["ece"] == pytest.approx(0, abs=1e-6)
    assert result["nll"] == pytest.approx(0, abs=1e-6)
    assert result["bins"] == [[pytest.approx(1), 1, 1]]


def test_a_constant_network_errs_by_its_confidence_above_the_accuracy():
    result = measure(trained(constant(*torch.tensor([0.7, 0.1, 0.1, 0.1]).log().tolist())))
    assert result["ece"] == pytest.approx(0.45, abs=1e-6)  # right for a quarter of the images
    assert result["nll"] == pytest.approx(-(math.log(0.7) + 3 * math.log(0.1)) / 4)
    assert result["bins"] == [[pytest.approx(0.7), 0.25, 1]]


def test_an_undecided_network_is_calibrated():
    result = measure(trained(constant(0.0, 0.0, 0.0, 0.0)))
    assert (result["ece"], result["nll"]) == (pytest.approx(0, abs=1e-6), pytest.approx(math.log(4)))


def test_the_error_is_the_mean_gap_of_the_diagram():
    probabilities = torch.rand(500, 5, generator=torch.Generator().manual_seed(0)).mul(4).softmax(1)
    labels = torch.arange(500) % 5
    bins = reliability(probabilities, labels)
    assert len(bins) > 5
    assert sum(share for *_, share in bins) == pytest.approx(1)
    gaps = sum(share * abs(confidence - accuracy) for confidence, accuracy, share in bins)
    assert expected_error(probabilities, labels) == pytest.approx(gaps, abs=1e-6)


def test_a_bin_of_the_diagram_holds_its_upper_end():
    probabilities = torch.tensor([[0.8, 0.2], [0.79, 0.21], [0.81, 0.19]], dtype=torch.float64)  # 0.8 is 12 of 15
    bins = reliability(probabilities, torch.tensor([0, 0, 1]))
    assert [bin[1:] for bin in bins] == [[1, pytest.approx(2 / 3)], [0, pytest.approx(1 / 3)]]
