"""What the summary shows, and that looking changes nothing."""

import re
from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import distributed, nn

from helpers.interrupts import interrupt_at_every_line
from torch_dropblock import (
    DropBlock2d,
    KeepProbSchedule,
    dropblock_summary,
    expected_keep_rate,
    insert_dropblock,
    insert_dropblock_resnet,
    seed_probability,
)
from torch_dropblock.networks import modes, sites

# torch's own compiler uses things that torch deprecates
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:torch.*"),
]


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.AvgPool2d(4)
        self.drop = DropBlock2d(7, keep_prob=0.8, rate="paper")
        self.unused = nn.ReLU()

    def forward(self, x):
        return self.drop(self.pool(self.stem(x)))


def test_rows():
    model = Network()
    insert_dropblock(model, ["stem.1", "unused"], block_size=(3, 5), keep_prob=0.9)
    model.stem.eval()
    drop, stem, unused = (
        next(row for row in dropblock_summary(model, (2, 3, 24, 16)).rows if row.name == name)
        for name in ("drop", "stem.1", "unused")
    )
    gamma = seed_probability((6, 4), 7, 0.8, "paper")
    assert (drop.size, drop.block, drop.is_clamped) == ((6, 4), (6, 4), True)
    assert (drop.keep_prob, drop.target_keep_prob, drop.gamma) == (0.8, 0.8, gamma)
    assert drop.share_dropped == 1 - expected_keep_rate((6, 4), 7, gamma)
    assert drop.training
    assert drop.drops
    assert (stem.size, stem.block, stem.is_clamped) == ((24, 16), (3, 5), False)
    assert stem.share_dropped == pytest.approx(0.1)
    assert not stem.training
    assert not stem.drops
    assert (unused.size, unused.block, unused.gamma, unused.share_dropped) == (None, None, None, None)
    assert not unused.drops


def test_the_text_is_a_table_with_notes():
    model = Network()
    insert_dropblock(model, ["stem.1", "unused"], keep_prob=0.9)
    model.stem.eval()
    text = str(dropblock_summary(model, (2, 3, 24, 16)))
    header, rule, *rows = text.split("\n\n")[0].splitlines()
    assert re.split(r"\s{2,}", header) == [
        "after module", "map", "block", "keep_prob", "γ", "drops", "mode", "ran",
    ]  # fmt: skip
    assert set(rule) == {"─"}
    assert len(rule) == max(map(len, [header, *rows]))
    assert [re.split(r"\s{2,}", row)[0] for row in rows] == ["stem.1", "drop", "unused"]
    assert re.split(r"\s{2,}", rows[1])[1:3] == ["6×4", "6×4*"]
    assert text.split("\n\n")[1].splitlines() == [
        "1 of 3 layers drop.",
        "mode: layers drop only in training mode; an inserted layer has the mode of its",
        "  module.",
        "ran: evaluation does not call that module; if training does not either, its",
        "  layer does nothing.",
        "*: the block is clamped to the map, where it is larger.",
    ]


def test_a_schedule_that_has_not_begun():
    model = Network()
    schedule = KeepProbSchedule(model, 4)
    (row,) = dropblock_summary(model, (1, 3, 32, 32)).rows
    assert (row.keep_prob, row.target_keep_prob, row.gamma, row.share_dropped) == (1.0, 0.8, 0.0, 0.0)
    assert "keep_prob  target" in str(dropblock_summary(model, (1, 3, 32, 32)))
    text = str(dropblock_summary(model, (1, 3, 32, 32)))
    assert "The layer drops nothing now.\nkeep_prob is 1 where a schedule has not begun." in text
    schedule.step()
    (row,) = dropblock_summary(model, (1, 3, 32, 32)).rows
    assert row.keep_prob == pytest.approx(0.95)
    assert row.drops


def test_a_notebook_gets_html():
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    insert_dropblock(model, "0")
    page = dropblock_summary(model, (1, 3, 30, 30))._repr_html_()
    assert page.count("<tr>") == 2
    assert "<td>28×28</td>" in page
    assert page.endswith("<p>The layer drops.</p>")


def test_a_layer_that_sees_several_sizes_has_a_row_for_each():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return [self.head(x), self.head(x[..., ::2, ::2]), self.head(x)]

    model = Pyramid()
    insert_dropblock(model, "head", block_size=3)
    summary = dropblock_summary(model, (1, 3, 16, 16))
    assert [(row.name, row.size) for row in summary.rows] == [("head", (16, 16)), ("head", (8, 8))]
    assert summary.notes == ("The layer drops.",)


def test_several_inputs_and_other_dtypes():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(2, 4, 3)

        def forward(self, x, y):
            return self.conv(x) + self.conv(y)

    model = Two().to(torch.bfloat16)
    insert_dropblock(model, "conv", dims=1, block_size=3)
    summary = dropblock_summary(model, [(1, 2, 20), (1, 2, 20)])
    assert [row.size for row in summary.rows] == [(18,)]


def test_an_input_of_integers():
    model = nn.Sequential(nn.Embedding(10, 8), nn.Conv1d(12, 4, 3))
    insert_dropblock(model, "1", dims=1, block_size=3)
    tokens = torch.zeros(2, 12, dtype=torch.int64)
    assert [row.size for row in dropblock_summary(model, tokens).rows] == [(6,)]
    assert [row.size for row in dropblock_summary(model, [tokens]).rows] == [(6,)]


