"""The text of a table: what is one row, and what fits into a terminal."""

import pytest

from torch_dropblock.networks import summary_table

COLUMNS = ("after module", "map", "drops")


def lines(rows, width=80, notes=()):
    return summary_table.text(COLUMNS, rows, notes, width, {"after module"}).splitlines()


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["layer3.0.bn1", "layer3.0.bn2", "layer3.1.bn1"], ["layer3.*: 3 layers"]),
        (["layer3.0.bn1", "layer3.0.bn2", "layer3.0.bn3"], ["layer3.0.*: 3 layers"]),
        (["layer3.0.bn1", "layer3.0.bn2"], ["layer3.0.bn1", "layer3.0.bn2"]),
        (["a.0", "b.0", "a.1", "b.1", "a.2"], ["a.*: 3 layers", "b.0", "b.1"]),
        (["1", "3", "5"], ["*: 3 layers"]),
        (["", "1"], ["", "1"]),
    ],
)
def test_equal_rows_of_a_part_are_one(names, shown):
    assert [row[0] for row in summary_table.collapsed([(name, "7×7", "10.0%") for name in names])] == shown


def test_rows_that_differ_stay():
    rows = [("a.0", "7×7", "10.0%"), ("a.1", "7×7", "2.5%"), ("a.2", "14×14", "10.0%")]
    assert summary_table.collapsed(rows) == rows


def test_columns_are_aligned():
    assert lines([("a", "14×14", "2.5%"), ("b.c", "7×7", "10.0%")], notes=["A note."]) == [
        "after module    map  drops",
        "──────────────────────────",
        "a             14×14   2.5%",
        "b.c             7×7  10.0%",
        "",
        "A note.",
    ]


def test_a_long_name_has_a_line_of_its_own():
    name = "backbone.body.layer4.2.downsample"
    assert lines([(name, "14×14", "10.0%")], width=40) == [
        "after module",
        "    map  drops",
        "─" * len(name),
        name,
        "  14×14  10.0%",
    ]


def test_notes_are_wrapped():
    note = "words " * 30
    wrapped = lines([("a", "7×7", "1%")], width=48, notes=[note])[4:]
    assert max(map(len, wrapped)) <= 48
    assert " ".join(" ".join(wrapped).split()) == note.strip()
