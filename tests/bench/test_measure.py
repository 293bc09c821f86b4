"""The benchmark measures what it says: turns, ratios, memory, cases."""

import math

import pytest
import torch
from torch import nn

from torch_dropblock import DropBlock2d
from torch_dropblock.backends import native
from torch_dropblock.bench import measure as bench
from torch_dropblock.bench.measure import OURS, PRODUCT, PYTHON, Case

SMALL = Case((4, 8, 14, 14))


def test_rows_of_a_case():
    rows = {row.contender: row for row in bench.measure(SMALL, rounds=3)}
    assert next(iter(rows)) == PRODUCT
    assert {OURS, "nn.Dropout"} <= set(rows)
    assert rows[PRODUCT].ratio == 1.0
    assert rows[PRODUCT].saved_bytes_per_element == 0
    assert rows[OURS].saved_bytes_per_element == 0
    assert rows["nn.Dropout"].saved_bytes_per_element >= 1
    for row in rows.values():
        assert row.case == SMALL
        assert row.median_us > 0
        assert row.rounds == 3


def test_units_of_a_row(monkeypatch):
    monkeypatch.setattr(bench, "take_turns", lambda steps, rounds, device: {PRODUCT: [1e-3, 3e-3], OURS: [4e-3, 6e-3]})
    product, ours = bench.measure(SMALL, rounds=3, names=(PRODUCT, OURS))
    assert (product.median_us, ours.median_us, ours.ratio) == pytest.approx((2000, 5000, 3))
    assert ours.gigabytes_per_second == pytest.approx(4 * 4 * 4 * 8 * 14 * 14 / 5e-3 / 1e9)  # 4 passes of float32


@pytest.mark.parametrize("shape", [(4, 8, 50), (2, 3, 6, 7, 8)])
def test_maps_of_other_dimensions_have_ours_and_dropout(shape):
    python = [] if native.LIBRARY is None else [PYTHON]
    assert list(bench.contenders(Case(shape))) == [PRODUCT, OURS, *python, "nn.Dropout"]
    assert PYTHON not in bench.contenders(Case(shape, mode="compiled"))


@pytest.mark.skipif(native.LIBRARY is None, reason="the native library was not built")
def test_pure_python_is_measured_without_the_library(monkeypatch):
    served = []
    why_not = native.why_not
    monkeypatch.setattr(native, "why_not", lambda *arguments: served.append(why_not(*arguments)) or served[-1])
    bench.measure(SMALL, rounds=1)
    assert set(served) == {None, native.NOT_LOADED}
    assert native.LIBRARY is not None


def test_contenders_do_the_same_job():
    """A tenth of the units in each channel by itself, but for what the peers get wrong."""
    x = torch.ones(64, 64, 28, 28)
    for name, function in bench.contenders(Case((64, 64, 28, 28))).items():
        y = function(x)
        share = (y == 0).float().mean().item()
        assert share == pytest.approx(0 if name == PRODUCT else 0.1, abs=0.04), name
        if name != PRODUCT:
            assert not torch.equal(y[:, 0], y[:, 1]), name


def test_the_step_is_forward_and_backward():
    x = torch.ones(2, 3, requires_grad=True)
    seen = []

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            seen.append("forward")
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            seen.append("backward")
            return grad

    bench._step(Watch.apply, x, torch.ones(2, 3))()
    assert seen == ["forward", "backward"]
    assert x.grad is None


def test_turns_are_balanced():
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in "abc"}
    monkeypatched = pytest.MonkeyPatch()
    monkeypatched.setattr(bench, "SECONDS_A_TURN", 0)
    try:
        times = bench.take_turns(steps, rounds=6)
    finally:
        monkeypatched.undo()
    assert {name: len(t) for name, t in times.items()} == {"a": 6, "b": 6, "c": 6}
    turns = "".join(calls)[-36::2]  # each turn is a call to warm up and one that counts
    assert turns == "abcbcacab" * 2


