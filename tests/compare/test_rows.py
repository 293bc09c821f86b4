"""Rows by name."""

import pytest

from torch_dropblock.compare.rows import TABLE_1, Noise, Row, parsed
from torch_dropblock.compare.settings import Settings


def row(name, **settings):
    return parsed([name], Settings(**settings))[-1]


def test_the_papers_table():
    assert parsed(TABLE_1, Settings()) == [
        Row("baseline"),
        Row("dropout", Noise("dropout", 0.7, "linear", None, "exact")),
        Row("droppath", Noise("droppath", 0.9, "linear", None, "exact")),
        Row("spatial-dropout", Noise("spatial-dropout", 0.9, "linear", None, "exact")),
        Row("cutout", cutout=0.25),
        Row("autoaugment", autoaugment=True),
        Row("label-smoothing", label_smoothing=0.1),
        Row("dropblock", Noise("dropblock", 0.9, "linear", None, "exact")),
        Row("dropblock+label-smoothing", Noise("dropblock", 0.9, "linear", None, "exact"), label_smoothing=0.1),
    ]


def test_the_settings_are_those_of_dropblock_and_the_curve_of_all():
    settings = Settings(keep_prob=0.8, block_size=3, rate="paper", curve="step")
    dropblock, dropout = parsed(["dropblock", "dropout"], settings)[1:]
    assert dropblock.noise == Noise("dropblock", 0.8, "step", 3, "paper")
    assert (dropout.noise.keep_prob, dropout.noise.curve) == (0.7, "step")


def test_options_go_before_the_settings():
    name = "dropblock:keep_prob=0.5:block_size=2:rate=paper:curve=constant+cutout:area=0.1+label-smoothing:amount=0.2"
    assert row(name, keep_prob=0.8) == Row(name, Noise("dropblock", 0.5, "constant", 2, "paper"), 0.1, False, 0.2)
    assert row("autoaugment+cutout") == Row("autoaugment+cutout", cutout=0.25, autoaugment=True)


def test_the_baseline_is_there_and_first():
    assert [row.name for row in parsed(["cutout", "dropout"], Settings())] == ["baseline", "cutout", "dropout"]
    assert [row.name for row in parsed([" cutout", "baseline "], Settings())] == ["baseline", "cutout"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "rows must be of baseline, dropout, .*, joined by +, got ''"),
        ("dropblok", "got 'dropblok'; close to it: dropblock"),
        ("zoneout", "got 'zoneout'$"),
        ("dropblock+dropout", "row 'dropblock+dropout' must have one of dropout, .*dropblock, since they act at the"),
        ("cutout+cutout", "must name parts that go together, each once, and baseline alone"),
        ("baseline+cutout", "and baseline alone"),
        ("cutout+baseline", "and baseline alone"),
        ("baseline:keep_prob=1", "row 'baseline:keep_prob=1': baseline takes nothing, got 'keep_prob=1'"),
        ("dropout:block_size=2", "dropout takes option=value with keep_prob, curve, got 'block_size=2'"),
        ("dropblock:block_size", "dropblock takes option=value with .*, got 'block_size'"),
        ("dropblock:block_size=", "got 'block_size='"),
        ("dropblock:rate=paper:rate=exact", "must name each option of dropblock once"),
        ("dropblock:block_size=2.5", "block_size must be a whole number, got '2.5'"),
        ("dropblock:block_size=0", "row 'dropblock:block_size=0': block_size must be an int of at least 1, got 0"),
        ("dropblock:keep_prob=much", "keep_prob must be a number, got 'much'"),
        ("dropblock:keep_prob=nan", r"keep_prob must be a number in \[0, 1\], got nan"),
        ("dropblock:rate=true", "row 'dropblock:rate=true': rate must be one of exact, paper, got 'true'"),
        ("dropblock:curve=sine", "curve must be one of linear, .*, got 'sine'"),
        ("cutout:area=1", r"row 'cutout:area=1': area must be in \(0, 1\), got '1'"),
        ("cutout:area=0", r"area must be in \(0, 1\), got '0'"),
        ("label-smoothing:amount=nan", r"amount must be in \(0, 1\), got 'nan'"),
    ],
)
def test_what_is_no_row(name, words):
    with pytest.raises(ValueError, match=words.replace("+", r"\+")):
        row(name)


def test_a_row_named_twice_is_refused():
    with pytest.raises(ValueError, match="rows must name each row once, got cutout, dropout, cutout"):
        parsed(["cutout", "dropout", "cutout"], Settings())
