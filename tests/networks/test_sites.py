"""The hook, finding layers again, and noticing those that were lost."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import fx, nn
from torch.utils.hooks import RemovableHandle

from torch_dropblock import (
    DropBlock1d,
    DropBlock2d,
    DropBlock3d,
    KeepProbSchedule,
    dropblock_summary,
    insert_dropblock,
    mc_dropblock,
    remove_dropblock,
)
from torch_dropblock.backends import choice
from torch_dropblock.networks import sites


class Returns(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, _):
        return self.output


def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), DropBlock2d(3))


@pytest.mark.parametrize(
    ("layer", "output", "error", "got"),
    [
        (DropBlock2d(3), (torch.ones(2, 3, 8, 8),), TypeError, "tuple"),
        (DropBlock2d(3), {"a": torch.ones(2, 3, 8, 8)}, TypeError, "dict"),
        (DropBlock2d(3), torch.ones(2, 3), ValueError, r"a tensor of shape \(2, 3\)"),
        (DropBlock2d(3), torch.ones(2, 50, 64), ValueError, r"a tensor of shape \(2, 50, 64\)"),
        (DropBlock1d(3), torch.ones(2, 3, 8, 8), ValueError, r"shape \(N, C, L\)"),
        (DropBlock3d(3), torch.ones(2, 3, 8, 8), ValueError, r"shape \(N, C, D, H, W\)"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_an_output_that_is_no_feature_map_is_an_error_that_names_the_module(layer, output, error, got, training):
    model = nn.Sequential(Returns(output)).train(training)
    sites.attach(model, {"0": layer})
    with pytest.raises(error, match=rf"after module '0', which must return a floating-point feature map .*{got}"):
        model(torch.ones(1))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_a_feature_map_of_another_dtype_is_an_error_in_training(dtype):
    output = torch.ones(2, 3, 8, 8, dtype=dtype)
    model = nn.Sequential(Returns(output))
    sites.attach(model, {"0": DropBlock2d(3)})
    with pytest.raises(ValueError, match=rf"after module '0', which must return a floating-point .*{dtype}"):
        model(torch.ones(1))
    assert model.eval()(torch.ones(1)) is output


def test_a_layer_drops_while_its_module_trains_or_it_does_itself():
    model = nn.Sequential(nn.Identity())
    layer = DropBlock2d(3, keep_prob=0.5)
    sites.attach(model, {"0": layer})
    x = torch.ones(4, 8, 16, 16)
    (site,) = sites.find(model).values()
    for module_trains, layer_trains in ((True, False), (False, True), (True, True), (False, False)):
        model[0].train(module_trains)
        layer.train(layer_trains)
        drops = module_trains or layer_trains
        assert site.training == drops
        assert bool((model(x) == 0).any()) == drops


def test_find_gives_every_layer_by_the_name_of_its_module():
    model = nn.ModuleDict({"a": network(), "b": network()})
    inserted = insert_dropblock(model, "*.1")
    found = sites.find(model)
    assert list(found) == ["a.1", "a.3", "b.1", "b.3"]
    assert found["a.1"].layer is inserted["a.1"]
    assert found["a.1"].module is model["a"][1]
    assert found["a.3"].layer is found["a.3"].module is model["a"][3]


def test_present_are_those_that_find_finds():
    model = nn.ModuleDict({"a": network(), "b": network(), "none": None})
    insert_dropblock(model, ["*.1", "a.0"])
    assert set(sites.present(model)) == set(sites.find(model).values())
    assert len(sites.present(model)) == 5


def replace_by_sync_batch_norm(model):
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def replace_by_identity(model):
    model[1] = nn.Identity()
    return model


def take_out(model):
    del model[2]
    del model[1]
    return model


@pytest.mark.parametrize("convert", [replace_by_sync_batch_norm, replace_by_identity, take_out])
def test_a_site_that_was_lost_is_an_error(convert):
    model = network()
    insert_dropblock(model, ["0", "1"])
    assert sites.lost(model) == []
    other = copy.deepcopy(model)
    model = convert(model)
    assert (
        sites.lost(model) == sites.lost(copy.deepcopy(model)) == sites.lost(pickle.loads(pickle.dumps(model))) == ["1"]
    )
    assert sites.lost(other) == []
    with pytest.raises(RuntimeError, match=r"1 inserted DropBlock layer.*: 1\. .*insert after converting"):
        sites.find(model)


def test_inserting_after_converting_works():
    model = replace_by_sync_batch_norm(network())
    insert_dropblock(model, "1")
    assert list(sites.find(model)) == ["1", "3"]


def test_a_lost_site_is_noticed_below_another_model():
    inner = network()
    insert_dropblock(inner, "1")
    model = nn.ModuleDict({"backbone": inner})
    assert list(sites.find(model)) == ["backbone.1", "backbone.3"]
    replace_by_identity(inner)
    assert sites.lost(model) == ["backbone.1"]
    assert sites.lost(copy.deepcopy(model)) == ["backbone.1"]


class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self._checkpoint_wrapped_module = module

    def forward(self, x):
        return self._checkpoint_wrapped_module(x)


def test_a_module_that_was_wrapped_is_not_lost():
    model = network()
    insert_dropblock(model, "1")
    model[1] = Wrapper(model[1])
    assert list(sites.find(model)) == ["1._checkpoint_wrapped_module", "3"]


def test_a_module_with_two_names_is_one_site():
    shared = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 8, 3), shared, nn.Conv2d(8, 8, 3), shared)
    assert list(insert_dropblock(model, ["1", "3"])) == ["1"]
    assert list(sites.find(model)) == ["1"]
    assert len(sites.present(model)) == 2  # one layer, found twice


COPIES = [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))]


@pytest.mark.parametrize("copied", [*COPIES, lambda module: Wrapper(copy.deepcopy(module))])
@pytest.mark.parametrize("name", ["a", "a.1", "b.0"])
def test_a_part_that_was_replaced_by_its_copy_is_there(copied, name):
    model = nn.ModuleDict({"a": network(), "b": nn.Sequential(network())})
    insert_dropblock(model, ["*.1"], block_size=3, keep_prob=0.5)
    schedule = KeepProbSchedule(model, 2)
    model.set_submodule(name, copied(model.get_submodule(name)))
    schedule.step()
    schedule.step()
    layers = {site.layer for site in sites.find(model).values()}
    assert {layer.keep_prob for layer in layers} == {0.5, 0.9}
    assert len(layers) == 4
    assert remove_dropblock(model) == 2


def test_a_copy_elsewhere_is_no_substitute():
    model = nn.Sequential(network(), network())
    insert_dropblock(model, "0.1")
    model[1] = copy.deepcopy(model[0])
    assert list(sites.find(model)) == ["0.1", "0.3", "1.1", "1.3"]
    model[0] = network()
    assert sites.lost(model) == ["0.1"]
    model[0] = nn.Sequential(nn.Identity(), nn.Sequential(model[1][1]))
    assert sites.lost(model) == []


def test_a_member_is_no_substitute_for_its_container():
    model = nn.Sequential(nn.Sequential(network()))
    with pytest.warns(UserWarning, match="same feature map"):
        insert_dropblock(model, ["0", "0.0"])
    model[0] = nn.Sequential(copy.deepcopy(model[0][0]))
    assert sites.lost(model) == ["0"]


class Empty(nn.Module):
    """A module that is false, as one whose list of options is empty may be."""

    def __init__(self):
        super().__init__()
        self.drop = DropBlock2d(3, keep_prob=0.5)

    def __len__(self):
        return 0

    def forward(self, x):
        return self.drop(x)


class Falsy(Empty):
    __len__ = None

    def __bool__(self):
        return False


@pytest.mark.parametrize("kind", [Empty, Falsy])
def test_a_module_that_is_false_hides_nothing(kind):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), kind())
    insert_dropblock(model, "1", block_size=3, keep_prob=0.5)
    layers = [site.layer for site in sites.present(model)]
    assert len(layers) == len(sites.find(model)) == 2
    KeepProbSchedule(model, 2).step()
    assert [layer.keep_prob for layer in layers] == [0.75, 0.75]
    assert all(row.drops for row in dropblock_summary(model, (1, 3, 12, 12)).rows)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch.*", "ignore:.*:FutureWarning:torch.*")
@torch.no_grad()
def test_a_network_of_which_parts_are_compiled():
    torch._dynamo.reset()
    model = nn.Sequential(nn.Conv2d(3, 8, 3), DropBlock2d(3, keep_prob=0.5))
    insert_dropblock(model, "0", block_size=3, keep_prob=0.5)
    model[0] = torch.compile(model[0], backend="eager")
    schedule, x = KeepProbSchedule(model, 1), torch.randn(2, 3, 12, 12)
    assert (model(x) != 0).all()
    schedule.step()
    assert (model(x) == 0).float().mean() > 0.6
    assert all(row.drops for row in dropblock_summary(model, (1, 3, 12, 12)).rows)
    with mc_dropblock(model.eval()):
        assert not torch.equal(model(x), model(x))
    assert torch.equal(model(x), model(x))
    with pytest.raises(ValueError, match="since torch.compile has wrapped its module '0'"):
        remove_dropblock(model)
    torch._dynamo.reset()


def test_a_part_that_was_replaced_as_a_whole_is_lost():
    model = nn.ModuleDict({"a": network(), "b": nn.Sequential(network())})
    insert_dropblock(model, ["*.1"])
    model["b"][0] = network()
    assert sites.lost(model) == ["b.0.1"]
    model["b"] = nn.Identity()
    assert sites.lost(model) == ["b.0.1"]
    assert sites.lost(model["a"]) == []


def test_a_hook_that_moved_to_another_module_is_not_lost():
    """As `torch.ao.quantization.fuse_modules` moves hooks."""
    model = network()
    insert_dropblock(model, "1")
    (key, hook), fused = next(iter(model[1]._forward_hooks.items())), nn.Sequential(model[0], model[1])
    model[0], model[1] = fused, nn.Identity()
    del fused[1]._forward_hooks[key]
    fused._forward_hooks[key] = hook
    assert list(sites.find(model)) == ["0", "3"]


@pytest.mark.parametrize("inplace", [False, True])
def test_a_hook_that_moved_is_called_without_kwargs_and_removed(inplace):
    model = network()
    insert_dropblock(model, "2", block_size=3, keep_prob=0.5, inplace=inplace)
    (hook,), moved = sites.hooks_of(model[2]), nn.Identity()
    model[2]._forward_hooks.clear()
    moved.register_forward_hook(hook)
    model[2] = moved
    x = torch.ones(2, 8, 12, 12)
    assert (moved(x) == 0).any()
    assert torch.equal(x, torch.ones_like(x))
    assert remove_dropblock(model) == 1
    assert not moved._forward_hooks
    assert torch.equal(moved(x), x)


STAGES = ("fuse", "prepare", "train")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*quantize")
@pytest.mark.parametrize("insert_before", STAGES)
def test_eager_quantisation_before_and_after_insertion(insert_before):
    quantization = pytest.importorskip("torch.ao.quantization")
    engine = next(name for name in torch.backends.quantized.supported_engines if name in ("fbgemm", "qnnpack"))
    torch.backends.quantized.engine = engine
    model = quantization.QuantWrapper(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))
    model.qconfig = quantization.get_default_qat_qconfig(engine)
    x = torch.randn(2, 3, 12, 12)
    for stage in STAGES:
        if stage == insert_before:
            # what is fused is called at the last module before, at the first one after
            insert_dropblock(model, "module.2" if stage == "fuse" else "module.0", block_size=3, keep_prob=0.5)
        if stage == "fuse":
            quantization.fuse_modules_qat(model, [["module.0", "module.1", "module.2"]], inplace=True)
        elif stage == "prepare":
            quantization.prepare_qat(model, inplace=True)
    KeepProbSchedule(model, 2, curve="constant").step()
    assert (model(x) == 0).float().mean() > 0.62, "half is 0 for the ReLU"
    dropping = dropblock_summary(model, (1, 3, 12, 12))
    converted = quantization.convert(model.eval())
    assert torch.equal(converted(x), converted(x))
    assert [row.drops for row in dropping.rows] == [True]
    assert [row.drops for row in dropblock_summary(converted, (1, 3, 12, 12)).rows] == [False]
    with pytest.raises(ValueError, match="which must return a floating-point feature map"), mc_dropblock(converted):
        converted(x)
    assert remove_dropblock(converted) == remove_dropblock(model) == 1
    assert (model.train()(x) == 0).float().mean() < 0.62


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning")
def test_fusing_moves_a_layer_or_loses_it():
    quantization = pytest.importorskip("torch.ao.quantization")
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    insert_dropblock(model, "2", block_size=3, keep_prob=0.5)
    fused = quantization.fuse_modules(model, [["0", "1", "2"]])
    x = torch.randn(2, 3, 12, 12)
    assert list(sites.find(fused)) == ["0"]
    assert not torch.equal(fused.train()(x), fused(x))
    assert remove_dropblock(fused) == 1
    insert_dropblock(model, "1")
    assert sites.lost(quantization.fuse_modules(model, [["0", "1", "2"]])) == ["1"]


def test_the_record_keeps_no_module_alive():
    model = network()
    insert_dropblock(model, "1")
    old = weakref.ref(model[1])
    replace_by_identity(model)
    gc.collect()
    assert old() is None


def test_hooks_from_another_process_keep_their_keys(monkeypatch):
    """A key is a number that each process counts from 0, so a hook that comes later could take it."""
    monkeypatch.setattr(RemovableHandle, "next_id", 0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    insert_dropblock(model, "*")
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    monkeypatch.setattr(RemovableHandle, "next_id", 0)
    loaded = torch.load(file, weights_only=False)
    handles = [module.register_forward_hook(lambda *_: None) for module in loaded]
    dropblock_summary(loaded, (1, 3, 8, 8))
    for handle in handles:
        handle.remove()
    assert list(sites.find(loaded)) == ["0", "1"]


def test_a_hook_takes_no_key_that_a_moved_one_has_in_a_file(monkeypatch):
    """PyTorch registers it again, with a new key, of which the hook is told nothing."""
    model = nn.Sequential(nn.Identity(), nn.Identity())
    insert_dropblock(model, "0")
    (hook,) = sites.hooks_of(model[0])
    RemovableHandle.next_id += 10
    model[1].register_forward_hook(hook)
    file = pickle.dumps(model[1])
    monkeypatch.setattr(RemovableHandle, "next_id", 0)
    loaded = pickle.loads(file)
    assert RemovableHandle.next_id > max(loaded._forward_hooks)


def test_what_a_module_only_passes_on_is_never_written_into():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.shortcut = nn.Identity()

        def forward(self, x):
            shortcut = self.shortcut(x)
            return x.clone(), shortcut

    model = Residual()
    insert_dropblock(model, "shortcut", inplace=True, block_size=3, keep_prob=0.5)
    x, dropped = model(torch.ones(2, 8, 12, 12))
    assert torch.equal(x, torch.ones_like(x))
    assert (dropped == 0).any()


class First(nn.Module):
    def forward(self, x):
        return x[0]


class Named(nn.Module):
    def forward(self, *, image):
        return image


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(
    ("build", "call"),
    [
        (lambda: nn.Unflatten(2, (8, 8)), lambda module, x: module(x.flatten(2))),
        (First, lambda module, x: module([x])),
        (First, lambda module, x: module(x.expand(1, *x.shape))),
        (Named, lambda module, x: module(image=x)),
    ],
)
def test_nor_is_a_view_of_it_nor_what_was_given_by_name(build, call, inference):
    model = nn.Sequential(build())
    insert_dropblock(model, "0", inplace=True, block_size=3, keep_prob=0.5)
    with torch.inference_mode(inference):
        x = torch.ones(2, 8, 8, 8)
        dropped = call(model[0], x)
        assert torch.equal(x, torch.ones_like(x))
        assert (dropped == 0).any()


def test_a_removal_from_a_part_is_no_loss():
    model = nn.Sequential(network(), network())
    insert_dropblock(model, "*.1", keep_prob=0.8)
    schedule = KeepProbSchedule(model, 10)
    assert remove_dropblock(model[0]) == 1
    assert list(sites.find(model)) == ["0.3", "1.1", "1.3"]
    with pytest.raises(RuntimeError, match="were lost: their hooks, or the modules"):
        schedule.step()
    insert_dropblock(model[0], "1")
    KeepProbSchedule(model, 10).step()
    assert remove_dropblock(model) == 2


def test_what_was_inserted_is_known_in_a_network_built_of_the_parts_of_another():
    model = nn.ModuleDict({"a": network(), "b": network()})
    insert_dropblock(model, "*.1")
    rebuilt = nn.Sequential(*model.values())
    assert list(sites.find(rebuilt)) == ["0.1", "0.3", "1.1", "1.3"]
    replace_by_identity(rebuilt[1])
    assert sites.lost(rebuilt) == ["1.1"]


def test_a_member_of_a_sequential_that_moves_up_is_not_lost():
    model = network()
    insert_dropblock(model, "1")
    del model[0]
    assert list(sites.find(model)) == ["0", "2"]


def test_a_site_without_its_hook_is_lost():
    model = network()
    insert_dropblock(model, "1")
    model[1]._forward_hooks.clear()
    assert sites.lost(model) == ["1"]


@pytest.mark.parametrize("name", ["a.b", "module.a.b", "_orig_mod.a.b", "module._orig_mod.a._fsdp_wrapped_module.b"])
def test_canonical(name):
    assert sites.canonical(name) == "a.b"


def test_attach_is_all_or_nothing():
    model = network()
    with pytest.raises(ValueError, match="is a DropBlock layer itself"):
        sites.attach(model, {"1": DropBlock2d(3), "3": DropBlock2d(3)})
    assert not model[1]._forward_hooks
    assert sites.RECORD not in vars(model)


class Residual(nn.Module):
    """A module that `torch.fx` takes apart."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x)


