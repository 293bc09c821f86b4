"""benchmarks/families.py: the table of families, and what it verifies of a network."""

import importlib.util
from pathlib import Path

import pytest
import timm
import torch
import torchvision

from helpers.small_networks import Pyramid, Transformer
from torch_dropblock import insert_dropblock_stages

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
# modules of timm whose networks take far larger images, or several inputs
LEFT_OUT = {"deepseek_vit", "gemma4_vit", "mobilenetv5", "naflexvit", "qwen3_vit"}


@pytest.fixture(scope="module")
def families():
    spec = importlib.util.spec_from_file_location("families", ROOT / "benchmarks" / "families.py")
    module = importlib.util.module_from_spec(spec)
    __import__("sys").modules["families"] = module  # for the dataclass
    spec.loader.exec_module(module)
    return module


def test_page_has_a_row_for_each_network(families):
    names = [name for name, _ in families.families()]
    assert len(names) == len(set(names)) > 100
    for name in names:
        assert f"| {name} |" in PAGE
    known = set(timm.list_models()) | set(torchvision.models.list_models())
    assert {name.partition(":")[2] for name in names} <= known


def test_every_module_of_timm_has_a_network(families):
    listed = {name.partition(":")[2] for name, _ in families.families("") if name.startswith("timm:")}
    modules = {module for module in timm.list_modules() if not listed.isdisjoint(timm.list_models(module=module))}
    assert set(timm.list_modules()) - modules <= LEFT_OUT


@pytest.mark.parametrize(("model", "where"), [(Pyramid(), "2 at 8×8, 2 at 4×4"), (Transformer(), "3 at 8×8, tokens")])
def test_rows(families, model, where):
    result = families.find("own:net", (2, 3, 32, 32), model)
    assert where in " | ".join(result.cells())
    assert families.verify(result, model) == "yes"


def test_reason_for_none(families):
    result = families.find("own:net", (2, 3, 32, 32), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 5)))
    assert result.cells()[3] == "none: Sequential has no block, norm or convolution with a map to drop from"


def test_wrong_share_is_noticed(families):
    model = Pyramid()
    layers = insert_dropblock_stages(model, (2, 3, 32, 32), keep_prob=0.5, block_size=1)
    share = families.Share(layers["stage2.0"])
    assert list(share.problems()) == ["did not run"]
    module = model.stage2[0]
    module.register_forward_hook(share.before_layer, prepend=True)
    module.register_forward_hook(share.after_layer)
    model(torch.randn(64, 3, 32, 32))
    assert not list(share.problems())
    layers["stage2.0"].keep_prob = 0.9999
    assert "drops" in next(share.problems())
