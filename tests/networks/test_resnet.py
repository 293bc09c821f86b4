"""The paper's placement in the ResNets of torchvision and timm."""

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch._dynamo.utils import counters

from torch_dropblock import (
    KeepProbSchedule,
    insert_dropblock,
    insert_dropblock_resnet,
    insert_dropblock_stages,
    remove_dropblock,
)
from torch_dropblock.networks import sites

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:torch.*"),
]

BUILDERS = {
    "torchvision resnet18": (lambda: torchvision.models.resnet18(num_classes=10), 12),
    "torchvision resnet50": (lambda: torchvision.models.resnet50(num_classes=10), 36),
    "torchvision resnext50": (lambda: torchvision.models.resnext50_32x4d(num_classes=10), 36),
    "torchvision wide resnet50": (lambda: torchvision.models.wide_resnet50_2(num_classes=10), 36),
    "torchvision resnet101": (lambda: torchvision.models.resnet101(num_classes=10), 104),
    "timm resnet18": (lambda: timm.create_model("resnet18", num_classes=10), 12),
    "timm resnet34": (lambda: timm.create_model("resnet34", num_classes=10), 27),
    "timm resnet50": (lambda: timm.create_model("resnet50", num_classes=10), 36),
    "timm resnet50d": (lambda: timm.create_model("resnet50d", num_classes=10), 36),
    "timm seresnet50": (lambda: timm.create_model("seresnet50", num_classes=10), 36),
    "timm resnext50": (lambda: timm.create_model("resnext50_32x4d", num_classes=10), 36),
    "timm resnest14d": (lambda: timm.create_model("resnest14d", num_classes=10), 8),
    "timm legacy seresnet18": (lambda: timm.create_model("legacy_seresnet18", num_classes=10), 12),
    "timm legacy seresnet50": (lambda: timm.create_model("legacy_seresnet50", num_classes=10), 36),
    "timm wide resnet50": (lambda: timm.create_model("wide_resnet50_2", num_classes=10), 36),
}
RESNET50 = ["torchvision resnet50", "timm resnet50"]
ONE_OF_THEM = ["timm resnet50", pytest.param("torchvision resnet50", marks=pytest.mark.sweep)]


@pytest.mark.parametrize("name", BUILDERS)
def test_sites_and_strengths(name):
    build, count = BUILDERS[name]
    with torch.device("meta"):
        model = build()
    inserted = insert_dropblock_resnet(model, keep_prob=0.9, block_size=7)
    assert len(inserted) == count
    for place, layer in inserted.items():
        group, _, where = place.split(".")
        assert layer.keep_prob == pytest.approx({"layer3": 0.975, "layer4": 0.9}[group], abs=1e-15)
        assert layer.block_size == 7
        assert where in ("bn1", "bn2", "bn3", "downsample")
    for group in ("layer3", "layer4"):
        for number, block in getattr(model, group).named_children():
            convolutions = sum(name.startswith("conv") for name, _ in block.named_children())
            assert sum(place.startswith(f"{group}.{number}.") for place in inserted) == convolutions + 1


@pytest.mark.parametrize("name", ["torchvision resnet18", *ONE_OF_THEM])
def test_checkpoints_fit_both_ways(name):
    build, count = BUILDERS[name]
    model, plain = build(), build()
    insert_dropblock_resnet(model)
    model.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.eval()(x), plain.eval()(x))
    assert remove_dropblock(model) == count
    assert repr(model) == repr(build())
    for group in (model.layer3, model.layer4):
        for block in group:
            assert "downsample" in (vars(block) if block.downsample is None else block._modules)


@pytest.mark.parametrize("name", ["res2net50_26w_4s", "resnest14d", "legacy_seresnet18", "legacy_seresnet50"])
def test_relatives_of_the_resnet(name):
    """Every place runs once, and the shortcuts of identities too."""
    model = timm.create_model(name, num_classes=10)
    plain = {key: value.clone() for key, value in model.state_dict().items()}
    inserted = insert_dropblock_resnet(model)
    for layer in inserted.values():
        layer.keep_prob = 0.0
    blocks = [block for group in (model.layer3, model.layer4) for block in group]
    norms = [[n for n, m in block.named_modules() if n.startswith("bn") and not isinstance(m, nn.ModuleList)
              and "." not in n.removeprefix("bns.")] for block in blocks]  # fmt: skip
    assert len(inserted) == sum(map(len, norms)) + len(blocks)
    ran = dict.fromkeys(inserted, 0)
    for place in inserted:

        def count(_module, _args, output, place=place):
            ran[place] += int(not output.any())

        model.get_submodule(place).register_forward_hook(count)
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert set(ran.values()) == {1}
    assert remove_dropblock(model) == len(inserted)
    model.load_state_dict(plain, strict=True)


