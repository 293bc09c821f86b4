"""The operators that draw in compiled code: what they promise the compiler, and where their values come from."""

import copy
import subprocess
import sys

import pytest
import torch
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

from torch_dropblock import DropBlock2d
from torch_dropblock.core import noise
from torch_dropblock.layer import operators

# torch's own compiler uses things that torch deprecates
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:.*TensorFloat32.*:UserWarning"),
]


@pytest.mark.parametrize(
    ("lead", "size", "block", "share_channels", "channels_last"),
    [
        ([4, 8], [20, 20], [5, 5], False, False),
        ([4, 8], [20, 20], [5, 5], True, True),
        ([4, 8], [20, 20], [50, 3], False, True),
        ([8], [30], [4], True, False),
        ([2, 3], [5, 6, 7], [2, 2, 2], False, True),
        ([0, 8], [20, 20], [5, 5], False, False),
        ([4, 8], [20, 0], [5, 5], True, False),
    ],
)
@pytest.mark.parametrize("keep_prob", [0.0, 0.9, 1.0])
def test_operators_are_what_they_say(lead, size, block, share_channels, channels_last, keep_prob):
    arguments = (
        key := torch.tensor(7),
        torch.tensor(keep_prob, dtype=torch.float64),
        *(lead, size, block, "exact", share_channels, channels_last),
    )
    mask, scale, table = operators.draw(*arguments)
    if keep_prob == 0.9:
        torch.library.opcheck(operators.draw, arguments)
    again = key, *operators.needed_again(arguments[1], table, "sparse"), *arguments[2:]
    if keep_prob == 0.9:
        torch.library.opcheck(operators.redraw, again)
    assert torch.equal(mask, operators.redraw(*again))
    assert mask.dtype == torch.int32
    dropped = operators.Draw(*arguments[2:]).dropped(mask)
    if dropped.numel():
        kept = (~dropped).sum().item()
        assert scale.item() == (dropped.numel() / kept if kept else 0.0)


def test_what_the_host_reads_at_each_call_is_no_part_of_a_cuda_graph():
    """A graph would repeat the values that it was captured with: a schedule would stand still."""
    here, there = torch.ones(1, device="cpu"), torch.ones(1, device="meta")  # `meta` stands for a GPU
    by_host = operators.draw_by_host, operators.redraw_by_host
    assert operators.serving(here, here, "native") == (operators.draw, operators.redraw)
    assert operators.serving(there, there, "triton") == (operators.draw, operators.redraw)
    assert operators.serving(there, here, "triton") == by_host, "of a layer whose block grows"
    assert operators.serving(there, there, "sparse") == by_host
    for operator in (operators.draw_by_host, operators.redraw_by_host):
        assert torch.Tag.cudagraph_unsafe in operator.tags
    for operator in (operators.draw, operators.redraw):
        assert torch.Tag.cudagraph_unsafe not in operator.tags
    arguments = torch.tensor(7), torch.tensor(0.9, dtype=torch.float64), [4, 8], [9, 9], [3, 3], "exact", False, False
    drawn = operators.draw(*arguments)
    assert all(map(torch.equal, operators.draw_by_host(*arguments), drawn))
    again = *arguments[:2], None, *arguments[2:]
    assert torch.equal(operators.redraw_by_host(*again), drawn[0])
    mapped = vmap(lambda key: operators.draw_by_host(key, *arguments[1:])[0])
    assert torch.equal(mapped(torch.tensor([5, 7]))[1], drawn[0])
    nodes = make_fx(mapped)(torch.tensor([5, 7])).graph.nodes
    assert {node.target for node in nodes if "torch_dropblock" in str(node.target)} == {operators.draw_by_host}