@pytest.mark.parametrize("where", ["1", "1.conv", ""], ids=["no leaf", "leaf", "in the tree"])
def test_a_trace_has_the_layer_with_its_mode_and_keep_prob(where):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Residual())
    if where:
        insert_dropblock(model, where, block_size=3, keep_prob=0.5)
    else:
        model.append(DropBlock2d(3, keep_prob=0.5))
    keys = model.state_dict().keys()
    traced = fx.symbolic_trace(model)
    assert model.state_dict().keys() == traced.state_dict().keys() == keys
    x = torch.randn(2, 3, 12, 12)
    traced.eval()
    model.eval()
    assert torch.equal(traced(x), model(x))
    traced.train()
    assert not torch.equal(traced(x), traced(x))
    (site,) = sites.present(traced)
    site.layer.keep_prob = 1.0
    assert torch.equal(traced(x), traced(x))
    assert len(sites.present(model)) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_compiled_code_reads_follows_the_input_to_its_device(monkeypatch):
    """A CUDA graph has no place for a tensor of the CPU; here the device "meta" is the GPU."""
    monkeypatch.setattr(choice, "solves_gamma", lambda device: device.type == "meta")
    torch._dynamo.reset()
    model = network()
    (inserted,) = insert_dropblock(model, ["0"], block_size=3).values()
    layers, graphs = (inserted, model[3]), []
    function = torch.compile(model, backend=lambda graph, _: graphs.append(graph) or graph, fullgraph=True)
    x = torch.rand(2, 3, 16, 16)
    function(x)
    assert {layer._keep_prob_tensor.device.type for layer in layers} == {"cpu"}
    model.to("meta")  # which tells the inserted layer nothing
    function(x.to("meta"))
    assert {layer._keep_prob_tensor.device.type for layer in layers} == {"meta"}
    assert type(inserted._keep_prob_tensor) is torch.Tensor
    for strength in (0.2, 0.5, 1.0):
        for layer in layers:
            layer.set_strength(strength)
        function(x.to("meta"))
    assert len(graphs) == 2, "a schedule leaves the device alone"
    assert inserted.keep_prob == 0.9
    torch._dynamo.reset()