def test_a_network_in_evaluation_stays_what_it_is():
    model = torchvision.models.resnet18().eval()
    model.layer4.train()
    modes = [module.training for module in model.modules()]
    x = torch.randn(2, 3, 64, 64)
    insert_dropblock_resnet(model, keep_prob=0.5, block_size=3)
    assert {name: site.training for name, site in sites.find(model).items()} == {
        name: name.startswith("layer4") for name in sites.find(model)
    }
    model.eval()
    assert torch.equal(model(x), model(x))
    assert remove_dropblock(model) == 12
    assert len(modes) == len(list(model.modules()))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", ONE_OF_THEM)
def test_a_training_step(name, inplace):
    model = BUILDERS[name][0]()
    insert_dropblock_resnet(model, block_size=3, inplace=inplace)
    x = torch.randn(2, 3, 64, 64)
    assert not torch.equal(model(x), model(x))
    nn.functional.cross_entropy(model(x), torch.tensor([1, 2])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_every_site_drops_what_it_is_to_drop():
    """The outputs of the norms and shortcuts, as the next module sees them."""
    model = torchvision.models.resnet18(num_classes=10)
    inserted = insert_dropblock_resnet(model, keep_prob=0.6, block_size=2)
    shares = {}

    def record(name):
        return lambda module, args, output: shares.update({name: (output == 0).float().mean().item()})

    for name in inserted:
        model.get_submodule(name).register_forward_hook(record(name))
    model(torch.randn(16, 3, 64, 64))
    assert shares.keys() == inserted.keys()
    for name, share in shares.items():
        if "1.downsample" not in name:  # what an identity passes on was rectified before
            assert share == pytest.approx(0.4 if "layer4" in name else 0.1, abs=0.03), name


def test_an_identity_shortcut_is_never_written_into():
    inserted = insert_dropblock_resnet(torchvision.models.resnet50(), inplace=True)
    identities = {name for name, layer in inserted.items() if not layer.inplace}
    assert identities == {f"layer{group}.{i}.downsample" for group, n in ((3, 6), (4, 3)) for i in range(1, n)}


def test_what_another_norm_returns_is_never_written_into():
    model = timm.create_model("resnet50_gn", num_classes=10)
    inserted = insert_dropblock_resnet(model)
    assert len(inserted) == 36
    assert not any(layer.inplace for layer in inserted.values())
    model(torch.randn(2, 3, 64, 64)).sum().backward()


@pytest.mark.parametrize("groups", [(4,), [2, 3, 4], (4, 1)])
def test_groups(groups):
    inserted = insert_dropblock_resnet(torchvision.models.resnet18(), keep_prob=0.5, groups=groups)
    assert {int(name[5]) for name in inserted} == set(groups)
    for name, layer in inserted.items():
        assert layer.keep_prob == 1 - 0.5 / 4 ** (4 - int(name[5]))


def test_options_of_the_layer():
    options = {"block_size": (3, 5), "rate": "paper", "share_channels": True}
    for layer in insert_dropblock_resnet(torchvision.models.resnet18(), **options).values():
        assert {name: getattr(layer, name) for name in options} == options


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"groups": ()}, ValueError),
        ({"groups": (0, 4)}, ValueError),
        ({"groups": (4, 4)}, ValueError),
        ({"groups": (3.0, 4)}, TypeError),
        ({"groups": (True,)}, TypeError),
        ({"groups": ([3], 4)}, TypeError),
        ({"groups": "34"}, TypeError),
        ({"groups": 4}, TypeError),
        ({"keep_prob": -0.1}, ValueError),
        ({"block_size": 0}, ValueError),
        ({"inplace": None}, TypeError),
    ],
)
def test_bad_options_change_nothing(options, error):
    model = torchvision.models.resnet18()
    tree = repr(model)
    with pytest.raises(error):
        insert_dropblock_resnet(model, **options)
    assert repr(model) == tree
    assert not sites.present(model)


