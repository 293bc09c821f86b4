"""Into any network and out again: what matches, what does not change, what it survives, what is refused."""

import copy
import io
import pickle

import pytest
import torch
import torchvision
from torch import fx, nn

from helpers.small_networks import Pyramid
from torch_dropblock import (
    DropBlock1d,
    DropBlock2d,
    DropBlock3d,
    KeepProbSchedule,
    dropblock_layers,
    dropblock_summary,
    insert_dropblock,
    insert_dropblock_resnet,
    insert_dropblock_stages,
    remove_dropblock,
)
from torch_dropblock.networks import sites

# torch's own compiler and export use things that torch deprecates
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:torch.*"),
]


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((-2, -1)))


@pytest.fixture
def model():
    return Network()


@pytest.fixture
def x():
    return torch.randn(4, 3, 16, 16)


def drops(model, x):
    """Whether the layers of a model do anything: two passes in training mode differ."""
    return not torch.equal(model(x), model(x))


OPTIONS = {"share_batch": True, "scale_by_keep": False, "with_noise": True, "share_channels": True, "rate": "paper"}


@pytest.mark.parametrize(
    ("insert", "build", "place"),
    [
        (insert_dropblock, Network, ("body.0",)),
        (insert_dropblock_stages, lambda: Pyramid(2), ((1, 3, 32, 32),)),
        (insert_dropblock_resnet, torchvision.models.resnet18, ()),
    ],
)
def test_every_option_reaches_the_layers(insert, build, place):
    for layer in insert(build(), *place, block_size=("40%", 3), **OPTIONS).values():
        assert {name: getattr(layer, name) for name in OPTIONS} == OPTIONS
        assert layer.block_size == ("40%", 3)


def test_a_share_of_the_map_in_a_plan_and_a_summary():
    model = Pyramid(2)
    plan = insert_dropblock_stages(model, (1, 3, 32, 32), block_size=("50%", 99))
    blocks = {(row.map, row.block) for row in plan.rows}
    assert blocks == {(size, (size[0] // 2, size[1])) for size, _ in blocks}
    assert len(blocks) == 2
    rows = dropblock_summary(model, (1, 3, 32, 32)).rows
    assert {(row.size, row.block) for row in rows} == blocks
    assert all(row.is_clamped for row in rows), "the side of 99 units"
    for layer in plan.values():
        layer.block_size = "50%"
    assert not any(row.is_clamped for row in dropblock_summary(model, (1, 3, 32, 32)).rows)


# --- what matches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("body.1", ["body.1"]),
        ("*.1", ["stem.1", "body.1"]),
        (["body.1", "stem.0"], ["stem.0", "body.1"]),
        ((pattern for pattern in ("body.?",)), ["body.0", "body.1", "body.2"]),
        ("b*[12]", ["body.1", "body.2"]),
        (lambda name, module: isinstance(module, nn.BatchNorm2d), ["stem.1", "body.1"]),
        (lambda name, module: name == "stem", ["stem"]),
        (lambda name, module: name == "", [""]),
    ],
)
def test_where(model, where, names):
    inserted = insert_dropblock(model, where)
    assert list(inserted) == names
    assert list(sites.find(model)) == names
    assert len({id(layer) for layer in inserted.values()}) == len(names)


def test_a_pattern_never_means_the_model_itself(model):
    with pytest.warns(UserWarning, match="feature map"):
        assert "" not in insert_dropblock(model, "*")


def test_every_option_of_the_layer(model):
    options = {"block_size": (3, 5), "keep_prob": 0.7, "rate": "paper", "share_channels": True, "inplace": True}
    (layer,) = insert_dropblock(model, "body.1", **options).values()
    assert isinstance(layer, DropBlock2d)
    assert {name: getattr(layer, name) for name in options} == options


@pytest.mark.parametrize(
    ("dims", "kind", "convolution", "size"),
    [
        (1, DropBlock1d, nn.Conv1d, (30,)),
        (2, DropBlock2d, nn.Conv2d, (12, 13)),
        (3, DropBlock3d, nn.Conv3d, (8, 9, 7)),
    ],
)
def test_dims(dims, kind, convolution, size):
    model = nn.Sequential(convolution(2, 64, 1))
    (layer,) = insert_dropblock(model, "0", dims=dims, block_size=3, keep_prob=0.8).values()
    assert type(layer) is kind
    share = (model(torch.ones(64, 2, *size)) == 0).float().mean().item()
    assert share == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("boddy.1", r"no module is named like 'boddy.1'; close to it are 'body.1'"),
        (["body.1", "nothing"], "no module is named like 'nothing'"),
        ("", "no module is named like ''"),
        ([], "where is empty"),
        (lambda name, module: False, "where is True for no module"),
    ],
)
def test_a_pattern_without_a_match_warns(model, where, message):
    with pytest.warns(UserWarning, match=message):
        inserted = insert_dropblock(model, where)
    assert list(inserted) == [name for name in ("body.1",) if where == ["body.1", "nothing"]]


