"""A plan is a dict of layers that prints as a table."""

import pytest

from torch_dropblock import DropBlock2d
from torch_dropblock.networks.plan import Plan, Row


def plan(*layouts):
    rows = [Row(f"stages.{i}", "Block", (14, 12), layout, (7, 7), 0.975) for i, layout in enumerate(layouts)]
    return Plan({row.name: DropBlock2d(7) for row in rows}, rows, ["Two layers."])


def test_table():
    assert str(plan("channels_first", "channels_first")).splitlines() == [
        "after module  type     map  block  keep_prob",
        "────────────────────────────────────────────",
        "stages.0      Block  14×12    7×7      0.975",
        "stages.1      Block  14×12    7×7      0.975",
        "",
        "Two layers.",
    ]


def test_layout_is_shown_where_one_is_not_channels_first():
    text = str(plan("channels_first", "channels_last", "tokens", (14, 12)))
    for word in ("layout", "channels_first", "channels_last", "tokens 14×12"):
        assert word in text


def test_mapping():
    made = plan("channels_first")
    assert made.keys() == {"stages.0"}
    assert repr(made).startswith("{'stages.0': DropBlock2d(")
    with pytest.raises(TypeError, match="changed the model in place"):
        made(1)
