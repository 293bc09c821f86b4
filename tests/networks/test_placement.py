"""docs/placement.md and docs/recipes.md: every block of code runs by itself, and shows what the page says."""

import contextlib
import copy
import io
import math
import os
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from torch_dropblock import KeepProbSchedule, insert_dropblock, insert_dropblock_resnet, remove_dropblock
from torch_dropblock.networks import sites

timm = pytest.importorskip("timm", reason="the page has its ResNet")
torchvision = pytest.importorskip("torchvision", reason="the page has its networks")

DOCS = Path(__file__).parents[2] / "docs"
PAGE = "\n".join(DOCS.joinpath(f"{page}.md").read_text(encoding="utf-8") for page in ("placement", "recipes"))
# the code under each heading, of which none has two blocks
CODE = dict(re.findall(r"^##+ ([^\n]+)\n(?:(?!^##).)*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))

# the plans that recipes of one line print
PLANS = dict(re.findall(r"^### ([^\n]+)\n+```python\n[^`]*```\n+```text\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))

RESNET50_BLOCKS = {3: 6, 4: 3}
RESNET50 = {
    f"layer{group}.{block}.{place}": {3: 0.975, 4: 0.9}[group]
    for group, blocks in RESNET50_BLOCKS.items()
    for block in range(blocks)
    for place in ("bn1", "bn2", "bn3", "downsample")
}
PYRAMID = [f"backbone.fpn.layer_blocks.{level}" for level in range(3)]
ASPP = [f"classifier.0.convs.{branch}" for branch in range(4)]
# the name of each module that is to be followed by a layer, with the keep_prob to which it is scheduled
SITES = {
    "ResNet": RESNET50,
    "Few-shot ResNet-12": dict.fromkeys(["blocks.2", "blocks.3"], 0.9),
    "RetinaNet": {f"backbone.body.{name}": kept for name, kept in RESNET50.items()} | dict.fromkeys(PYRAMID, 0.95),
    "DeepLabV3": dict.fromkeys([*ASPP, "classifier.2"], 0.9),
    "U-Net": dict.fromkeys(["bottleneck", "decoders.0"], 0.9),
    "Time series": dict.fromkeys([f"{b}.{place}" for b in (1, 2) for place in ("norm1", "norm2", "shortcut")], 0.9),
    "Volumes and video": {
        f"layer{group}.{place}": kept
        for group, kept in ((3, 0.975), (4, 0.9))
        for place in ("0.conv1", "0.conv2", "0.downsample", "1.conv1", "1.conv2")
    },
}
INPUTS = {
    "ResNet": lambda: torch.randn(2, 3, 96, 96),
    "Few-shot ResNet-12": lambda: torch.randn(2, 3, 84, 84),
    "RetinaNet": lambda: torch.randn(2, 3, 128, 128),
    "DeepLabV3": lambda: torch.randn(2, 3, 96, 96),
    "U-Net": lambda: torch.randn(2, 1, 64, 64),
    "Time series": lambda: torch.randn(2, 4, 256),
    "Volumes and video": lambda: torch.randn(2, 3, 8, 56, 56),
}
SHAPES = {
    "ResNet": (2, 10),
    "Few-shot ResNet-12": (2, 640 * 5 * 5),
    "RetinaNet": (2, 9 * (16**2 + 8**2 + 4**2 + 2**2 + 1), 3),
    "DeepLabV3": (2, 5, 96, 96),
    "U-Net": (2, 2, 64, 64),
    "Time series": (2, 5),
    "Volumes and video": (2, 4),
}
# the number of steps that the code of a recipe takes, of how many
STEPS = {"ResNet": (4, 4), "Few-shot ResNet-12": (1, 40_000)}

# headings of docs/placement.md
NAMES, ORDER = "Choose modules by name", "Convert first, then insert, then wrap"
CHECKPOINTS, FROZEN = "Checkpoints are those of the plain network", "Frozen batch norms switch layers off"

recipes = pytest.mark.parametrize("recipe", SITES)


def forward(recipe, model, x):
    """What the network computes of a batch; of a detector the logits, since its detections may be none."""
    if recipe == "RetinaNet":
        return model.head(list(model.backbone(x).values()))["cls_logits"]
    y = model(x)
    return y["out"] if recipe == "DeepLabV3" else y


def plain(recipe, code):
    """The same network, built again and without layers."""
    models = torchvision.models
    return {
        "ResNet": lambda: models.resnet50(weights=None, num_classes=10),
        "Few-shot ResNet-12": lambda: code["ResNet12"](),
        "RetinaNet": lambda: models.detection.retinanet_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=3, min_size=128, max_size=128
        ),
        "DeepLabV3": lambda: models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=5),
        "U-Net": lambda: code["UNet"](),
        "Time series": lambda: nn.Sequential(
            code["Residual"](4, 32, stride=2),
            code["Residual"](32, 64, stride=2),
            code["Residual"](64, 64, stride=1),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(64, 5),
        ),
        "Volumes and video": lambda: models.video.r3d_18(weights=None, num_classes=4),
    }[recipe]()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What the code under a heading leaves behind; it runs once."""
    done = {}

    def run(heading):
        if heading not in done:
            torch.manual_seed(0)
            before = Path.cwd()
            os.chdir(tmp_path_factory.mktemp("page"))
            try:
                exec(compile(CODE[heading], f"docs, {heading}", "exec"), names := {})
            finally:
                os.chdir(before)
            done[heading] = names
        return done[heading]

    return run


def outputs(model, names):
    """What the modules of these names return from now on, their layers included."""
    seen = {name: [] for name in names}
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda _module, _args, y, name=name: seen[name].append(y))
    return seen


def test_the_page_has_no_other_code():
    assert PAGE.count("```python") == len(CODE)
    rest = {"Any network", NAMES, ORDER, CHECKPOINTS, FROZEN}
    assert CODE.keys() == SITES.keys() | PLANS.keys() | rest
    assert len(PLANS) == 10


@pytest.mark.parametrize("heading", [heading for heading in CODE if heading not in PLANS])
def test_code(run, heading):
    assert run(heading)


# one of each kind: convolutions, tokens, a detector, a decoder, a signal
QUICK = ("ConvNeXt", "Vision transformer", "YOLO", "Segmentation", "Speech")


@pytest.mark.parametrize(
    "heading", [name if name in QUICK else pytest.param(name, marks=pytest.mark.sweep) for name in PLANS]
)
def test_plan_of_one_line(run, heading):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run(heading)
    assert printed.getvalue() == PLANS[heading]


@pytest.mark.parametrize(
    ("heading", "shape"), [("YOLO", (2, 3, 64, 64)), ("Segmentation", (2, 1, 64, 64)), ("Speech", (2, 80, 400))]
)
def test_training_step_of_one_line(run, heading, shape):
    model = copy.deepcopy(run(heading)["model"]).train()
    x = torch.randn(shape)
    outputs, again = (y if isinstance(y := model(x), list) else [y] for _ in range(2))
    assert not torch.equal(outputs[0], again[0])
    sum(y.square().mean() for y in outputs).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_any_network(run):
    kept = {name: layer.keep_prob for name, layer in run("Any network")["layers"].items()}
    assert {name.rpartition(".")[0]: value for name, value in kept.items()} == pytest.approx(
        {"features.4": 0.975, "features.5": 0.975, "features.6": 0.9, "features.7": 0.9}
    )


@recipes
def test_sites(run, recipe):
    found = sites.find(run(recipe)["model"])
    assert {name: site.layer.target_keep_prob for name, site in found.items()} == pytest.approx(SITES[recipe])


@recipes
def test_every_layer_drops_in_training_alone_and_what_comes_out_has_its_shape(run, recipe):
    model = copy.deepcopy(run(recipe)["model"])
    found = sites.find(model)
    for site in found.values():
        site.layer.keep_prob, site.layer.rate = 0.0, "exact"  # nothing is left of what a layer acts on
    seen = outputs(model, found)
    with torch.no_grad():
        y = forward(recipe, model.train(), INPUTS[recipe]())
    assert y.shape == SHAPES[recipe]
    assert all(len(maps) == 1 and not maps[0].any() for maps in seen.values())
    seen = outputs(model, found)
    with torch.no_grad():
        forward(recipe, model.eval(), INPUTS[recipe]())
    assert all(len(maps) == 1 and maps[0].any() for maps in seen.values())


@recipes
def test_weights_go_both_ways_and_evaluation_is_that_of_the_plain_network(run, recipe):
    model, other = copy.deepcopy(run(recipe)["model"]), plain(recipe, run(recipe))
    other.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(other.state_dict(), strict=True)
    x = INPUTS[recipe]()
    with torch.no_grad():
        assert torch.equal(forward(recipe, model.eval(), x), forward(recipe, other.eval(), x))
        assert remove_dropblock(model) == len(SITES[recipe])
        assert torch.equal(forward(recipe, model, x), forward(recipe, other, x))


@recipes
def test_training(run, recipe):
    code = run(recipe)
    steps, total = STEPS.get(recipe, (1, 1000))
    assert math.isfinite(code["loss"].item())
    assert all(parameter.grad.isfinite().all() for parameter in code["model"].parameters())
    assert (code["schedule"].steps, code["schedule"].total_steps) == (steps, total)
    for name, site in sites.find(code["model"]).items():
        assert site.layer.keep_prob == pytest.approx(1 - (1 - SITES[recipe][name]) * steps / total)


# What the text says beside the code


def test_resnet_of_timm_and_of_the_last_group():
    assert insert_dropblock_resnet(timm.create_model("resnet50", num_classes=10)).keys() == RESNET50.keys()
    last = insert_dropblock_resnet(torchvision.models.resnet50(weights=None), groups=(4,))
    assert last.keys() == {name for name in RESNET50 if name.startswith("layer4.")}


@pytest.mark.parametrize(
    ("recipe", "sizes"),
    [
        ("Few-shot ResNet-12", {"blocks.2": (10, 10), "blocks.3": (5, 5)}),
        ("DeepLabV3", dict.fromkeys(SITES["DeepLabV3"], (12, 12))),
        ("U-Net", {"bottleneck": (8, 8), "decoders.0": (16, 16)}),
        ("Time series", dict.fromkeys(SITES["Time series"], (64,))),
    ],
)
def test_sizes_of_maps(run, recipe, sizes):
    model = copy.deepcopy(run(recipe)["model"])
    seen = outputs(model, sizes)
    forward(recipe, model.eval(), INPUTS[recipe]())
    assert {name: tuple(maps[0].shape[2:]) for name, maps in seen.items()} == sizes


def test_block_of_the_size_of_the_map_takes_whole_channels(run):
    model = copy.deepcopy(run("Few-shot ResNet-12")["model"])
    sites.find(model)["blocks.3"].layer.keep_prob = 0.5
    seen = outputs(model, ["blocks.3"])
    model.train()(INPUTS["Few-shot ResNet-12"]())
    dropped = (seen["blocks.3"][0] == 0).flatten(2)
    assert 0 < dropped.float().mean() < 1
    assert torch.equal(dropped.all(2), dropped.any(2))


def test_heads_of_a_detector_drop_at_each_level(run):
    model = copy.deepcopy(run("RetinaNet")["model"]).train()
    found = insert_dropblock(model, "head.*_head.conv.?", block_size=7, keep_prob=0.5)
    assert len(found) == 8
    seen = outputs(model, found)
    forward("RetinaNet", model, INPUTS["RetinaNet"]())  # the logits alone, but all of the head runs
    for maps in seen.values():
        assert [tuple(y.shape[2:]) for y in maps] == [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]
        for small in maps[2:]:  # the convolution is followed by a ReLU: of the units above zero some stay
            assert 0 < (small.flatten(2) > 0).any(2).float().mean() < 1


def test_pattern_of_whole_heads_is_refused_when_they_run(run):
    model = copy.deepcopy(run("RetinaNet")["model"])
    with pytest.warns(UserWarning, match="the container .* and its last member"):
        insert_dropblock(model, "head.*")
    with pytest.raises((TypeError, ValueError), match="must return a floating-point feature map"):
        forward("RetinaNet", model, INPUTS["RetinaNet"]())


def test_head_for_segmentation(run):
    model = run("DeepLabV3")["model"]
    dropout = model.classifier[0].project[3]
    assert isinstance(dropout, nn.Dropout)
    assert dropout.p == 0.5
    assert len(insert_dropblock_resnet(copy.deepcopy(model).backbone)) == 36
    with torch.device("meta"):
        backbone = torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None).backbone
        assert backbone.eval()(torch.empty(1, 3, 520, 520))["out"].shape[2:] == (65, 65)


def test_identity_is_a_shortcut_with_a_name(run):
    model = run("Time series")["model"]
    assert isinstance(model[2].shortcut, nn.Identity)
    assert "2.shortcut" in sites.find(model)


def test_names(run):
    code = run(NAMES)
    assert code["blocks"].keys() == {"layer4.0", "layer4.1"}
    assert list(code["convolutions"]) == [f"layer4.{block}.conv{number}" for block in (0, 1) for number in (1, 2)]
    norms = Counter(name.split(".")[0] for name in code["norms"])
    assert norms == {"layer3": 4, "layer4": 4}
    assert all(name[-3:] in ("bn1", "bn2") for name in code["norms"])
    assert code["removed"] == 8
    assert code["downsampling"].keys() == {"layer2.0.conv1", "layer3.0.conv1", "layer4.0.conv1"}
    deep = insert_dropblock(torchvision.models.resnet101(weights=None), "layer3.*.bn?")
    assert "layer3.10.bn3" in deep


def test_layer_of_the_network_stays():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    model.append(insert_dropblock(nn.Sequential(nn.ReLU()), "0")["0"])
    insert_dropblock(model, "1")
    assert remove_dropblock(model) == 1
    assert len(sites.find(model)) == 1


def test_converting_comes_first(run):
    model = run(ORDER)["model"]
    assert isinstance(model.layer4[0].bn1, nn.SyncBatchNorm)
    assert len(sites.find(model)) == 12
    late = torchvision.models.resnet18(weights=None)
    insert_dropblock_resnet(late)
    late = nn.SyncBatchNorm.convert_sync_batchnorm(late)
    with pytest.raises(RuntimeError, match=r"layer4\.1\.bn2"):
        KeepProbSchedule(late, 1000)
    with pytest.raises(RuntimeError, match=r"layer4\.1\.bn2"):
        remove_dropblock(late)


def test_wrapping_comes_last(run):
    wrapped = torch.compile(copy.deepcopy(run("U-Net")["model"]))
    with pytest.raises(ValueError, match=r"torch\.compile"):
        insert_dropblock(wrapped, "*.decoders.1")
    assert len(KeepProbSchedule(wrapped, 1000).state_dict()["keep_prob"]) == 2


def test_checkpoint(run):
    model, plain = (run(CHECKPOINTS)[name] for name in ("model", "plain"))
    assert len(sites.find(model)) == 12
    assert not sites.find(plain)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])


def test_frozen_norms_turn_layers_off():
    model = torchvision.models.resnet18(weights=None)
    insert_dropblock_resnet(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    schedule = KeepProbSchedule(model, 1000)
    with pytest.warns(UserWarning, match="8 of its 12 DropBlock layers are not"):
        schedule.step()


def test_layers_of_frozen_norms_are_switched_by_themselves(run):
    code = run(FROZEN)
    model, set_mode, x = code["model"], code["set_mode"], torch.randn(2, 3, 64, 64)
    assert not model.layer4[0].bn1.training
    assert all(site.training for site in sites.find(model).values())
    KeepProbSchedule(model, 1, curve="constant").step()  # does not warn
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert not torch.equal(model(x), model(x)), "the page says that layers left in training mode go on dropping"
    set_mode(training=False)
    assert torch.equal(model(x), model(x))


def test_frozen_norms_of_torchvision_and_whole_blocks_need_nothing():
    frozen = torchvision.models.resnet18(weights=None, norm_layer=torchvision.ops.FrozenBatchNorm2d)
    insert_dropblock_resnet(frozen)
    blocks = torchvision.models.resnet18(weights=None)
    insert_dropblock(blocks, "layer4.?")
    for module in blocks.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    for model in (frozen, blocks):
        assert all(site.training for site in sites.find(model).values())
        KeepProbSchedule(model, 1000).step()  # does not warn
        assert not any(site.training for site in sites.find(model.eval()).values())