def test_ratios_are_taken_within_a_round():
    times = {"base": [1.0, 10.0, 100.0], "other": [2.0, 20.0, 1000.0]}
    assert bench.ratios_to("base", times) == {"base": 1.0, "other": 2.0}


def test_spread_is_the_distance_between_quartiles_over_the_median():
    assert bench.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)
    assert bench.spread([7.0]) == 0.0


def test_saved_bytes_leave_the_input_out_and_count_a_storage_once():
    x = torch.ones(10, 10, requires_grad=True)
    assert bench.saved_bytes(lambda x: x * x, x) == 0
    assert bench.saved_bytes(lambda x: x.exp(), x) == 400
    assert bench.saved_bytes(nn.Dropout(0.5), x) >= 100
    assert bench.saved_bytes(DropBlock2d(3), torch.ones(1, 1, 10, 10, requires_grad=True)) == 0


def test_chosen_cases():
    everything = bench.chosen_cases()
    assert len(everything) == len(set(everything)) == 3 * len(bench.SHAPES) + 3
    assert {case.mode for case in everything} == set(bench.MODES)
    assert {case.layout for case in everything} == set(bench.LAYOUTS)
    some = bench.chosen_cases([(1, 2, 3, 4)], ["float64"], modes=["compiled"], block_size=3)
    assert some == [Case((1, 2, 3, 4), "float64", mode="compiled", block_size=3)]
    assert [case.shape for case in bench.chosen_cases(dtypes=["float16"])] == list(bench.SHAPES)


def test_the_tensor_is_what_the_case_says():
    x = Case((2, 3, 4, 5), "bfloat16", "channels_last").tensor()
    assert x.dtype == torch.bfloat16
    assert x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shape": (2, 3, 4), "layout": "channels_last"}, "channels_last needs a shape of 4 or 5"),
        ({"shape": (2, 3, 4, 4), "device": "nowhere"}, "device 'nowhere' cannot be used here"),
    ],
)
def test_cases_that_cannot_be(settings, words):
    with pytest.raises(ValueError, match=words):
        Case(**settings)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled(monkeypatch):
    monkeypatch.setattr(
        bench, "contenders", lambda case: {PRODUCT: lambda x: x * 1.1, OURS: DropBlock2d(3, keep_prob=0.5)}
    )
    rows = bench.measure(Case((4, 8, 14, 14), mode="compiled"), rounds=3)
    assert [row.contender for row in rows] == [PRODUCT, OURS]
    assert rows[1].saved_bytes_per_element * math.prod(SMALL.shape) <= 24


def test_json_rows_say_where_they_come_from():
    rows = bench.as_json(bench.measure(SMALL, rounds=3))
    for row in rows:
        assert row["shape"] == SMALL.shape
        assert row["torch"].split("+")[0] == torch.__version__.split("+")[0]
        assert row["threads"] == torch.get_num_threads()
        assert row["processor"]
        assert "case" not in row


def test_peers_that_cannot_be_imported_are_left_out(monkeypatch):
    assert bench.peer("not_installed_here", "Layer") is None
    imported = bench.importlib.import_module

    def built_for_another_pytorch(name):
        if name.partition(".")[0] in ("torchvision", "timm"):
            raise RuntimeError("operator torchvision::nms does not exist")
        return imported(name)

    monkeypatch.setattr(bench.importlib, "import_module", built_for_another_pytorch)
    assert "torchvision" not in bench.machine("cpu")
    rows = bench.measure(SMALL, rounds=1, names=(PRODUCT, OURS, "torchvision"))
    assert [row.contender for row in rows] == [PRODUCT, OURS]


def test_what_is_saved_is_added_up_and_ours_has_the_settings_of_the_case():
    x = torch.ones(2, 3, 8, 8, requires_grad=True)
    assert bench.saved_bytes(lambda x: (x * 2).sin().cos(), x) == 2 * x.numel() * 4
    ours = bench.contenders(Case((1, 2, 9, 9), block_size=3, keep_prob=0.6))[OURS]
    assert (ours.block_size, ours.keep_prob) == (3, 0.6)
