"""Networks by name."""

import sys

import pytest
import timm
import torchvision
from torch import nn

from torch_dropblock.command import named_models

OWN = (
    "import helper_of_my_net\nfrom torch import nn\n\ndef build():\n    return nn.Sequential(nn.ReLU())\n\nnumber = 3\n"
)


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    (tmp_path / "helper_of_my_net.py").write_text("")
    (tmp_path / "my_net.py").write_text(OWN + "def empty():\n    return None\n")
    return tmp_path / "my_net.py"


def test_libraries():
    assert isinstance(named_models.build("torchvision:resnet18"), torchvision.models.ResNet)
    assert isinstance(named_models.build("timm:resnet18"), timm.models.resnet.ResNet)


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "deeplabv3_resnet50"])
def test_a_backbone_is_not_downloaded_either(name, monkeypatch):
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_, **__: pytest.fail("a download"))
    assert isinstance(named_models.build(f"torchvision:{name}"), nn.Module)


def test_a_file_and_a_module(file):
    assert isinstance(named_models.build(f"{file}:build"), nn.Sequential)
    assert isinstance(named_models.build("torch.nn:ReLU"), nn.ReLU)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_what_is_not_installed_is_said(library, monkeypatch):
    for name in (library, "torchvision.models"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ValueError, match=f"^{library} is not installed; run: pip install {library}$"):
        named_models.build(f"{library}:resnet18")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet50", "MODEL must be torchvision:NAME, timm:NAME"),
        (":resnet50", "MODEL must be"),
        ("torchvision:", "MODEL must be"),
        ("torchvision:resnet5", "torchvision has no model 'resnet5'; close to it: resnet50"),
        ("timm:resnet5O", "timm has no model 'resnet5O'; close to it: resnet50"),
        ("not_there.py:build", "there is no file not_there.py"),
        ("not_there:build", "not_there is not installed, or is not on Python's path"),
        ("timm.not_there:build", r"timm\.not_there is not installed, or is not on Python's path"),
        ("FILE:buidl", "has no function 'buidl'; close to it: build"),
        ("FILE:number", "has no function 'number'"),
        ("FILE:empty", "must return a torch.nn.Module, it returned a NoneType"),
    ],
)
def test_errors(name, message, file):
    with pytest.raises(ValueError, match=message):
        named_models.build(name.replace("FILE", str(file)))
