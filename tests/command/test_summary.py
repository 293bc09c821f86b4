"""`torch-dropblock summary`, as a user reads it."""

import pytest

from helpers.command import complaint, succeed, table_rows
from torch_dropblock.command import summary
from torch_dropblock.networks import schedule


@pytest.mark.parametrize(
    ("model", "count", "rows"),
    [
        (
            "torchvision:resnet50", 36,
            [
                ["layer3.0.bn1", "28×28", "7×7", "0.975", "0.0008398", "2.5%", "train"],
                ["layer3.*: 23 layers", "14×14", "7×7", "0.975", "0.001592", "2.5%", "train"],
                ["layer4.0.bn1", "14×14", "7×7", "0.9", "0.006764", "10.0%", "train"],
                ["layer4.*: 11 layers", "7×7", "7×7", "0.9", "0.1", "10.0%", "train"],
            ],
        ),
        (
            "timm:resnet18", 12,
            [
                ["layer3.*: 6 layers", "14×14", "7×7", "0.975", "0.001592", "2.5%", "train"],
                ["layer4.*: 6 layers", "7×7", "7×7", "0.9", "0.1", "10.0%", "train"],
            ],
        ),
    ],
)  # fmt: skip
def test_a_resnet_gets_the_papers_placement(model, count, rows):
    out = succeed("summary", model)
    assert out.splitlines()[0] == model
    assert table_rows(out) == rows
    assert out.endswith(f"{count} of {count} layers drop.\n")
    assert max(map(len, out.splitlines())) <= 80


def test_modules_whose_channels_come_last_are_told():
    """By their types and by their shapes: LayerNorm of timm has a forward of its own."""
    out = succeed("summary", "timm:convnext_tiny", "-w", "stages.3.blocks.0.*", "-i", "1x3x64x64")
    assert "for 8 of them look at the column check." in " ".join(out.split())
    assert "last: the channels come last, as in stages.3.blocks.0.norm" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80


def test_where_and_options():
    options = ("-w", "features.2[08]", "-i", "2x3x64x48", "-b", "3x5", "-k", "0.8", "--rate", "paper")
    rows = table_rows(succeed("summary", "torchvision:vgg11_bn", *options))
    assert [row[:4] for row in rows] == [["features.20", "8×6", "3×5", "0.8"], ["features.28", "2×1", "2×1*", "0.8"]]


def test_stages_of_any_network():
    rows = table_rows(succeed("summary", "timm:convnext_atto", "--stages", "2", "-i", "1x3x64x64", "-b", "3"))
    assert rows == [
        ["stages.2.blocks.*: 6 layers", "4×4", "3×3", "0.975", "0.01122", "2.5%", "train"],
        ["stages.3.blocks.0", "2×2", "2×2*", "0.9", "0.1", "10.0%", "train"],
        ["stages.3.blocks.1", "2×2", "2×2*", "0.9", "0.1", "10.0%", "train"],
    ]


def test_modules_are_the_candidates():
    out = succeed("summary", "torchvision:squeezenet1_1", "--modules", "-i", "1x3x64x64")
    assert ["features.3", "Fire", "15×15"] in table_rows(out)
    assert out.endswith("modules return maps; insert_dropblock(model, names) takes them by name.\n")


def test_progress_of_a_schedule():
    options = ("-i", "1x3x64x64", "--progress", "0.5", "--curve", "cosine")
    rows = table_rows(succeed("summary", "torchvision:resnet18", *options))
    assert {tuple(row[3:5]) for row in rows} == {("0.9875", "0.975"), ("0.95", "0.9")}


def test_the_layers_of_a_network_of_your_own(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    (tmp_path / "net.py").write_text(
        "from torch import nn\nfrom torch_dropblock import DropBlock3d\n\n"
        "def build():\n    return nn.Sequential(nn.Conv3d(1, 4, 3), DropBlock3d(3, keep_prob=0.7))\n"
    )
    (row,) = table_rows(succeed("summary", f"{tmp_path}/net.py:build", "-i", "1x1x10x12x14"))
    assert row[:4] == ["1", "8×10×12", "3×3×3", "0.7"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("torchvision:vgg11",), "VGG has no group layer3 of residual blocks; insert_dropblock_stages(model, (1, 3, "
         "224, 224)) takes any network; here that is --stages 2, and --modules lists its modules"),
        (("torchvision:resnet18", "--stages", "9"), "stages must be at most 4 here, got 9"),
        (("torchvision:resnet18", "--stages", "2", "-w", "layer4.?"), "--where and --stages exclude each other"),
        (("resnet50",), "got 'resnet50'; did you mean torchvision:resnet50 or timm:resnet50?"),
        (("resnet5O",), "got 'resnet5O'; did you mean torchvision:resnet50 or timm:resnet50?"),
        (("torchvision:resnet18", "-i", "224"), "--input-size must be the shape of the input, such as 1x3x224x224"),
        (("torchvision:resnet18", "-i", "1x1x64x64"), "the model does not run on an input of shape (1, 1, 64, 64)"),
        (("torchvision:resnet18", "-k", "2"), "keep_prob must be a number in [0, 1], got 2.0"),
        (("torchvision:resnet18", "--curve", "fast"), "--curve must be one of linear, cosine, constant, step"),
        (("torchvision:resnet18", "--rate", "fast"), "rate must be 'exact' or 'paper'"),
        (("torchvision:resnet18", "-w", "layr4*"), "no module is named like 'layr4*'"),
        (("resnet18",), "MODEL must be torchvision:NAME"),
    ],
)  # fmt: skip
def test_errors_are_one_line(arguments, message):
    assert message in complaint("summary", *arguments)


def test_the_curves_in_the_help_are_those_there_are():
    assert list(schedule.CURVES) == list(summary.CURVES)