@pytest.mark.parametrize("where", [3, None, nn.ReLU(), nn.ReLU, [nn.ReLU], [nn.ReLU()], ["body.1", 1]])
def test_where_of_another_type(model, where):
    with pytest.raises(TypeError, match="where must be"):
        insert_dropblock(model, where)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"dims": 4}, ValueError),
        ({"dims": True}, TypeError),
        ({"dims": [2]}, TypeError),
        ({"keep_prob": 1.5}, ValueError),
        ({"block_size": 0}, ValueError),
        ({"block_size": 0.1}, TypeError),
        ({"block_size": (1, 2, 3)}, ValueError),
        ({"rate": "fast"}, ValueError),
        ({"inplace": 1}, TypeError),
    ],
)
def test_bad_options_insert_nothing(model, options, error):
    with pytest.raises(error):
        insert_dropblock(model, "*.1", **options)
    assert not sites.present(model)


def test_no_module():
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got"):
        insert_dropblock(lambda x: x, "*")


# --- what does not change ----------------------------------------------------------------------------------------


def test_checkpoints_fit_both_ways(model):
    plain = Network()
    tree = repr(model)
    insert_dropblock(model, "*.1")
    assert repr(model) == tree  # the documentation says so, and what shows the layers
    model.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(model.state_dict(), strict=True)
    assert model.state_dict()._metadata.keys() == plain.state_dict()._metadata.keys()


def test_in_evaluation_it_is_the_plain_model(model, x):
    expected = model.eval()(x)
    insert_dropblock(model, ["stem", "*.1"])
    assert torch.equal(model(x), expected)
    assert drops(model.train(), x)


def test_a_module_used_twice_has_new_masks_each_time():
    model = nn.Sequential(nn.Identity())
    insert_dropblock(model, "0", block_size=3, keep_prob=0.5)
    x = torch.ones(2, 8, 16, 16)
    a, b = model[0](x) == 0, model[0](x) == 0
    assert a.any()
    assert b.any()
    assert not torch.equal(a, b)


def test_inplace_writes_into_the_output(model, x):
    insert_dropblock(model, "*.1", inplace=True, block_size=3)
    model(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# --- what it survives --------------------------------------------------------------------------------------------


def deep_copied(model):
    return copy.deepcopy(model)


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [deep_copied, pickled, saved])
def test_a_copy_has_layers_of_its_own(model, x, copied):
    inserted = insert_dropblock(model, "*.1", block_size=3, keep_prob=0.6)
    other = copied(model)
    found = sites.find(other)
    assert list(found) == list(inserted)
    for name, site in found.items():
        assert site.layer is not inserted[name]
        site.layer.keep_prob = 1.0
        assert inserted[name].keep_prob == 0.6
    assert not drops(other, x)
    assert drops(model, x)
    assert remove_dropblock(other) == 2
    assert len(sites.present(model)) == 2


