"""`benchmarks/rates.py`, the table of what was asked against what was measured."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "rates.py"


@pytest.fixture(scope="module")
def rates():
    spec = importlib.util.spec_from_file_location("rates", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["rates"] = module  # where dataclasses look up the annotations
    spec.loader.exec_module(module)
    yield module
    del sys.modules["rates"]


@pytest.fixture(scope="module")
def readme(rates, tmp_path_factory):
    """A file that the command has written its table into."""
    path = tmp_path_factory.mktemp("rates") / "README.md"
    path.write_text(f"before\n{rates.BEGIN}\nan older table\n{rates.END}\nafter\n", encoding="utf-8")
    rates.main(["--planes", "64", "--write", str(path)])
    return path


@pytest.fixture(scope="module")
def table(rates, readme):
    """The cells, by the first of the row and by the heading of the column."""
    text = readme.read_text(encoding="utf-8").partition(rates.BEGIN)[2]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    header = rows[0]
    assert rows[1] == ["---"] * len(header)
    assert all(len(row) == len(header) for row in rows)
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows[2:]}


# --- the table ---------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_case_and_a_column_for_each_implementation(rates, table):
    *shares, float16 = table
    assert shares == [str(case) for case in rates.CASES]
    assert float16.startswith("64×256×28×28 float16")
    columns = [*rates.OURS, "its theory", *rates.peer_versions(), *rates.ARTICLE]
    assert all(list(row) == columns for row in table.values())


def test_ours_has_a_number_in_every_row(rates, table):
    *shares, float16 = table.values()
    for name in rates.OURS:
        assert all(row[name].endswith(" %") for row in shares)
        assert float16[name] == "1.000"


def test_the_line_below_says_how_the_table_was_made(rates, readme):
    (line,) = (line for line in readme.read_text(encoding="utf-8").splitlines() if line.startswith("python "))
    assert f"torch {torch.__version__}" in line
    assert all(f"{peer} {version}" in line for peer, version in rates.peer_versions().items())
    assert rates.processor() in line
    assert "seed 0; 64 planes" in line


def test_a_peer_that_is_not_installed_is_left_out_and_named(rates, monkeypatch):
    monkeypatch.setattr(rates, "PEERS", {"not_a_peer": rates.ours})
    monkeypatch.setattr(rates, "FLOAT16_SHAPE", (2, 2, 28, 28))
    header, *_, made_with, left_out = rates.rates(planes=2, seed=0).splitlines()
    assert "not_a_peer" not in header + made_with
    assert left_out == "Not installed, so left out: not_a_peer."


# --- what is measured --------------------------------------------------------------------------------------------


def test_our_share_is_what_was_asked(rates):
    torch.manual_seed(0)
    for case in rates.CASES:
        share, error = rates.share_dropped(rates.ours, case, planes=4000)
        assert 0 < error < 0.01
        assert abs(share - rates.DROP_PROB) < 5 * error, case


def test_our_share_with_the_rate_of_the_paper_is_what_its_theory_says(rates):
    torch.manual_seed(0)
    for case in rates.CASES:
        share, error = rates.share_dropped(rates.ours_paper, case, planes=4000)
        assert abs(share - rates.theory_paper(case)) < 5 * error, case


def share_for_seeds_anywhere(gamma):
    """The share dropped of a 40×10 map when any unit may be the centre of a 7×7 block, cut off at the border."""
    rows = [min(i, 3) + 1 + min(39 - i, 3) for i in range(40)]
    columns = [min(j, 3) + 1 + min(9 - j, 3) for j in range(10)]
    return 1 - sum((1 - gamma) ** (m * n) for m in rows for n in columns) / 400


@pytest.mark.parametrize(
    ("peer", "gamma"),
    [
        ("torchvision", None),  # equation 1 and seeds in the valid region, as the paper has it
        ("timm", 0.1 / 49 * 400 / (34 * 4)),  # equation 1
        ("dropblock", 0.1 / 49),
        ("the article's code", 0.1 / 49 * 10**2 / 4**2),  # equation 1 for a square of the width
    ],
)
def test_the_share_of_a_peer_is_what_its_seeds_give(rates, peer, gamma):
    """Which also shows that each is asked to drop, not to keep, a tenth."""
    if peer in rates.PEERS:
        pytest.importorskip(peer, reason=f"{peer} is not installed, so there is nothing to compare with")
    case = rates.Case((40, 10), 7)
    theory = rates.theory_paper(case) if gamma is None else share_for_seeds_anywhere(gamma)
    torch.manual_seed(0)
    share, error = rates.share_dropped((rates.PEERS | rates.ARTICLE)[peer], case, planes=4000)
    assert abs(share - theory) < 5 * error


def test_planes_beyond_those_of_one_call_are_measured_too(rates, monkeypatch):
    monkeypatch.setattr(rates, "PLANES_AT_ONCE", 3)
    calls = []

    def drop_in_the_first_call(x, block_size):
        calls.append(len(x))
        return x * (len(calls) > 1)

    share, error = rates.share_dropped(drop_in_the_first_call, rates.CASES[0], planes=8)
    assert calls == [3, 3, 2]
    assert share == pytest.approx(3 / 8)
    assert error == pytest.approx(math.sqrt(3 / 8 * 5 / 8 / 7))


@pytest.mark.parametrize(
    ("error", "cell"),
    [
        (ValueError, "refuses: ValueError"),
        (TypeError, "refuses: TypeError"),
        (ZeroDivisionError, "fails: ZeroDivisionError"),
        (AssertionError, "fails: AssertionError"),
    ],
)
def test_an_error_is_reported_by_its_name(rates, error, cell):
    def measure(drop):
        raise error

    assert rates.outcome(measure, rates.ours, seed=0) == cell


def test_nan_is_a_result_of_its_own(rates):
    share, _ = rates.share_dropped(lambda x, _: x * math.nan, rates.CASES[0], planes=2)
    assert rates.number("{:.1%}", share) == "NaN"


def test_a_change_of_dtype_is_told(rates, monkeypatch):
    monkeypatch.setattr(rates, "FLOAT16_SHAPE", (1, 1, 8, 8))
    assert rates.float16_mean(lambda x, _: x) == "1.000"
    assert rates.float16_mean(lambda x, _: x.float()) == "1.000, in float32"


# --- the command -------------------------------------------------------------------------------------------------


def test_write_replaces_what_is_between_the_markers_and_nothing_else(rates, readme):
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{rates.BEGIN}\n| map, block |")
    assert text.endswith(f".\n{rates.END}\nafter\n")
    assert "an older table" not in text
    assert rates.between_markers(text, "x") == f"before\n{rates.BEGIN}\nx\n{rates.END}\nafter\n"


@pytest.mark.parametrize("text", ["", "{begin}", "{end}", "{end} and {begin}"])
def test_missing_markers_are_an_error_before_anything_is_measured(rates, text, tmp_path, capsys):
    path = tmp_path / "README.md"
    path.write_text(text.format(begin=rates.BEGIN, end=rates.END), encoding="utf-8")
    with pytest.raises(SystemExit):
        rates.main(["--write", str(path)])
    message = capsys.readouterr().err
    assert "README.md" in message
    assert rates.BEGIN in message
    assert rates.END in message


def test_a_missing_file_is_an_error(rates, tmp_path, capsys):
    with pytest.raises(SystemExit):
        rates.main(["--write", str(tmp_path / "none.md")])
    assert "none.md" in capsys.readouterr().err


def test_one_plane_has_no_standard_error_and_is_refused(rates, capsys):
    with pytest.raises(SystemExit):
        rates.main(["--planes", "1"])
    assert "--planes must be 2 or more, got 1" in capsys.readouterr().err
