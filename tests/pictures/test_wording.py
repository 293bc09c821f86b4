"""Sizes and shares as text."""

import pytest

from torch_dropblock.pictures import wording


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0 %"),
        (1.0, "100 %"),
        (1 - 0.9, "10.0 %"),
        (0.3, "30.0 %"),
        (0.0939, "9.39 %"),
        (0.001, "0.100 %"),
        (0.00001234, "0.00123 %"),
        (1.5e-9, "1.50e-07 %"),
        (0.99963, "99.963 %"),
        (1 - 1e-9, "99.99999990 %"),
    ],
)
def test_percent(share, text):
    assert wording.percent(share) == text


def test_joined():
    assert wording.joined((28,)) == "28"
    assert wording.joined([8, 16, 16]) == "8×16×16"