@pytest.mark.parametrize("mode", [True, False])
def test_compile(model, x, mode):
    insert_dropblock(model, ["stem", "*.1"], block_size=3)
    model.train(mode)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert drops(compiled, x) is mode
    torch.manual_seed(3)
    a = compiled(x)
    torch.manual_seed(3)
    assert torch.equal(compiled(x), a)


def test_export(model, x):
    expected = model.eval()(x)
    insert_dropblock(model, ["stem", "*.1"])
    exported = torch.export.export(model, (x,))
    assert not [node for node in exported.graph.nodes if "drop" in str(node.target)]
    torch.testing.assert_close(exported.module()(x), expected)


def test_a_trace_can_be_inserted_into(model, x):
    traced = fx.symbolic_trace(model)
    insert_dropblock(traced, "*.1", block_size=3)
    assert drops(traced, x)


def test_half_precision_and_meta_device(model, x):
    insert_dropblock(model, "body.1", block_size=3)
    assert drops(model.to(torch.bfloat16), x.to(torch.bfloat16))
    assert model.to("meta")(x.to("meta", torch.bfloat16)).shape == (4, 4)


# --- what is refused ---------------------------------------------------------------------------------------------


def with_a_compiled_forward(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def with_a_compiled_part(model):
    model.body = torch.compile(model.body, backend="eager")
    return model


@pytest.mark.parametrize(
    ("wrapped", "by"),
    [
        (lambda model: torch.compile(model, backend="eager"), "torch.compile has wrapped it"),
        (compiled_in_place, "torch.compile has wrapped it"),
        (with_a_compiled_forward, "torch.compile has wrapped it"),
        (with_a_compiled_part, "torch.compile has wrapped its module 'body'"),
        (nn.DataParallel, "DataParallel has wrapped it"),
        (lambda model: nn.Sequential(nn.DataParallel(model)), "DataParallel has wrapped its module '0'"),
    ],
)
def test_a_wrapped_model_is_refused(model, wrapped, by):
    wrapped = wrapped(model)
    with pytest.raises(ValueError, match=f"{by}; insert before wrapping"):
        insert_dropblock(wrapped, "*.1")
    with pytest.raises(ValueError, match=f"{by}; remove layers before wrapping"):
        remove_dropblock(wrapped)
    assert not sites.present(model)


def test_a_second_insertion_at_one_place_is_refused(model):
    insert_dropblock(model, "body.1")
    with pytest.raises(ValueError, match=r"module 'body.1', a BatchNorm2d, has an inserted DropBlock layer already"):
        insert_dropblock(model, "*.1")
    assert list(sites.find(model)) == ["body.1"]
    insert_dropblock(model, "stem.1")
    assert list(sites.find(model)) == ["stem.1", "body.1"]


def test_a_module_that_is_never_called_is_refused():
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Conv2d(3, 3, 3)])})
    with pytest.raises(ValueError, match="module 'blocks', a ModuleList, has no forward to act on"):
        insert_dropblock(model, "blocks")
    assert list(insert_dropblock(model, "blocks*")) == ["blocks.0"]


def test_a_pattern_passes_over_what_makes_weights():
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    nn.utils.parametrizations.weight_norm(model[0])
    assert list(insert_dropblock(model, "*")) == ["0", "1"]


def test_a_name_with_brackets_means_itself():
    model = nn.ModuleDict({"x[0]": nn.ReLU(), "x0": nn.ReLU()})
    assert list(insert_dropblock(model, "x[0]")) == ["x[0]"]


# --- and out again -----------------------------------------------------------------------------------------------