def test_looking_changes_nothing():
    model = torchvision.models.resnet18()
    insert_dropblock_resnet(model)
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = {name: list(module._forward_hooks) for name, module in model.named_modules()}
    random = torch.get_rng_state()
    dropblock_summary(model, (1, 3, 64, 64))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert {name: list(module._forward_hooks) for name, module in model.named_modules()} == hooks
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_interrupt_changes_nothing():
    model = nn.Sequential(nn.Identity().eval(), DropBlock2d(3))
    insert_dropblock(model, "0")
    layers = [*model, sites.hooks_of(model[0])[0].layer]

    def state():
        return [(layer.training, list(layer._forward_hooks)) for layer in layers], dict(modes._open)

    assert interrupt_at_every_line(lambda: dropblock_summary(model, (1, 3, 8, 8)), state) > 100
    assert not modes._open


@pytest.mark.parametrize("wrapped", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_a_wrapped_model(wrapped):
    model = Network()
    insert_dropblock(model, "stem.1")
    wrapped = wrapped(model)
    for _ in range(2):
        assert [row.size for row in dropblock_summary(wrapped, (1, 3, 32, 32)).rows] == [(32, 32), (8, 8)]
        wrapped(torch.randn(1, 3, 32, 32))


def test_errors():
    with pytest.raises(TypeError, match="model must be a torch.nn.Module"):
        dropblock_summary(len, (1, 3, 8, 8))
    with pytest.raises(ValueError, match="ReLU has no DropBlock layer"):
        dropblock_summary(nn.ReLU(), (1, 3, 8, 8))
    model = Network()
    for size in (3, "1x3", ()):
        with pytest.raises(TypeError, match="input_size must be the shape of an input"):
            dropblock_summary(model, size)
    with pytest.raises(ValueError, match="input_size must be a positive int"):
        dropblock_summary(model, (0, 3, 8, 8))
    with pytest.raises(ValueError, match=r"does not run on an input of shape \(1, 4, 8, 8\) \(batch first\)"):
        dropblock_summary(model, (1, 4, 8, 8))
    with pytest.raises(ValueError, match=r"of shape \(3, 8, 8\) \(batch first, such as \(1, 3, 8, 8\)\)"):
        dropblock_summary(model, (3, 8, 8))
    assert model.training
    assert not model.drop._forward_hooks
    insert_dropblock(model, "stem.1")
    with pytest.raises(RuntimeError, match=r"stem.1\. .*insert after converting"):
        dropblock_summary(nn.SyncBatchNorm.convert_sync_batchnorm(model), (1, 3, 8, 8))


def test_gamma_is_that_of_the_layers_rate():
    layers = {rate: DropBlock2d(7, keep_prob=0.5, rate=rate) for rate in ("exact", "paper")}
    for row in dropblock_summary(nn.Sequential(OrderedDict(layers)), (1, 3, 28, 28)).rows:
        assert row.gamma == seed_probability((28, 28), 7, 0.5, row.name)


def test_other_ranks_are_not_waited_for(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        insert_dropblock(model, "2")
        parallel = nn.parallel.DistributedDataParallel(model)
        parallel.forward = lambda *_: pytest.fail("the other ranks were waited for")
        assert [row.size for row in dropblock_summary(parallel, (1, 3, 8, 8)).rows] == [(8, 8)]
        del parallel
    finally:
        distributed.destroy_process_group()


def test_a_lazy_network_stays_lazy():
    model = nn.Sequential(nn.LazyConv2d(8, 3), DropBlock2d(3), nn.Flatten(), nn.LazyLinear(4))
    insert_dropblock(model, "0")
    random = torch.get_rng_state()
    assert [row.size for row in dropblock_summary(model, (1, 3, 16, 16)).rows] == [(14, 14), (14, 14)]
    assert model[0].has_uninitialized_params()
    assert isinstance(model[3], nn.LazyLinear)
    assert torch.equal(torch.get_rng_state(), random)
    assert model(torch.ones(2, 1, 8, 8)).shape == (2, 4)


def test_what_speaks_against_a_layer():
    """Channels that come last, a map of one unit, a map that two layers drop from: in rows, text and notes."""

    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.act = nn.LayerNorm(8), nn.GELU()

        def forward(self, x):
            return self.act(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), Turned(), nn.AdaptiveAvgPool2d(1), DropBlock2d(3))
    with pytest.warns(UserWarning, match="feature map|one unit"):
        insert_dropblock(model, ["0", "1", "2.*", "3"])
    summary = dropblock_summary(model, (1, 3, 34, 18))
    told = {row.name: (row.size, row.channels_last, row.same_map_as, row.is_one_unit) for row in summary.rows}
    assert told == {
        "0": ((32, 16), False, None, False),
        "1": ((32, 16), False, "0", False),
        "2.norm": ((16, 8), True, None, False),
        "2.act": ((16, 8), True, "2.norm", False),
        "3": ((1, 1), False, None, True),
        "4": ((1, 1), False, "3", True),
    }
    checks = [re.split(r"\s{2,}", line)[-1] for line in str(summary).splitlines()[2:8]]
    assert checks == ["train", "twice", "last", "last, twice", "1", "1, twice"]
    assert summary.notes[0] == "6 of 6 layers drop; for 5 of them look at the column check."
    assert [note.partition(":")[0] for note in summary.notes[1:]] == ["*", "last", "1", "twice"]
    assert "<td>last, twice</td>" in summary._repr_html_()


def test_the_papers_placement_is_above_doubt():
    model = torchvision.models.resnet50()
    insert_dropblock_resnet(model)
    assert not any(row.is_doubtful for row in dropblock_summary(model, (1, 3, 64, 64)).rows)
    with torch.inference_mode():
        assert not any(row.is_doubtful for row in dropblock_summary(model, (1, 3, 64, 64)).rows)
