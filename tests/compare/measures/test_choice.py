"""The option `--measure`."""

import pytest

from torch_dropblock.compare.measures.choice import MEASURES, chosen
from torch_dropblock.compare.result_lines import MEASURED


def test_each_measure_has_a_rule_for_its_numbers():
    assert list(MEASURES) == list(MEASURED)


def test_some_all_or_none():
    assert chosen(None) == []
    assert chosen("all") == list(MEASURES)
    assert chosen("parts,occlusion") == ["parts", "occlusion"]


@pytest.mark.parametrize("text", ["", "speed", "parts,parts", "all,parts", "parts, occlusion"])
def test_what_is_no_measure_is_refused(text):
    with pytest.raises(ValueError, match="^--measure must be all, or some of occlusion, .* joined by commas, got '"):
        chosen(text)