def everything_of(model):
    """All that the modules of a model hold, hooks by identity."""
    return {
        name: {key: dict(value) if isinstance(value, dict) else value for key, value in vars(module).items()}
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize(
    "again", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), nn.DataParallel]
)
def test_all_layers_by_name(again):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), DropBlock2d(3, keep_prob=0.8), nn.ReLU())
    insert_dropblock(model, ["0", "2"], keep_prob=0.7)
    model = again(model)
    prefix = "module." if isinstance(model, nn.DataParallel) else ""
    layers = dropblock_layers(model)
    assert {name: layer.keep_prob for name, layer in layers.items()} == {
        f"{prefix}0": 0.7,
        f"{prefix}1": 0.8,
        f"{prefix}2": 0.7,
    }
    layers[f"{prefix}0"].keep_prob = 0.0  # those that act, not copies of them
    assert not model(torch.ones(1, 3, 8, 8)).any()


def test_no_layers_lost_layers_and_no_model(model):
    assert dropblock_layers(nn.ReLU()) == {}
    with pytest.raises(TypeError, match="model must be a torch.nn.Module"):
        dropblock_layers({})
    insert_dropblock(model, "body.1")
    model.body[1] = nn.Identity()
    with pytest.raises(RuntimeError, match="were lost"):
        dropblock_layers(model)


def test_remove_undoes_it_exactly(model, x):
    hook = model.body[1].register_forward_hook(lambda module, args, output: output * 2)
    before = everything_of(model)
    insert_dropblock(model, "*.1")
    insert_dropblock(model, ["stem", "body"])
    fx.symbolic_trace(model)
    assert everything_of(model) != before
    assert remove_dropblock(model) == 4
    assert everything_of(model) == before
    assert not drops(model, x)
    assert remove_dropblock(model) == 0
    hook.remove()
    assert list(insert_dropblock(model, "*.1")) == ["stem.1", "body.1"]


def test_remove_from_a_trace(model, x):
    insert_dropblock(model, ["stem.1", "body"], block_size=3)
    traced = fx.symbolic_trace(model).train()
    assert drops(traced, x)
    assert remove_dropblock(traced) == 2
    assert not drops(traced, x)


def test_layers_of_the_network_itself_stay():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), DropBlock2d(3))
    insert_dropblock(model, "0")
    assert remove_dropblock(model) == 1
    assert list(sites.find(model)) == ["1"]


def test_remove_says_what_was_lost_and_takes_out_the_rest(model):
    insert_dropblock(model, ["stem.0", "stem.1", "body.1"])
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    with pytest.raises(RuntimeError, match=r"stem.1, body.1\. .*insert after converting\. The other 1 have been"):
        remove_dropblock(model)
    assert remove_dropblock(model) == 0
    assert insert_dropblock(model, "*.1").keys() == {"stem.1", "body.1"}


def test_the_schedule_notices_what_is_lost_and_what_is_new(model):
    insert_dropblock(model, "stem.1", keep_prob=0.8)
    schedule = KeepProbSchedule(model, 10)
    new = insert_dropblock(model, "body.1", keep_prob=0.6)
    schedule.step()
    assert new["body.1"].keep_prob == pytest.approx(0.96)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    with pytest.raises(RuntimeError, match="insert after converting"):
        schedule.step()


def test_a_shared_module_gets_one_layer():
    shared = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 4, 1), shared, nn.Conv2d(4, 4, 1), shared)
    assert list(insert_dropblock(model, ["1", "3"])) == ["1"]
    assert remove_dropblock(model) == 1


def test_patterns_mind_the_case():
    model = nn.Sequential()
    model.add_module("Stem", nn.ReLU())
    with pytest.warns(UserWarning, match="no module is named like"):
        assert not insert_dropblock(model, "st*")


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_torchscript_is_refused():
    model = torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 3)))
    with pytest.raises(ValueError, match="since TorchScript has wrapped it"):
        insert_dropblock(model, "0")


@pytest.mark.parametrize("options", [{"rate": "x"}, {"block_size": 0.1}, {"inplace": 3}, {"share_channels": None}])
def test_options_are_checked_where_nothing_matches_too(options):
    (name,) = options
    with pytest.raises((TypeError, ValueError), match=f"^{name} must be"):
        insert_dropblock(nn.Sequential(nn.ReLU()), "nothing", **options)