@pytest.mark.parametrize(
    "build",
    [torchvision.models.vgg11, lambda: timm.create_model("resnetv2_18"), lambda: nn.Sequential(nn.Conv2d(3, 3, 3))],
)
def test_another_network_is_refused(build):
    with torch.device("meta"):
        model = build()
    with pytest.raises(ValueError, match=r"has no group layer\d of .*; insert_dropblock_stages\(model, .* any network"):
        insert_dropblock_resnet(model)


def test_blocks_that_are_not_known_are_named_with_the_calls_that_take_them():
    model = timm.create_model("skresnet18", num_classes=10)
    with pytest.raises(ValueError, match=r"are SelectiveKernelBasic of timm\.models\.sknet, .*not known") as error:
        insert_dropblock_resnet(model)
    assert "insert_dropblock_stages(model, (1, 3, 224, 224))" in str(error.value)
    names = insert_dropblock(model, ["layer3.?", "layer4.?"])
    assert "insert_dropblock(model, ['layer3.?', 'layer4.?'])" in str(error.value)
    remove_dropblock(model)
    assert insert_dropblock_stages(model, (1, 3, 64, 64)).keys() == names.keys()


def test_a_block_with_a_forward_of_its_own_is_refused():
    class Block(torchvision.models.resnet.BasicBlock):
        def forward(self, x):
            return self.conv1(x)

    class OtherName(torchvision.models.resnet.BasicBlock):
        pass

    model = torchvision.models.resnet18()
    model.layer4[1] = Block(512, 512)
    with pytest.raises(ValueError, match="the blocks of ResNet.layer4 are BasicBlock of .* and Block of"):
        insert_dropblock_resnet(model)
    model.layer4[1] = OtherName(512, 512)
    assert len(insert_dropblock_resnet(model)) == 12


def test_a_second_insertion_is_refused_and_changes_nothing():
    model = torchvision.models.resnet18()
    insert_dropblock(model, "layer4.1.bn2")
    tree = repr(model)
    with pytest.raises(ValueError, match="'layer4.1.bn2'.* has an inserted DropBlock layer already"):
        insert_dropblock_resnet(model)
    assert repr(model) == tree
    assert model.layer4[1].downsample is None
    assert len(sites.present(model)) == 1


def test_a_network_with_layers_of_timm_is_refused():
    model = timm.create_model("resnet18", drop_block_rate=0.1)
    with pytest.raises(ValueError, match=r"drop_block is a DropBlock2d already; .*convert_dropblock"):
        insert_dropblock_resnet(model)
    assert not sites.present(model)


def test_the_backbone_of_a_detector():
    with torch.device("meta"):
        model = torchvision.models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None)
    with pytest.raises(ValueError, match=r"RetinaNet has no group layer3 of .*; its part model.backbone.body has"):
        insert_dropblock_resnet(model)
    assert len(insert_dropblock_resnet(model.backbone.body)) == 36
    assert len(sites.find(model)) == 36


@pytest.mark.sweep
@pytest.mark.parametrize(("name", "groups"), [("torchvision resnet18", (4,)), *((name, (3, 4)) for name in RESNET50)])
def test_a_schedule_over_20_steps_compiles_once(name, groups):
    model = BUILDERS[name][0]()
    layers = insert_dropblock_resnet(model, block_size=3, groups=groups)
    if groups == (4,):  # compile one group alone, in a fifth of the time
        model = nn.Sequential(nn.Conv2d(3, 256, 3), model.layer4, model.avgpool, nn.Flatten(), model.fc)
    schedule = KeepProbSchedule(model, 20)
    torch._dynamo.reset()
    counters.clear()
    backends = []

    compiled = torch.compile(model, backend=lambda graph, _: backends.append(graph) or graph, fullgraph=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(20):
        nn.functional.cross_entropy(compiled(torch.randn(2, 3, 32, 32)), torch.tensor([1, 2])).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    assert len(backends) == counters["stats"]["unique_graphs"] == 1
    assert {round(layer.keep_prob, 12) for layer in layers.values()} == {0.9, *((0.975,) if 3 in groups else ())}


def test_groups_are_taken_in_the_order_of_the_network():
    names = list(insert_dropblock_resnet(torchvision.models.resnet18(), groups=(4, 3)))
    assert names[0].startswith("layer3")
    assert names[-1].startswith("layer4")


def test_inplace_is_checked():
    with pytest.raises(TypeError, match="^inplace must be True or False"):
        insert_dropblock_resnet(torchvision.models.resnet18(), inplace=3)