def test_a_new_keep_prob_has_the_address_of_the_last_on_a_gpu():
    """CUDA graphs remember addresses; on the host a pending backward pass needs the value of its forward pass."""
    layer = DropBlock2d(7, keep_prob=0.9)
    before = layer._keep_prob_tensor
    layer.keep_prob = 0.8
    assert layer._keep_prob_tensor is not before
    assert before.item() == 0.9
    layer._set_keep_prob(0.8, torch.device("meta"))  # stands for a GPU
    before = layer._keep_prob_tensor
    layer.keep_prob = 0.7
    assert layer._keep_prob_tensor is before
    assert operators.noted(before) == 0.7
    assert operators.needed_again(before, torch.ones(2), "triton")[0] is None, "the backward pass needs no value"
    assert operators.needed_again(before, torch.ones(2), "sparse") == (before, None)
    layer.set_strength(0.5, grow_block=True)
    assert layer._keep_prob_tensor.device.type == "cpu"
    layer._set_keep_prob(0.8, torch.device("cpu"))
    with torch.inference_mode():
        copied = copy.deepcopy(layer)
    copied.keep_prob = 0.6
    assert copied._keep_prob_tensor[0].item() == 0.6


def test_a_value_is_noted_with_its_tensor_until_that_is_written():
    layer = DropBlock2d(7, keep_prob=0.9)
    assert operators.noted(layer._keep_prob_tensor) == 0.9
    layer.keep_prob = 0.8
    assert operators.noted(layer._keep_prob_tensor) == 0.8
    copied = copy.deepcopy(layer)
    copied._keep_prob_at(torch.device("cpu"))
    assert operators.noted(copied._keep_prob_tensor) == 0.8
    layer._keep_prob_tensor.fill_(0.5)
    assert operators.noted(layer._keep_prob_tensor) is None
    with torch.inference_mode():
        copied = copy.deepcopy(layer)
        assert operators.noted(copied._keep_prob_tensor) is None
        copied._keep_prob_at(torch.device("cpu"))
    assert operators.noted(copied._keep_prob_tensor) == 0.8
    assert operators.noted(torch.ones(1)) is None
    with torch.inference_mode():
        assert operators.noted(torch.ones(1)) is None


def test_compiled_code_may_set_the_strength():
    torch._dynamo.reset()
    layer = DropBlock2d(3, keep_prob=0.5)

    @torch.compile(backend="eager", fullgraph=True)
    def step(x):
        layer.set_strength(0.5)
        return layer(x)

    step(torch.ones(2, 3, 9, 9))
    assert layer.keep_prob == 0.75
    assert layer._keep_prob_tensor.item() == 0.75


def test_compiled_code_gets_the_tensor_with_the_note(monkeypatch):
    torch._dynamo.reset()
    values, blocks = [], operators.Draw.blocks

    def seen(draw, keep_prob):
        values.append(operators.noted(keep_prob))
        return blocks(draw, keep_prob)

    monkeypatch.setattr(operators.Draw, "blocks", seen)
    layer = DropBlock2d(3, keep_prob=0.9)
    function = torch.compile(layer, fullgraph=True)
    for keep_prob in (0.9, 0.7):
        layer.keep_prob = keep_prob
        function(torch.ones(2, 4, 9, 9, requires_grad=True)).sum().backward()
    assert values == [0.9, 0.9, 0.7, 0.7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3, 5)])
def test_the_operator_of_noise(shape, dtype):
    arguments = torch.tensor(7), shape, dtype
    torch.library.opcheck(operators.normal, arguments)
    assert torch.equal(operators.normal(*arguments), noise.normal(*arguments))
    mapped = vmap(lambda key: operators.normal(key, shape, dtype))(torch.tensor([1, 7]))
    assert torch.equal(mapped[1], noise.normal(*arguments))


def test_the_package_may_be_imported_again():
    """As by tools that reload what was edited: operators are there once in a process."""
    program = (
        "import importlib, sys, torch, torch_dropblock\n"
        "from torch_dropblock.layer import operators\n"
        "importlib.reload(operators)\n"
        "for name in [name for name in sys.modules if name.startswith('torch_dropblock')]: del sys.modules[name]\n"
        "import torch_dropblock\n"
        "function = torch.compile(torch_dropblock.DropBlock2d(3, keep_prob=0.5), backend='eager', fullgraph=True)\n"
        "assert 0 < (function(torch.ones(8, 8, 9, 9)) == 0).float().mean() < 1\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_keep_prob_is_not_mapped_over():
    shape = ([4, 8], [9, 9], [3, 3], "exact", False, False)
    function = vmap(lambda key, keep_prob: operators.draw(key, keep_prob, *shape)[0])
    with pytest.raises(ValueError, match="keep_prob cannot be mapped over"):
        function(torch.arange(2), torch.tensor([0.5, 0.9], dtype=torch.float64))
