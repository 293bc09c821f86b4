"""The layer under `torch.compile`: one graph, one compilation, fused, and the same mathematics as in eager mode.

The last word is that of the default compiler. What does not depend on the code it generates is tested with the
backend `aot_eager`, which traces and splits the same graphs in a tenth of the time.
"""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor.utils import run_fw_bw_and_get_code
from torch.func import grad, vmap
from torch.utils.checkpoint import checkpoint

from torch_dropblock import (
    DropBlock,
    DropBlock1d,
    DropBlock2d,
    DropBlock3d,
    KeepProbSchedule,
    drop_block2d,
    drop_block_mask,
)
from torch_dropblock.backends import sparse
from torch_dropblock.core import geometry
from torch_dropblock.core.blocks import Blocks
from torch_dropblock.core.seeds import draw_seeds, table_of

# torch's own compiler uses things that torch deprecates
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:.*TensorFloat32.*:UserWarning"),
]


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()
    counters.clear()


def compile(function, backend="aot_eager", **options):
    return torch.compile(function, backend=backend, fullgraph=True, **options)


def compilations():
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("rate", ["exact", "paper"])
def test_a_schedule_compiles_once(rate, backend):
    layer = DropBlock2d(5, rate=rate)
    function = compile(lambda x: layer(x * 2) + 1, backend)
    x = torch.ones(64, 32, 20, 20, requires_grad=True)
    for keep_prob in (1.0, 0.95, 0.9, 0.7, 0.5, 0.2, 0.0):
        layer.keep_prob = keep_prob
        y = function(x)
        gamma = geometry.seed_probability((20, 20), 5, keep_prob, rate)
        expected = 1 - geometry.expected_keep_rate((20, 20), 5, gamma)
        assert (y == 1).float().mean().item() == pytest.approx(expected, abs=0.02)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(gradient == 0, y == 1)
    assert compilations() == 1


def test_assigning_between_forward_and_backward_does_not_change_the_mask():
    layer = DropBlock2d(5, keep_prob=0.5)
    function = compile(layer)
    x = torch.ones(4, 8, 20, 20, requires_grad=True)
    y = function(x)
    layer.keep_prob = 0.9
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_a_growing_block_compiles_once():
    layers = DropBlock2d(7, keep_prob=0.6), DropBlock2d(("40%", 3), keep_prob=0.6, scale_by_keep=False)
    schedule = KeepProbSchedule(nn.Sequential(*layers), 10, grow_blocks=True)
    function = compile(lambda x: [layer(x * 2) + 1 for layer in layers])
    x = torch.rand(4, 8, 20, 20).add(1).requires_grad_()
    sizes = set()
    for _ in range(10):
        schedule.step()
        torch.manual_seed(1)
        together = function(x)
        torch.manual_seed(1)
        for layer, y in zip(layers, together, strict=True):
            sizes.add(layer.block_size)
            expected = layer(x * 2) + 1
            assert torch.equal(y == 1, expected == 1), "the mask is that of the present block size"
            (gradient,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
            assert torch.equal(gradient == 0, y == 1)
    assert len(sizes) == 7 + 10
    assert compilations() == 1


def test_a_share_of_the_map_follows_sizes_that_are_dynamic():
    function = compile(lambda x: drop_block2d(x * 2, "25%", keep_prob=0.5, key=3), dynamic=True)
    for side in (20, 24, 29):
        x = torch.ones(4, 8, side, side)
        assert torch.equal(function(x), drop_block2d(x * 2, side // 4, keep_prob=0.5, key=3))
    assert compilations() == 1


def test_a_keep_prob_of_several_numbers_is_refused():
    """Such a tensor is that of a layer whose block grows."""
    function = torch.compile(lambda x, p: drop_block2d(x, 5, keep_prob=p), backend="eager")
    with pytest.raises(TypeError, match="^keep_prob must be .* tensor of no dimensions"):
        function(torch.ones(4, 8, 20, 20), torch.tensor([0.5, 3, 3]))


def test_keep_prob_as_a_tensor_argument():
    function = compile(lambda x, keep_prob: drop_block2d(x, 5, keep_prob=keep_prob))
    x = torch.ones(64, 32, 20, 20)
    for keep_prob in (0.9, 0.5):
        y = function(x, torch.tensor(keep_prob))
        assert (y != 0).float().mean().item() == pytest.approx(keep_prob, abs=0.02)
    assert compilations() == 1
    with pytest.raises(ValueError, match=r"^keep_prob must be a number in \[0, 1\], got 1.5"):
        function(x, torch.tensor(1.5))


@pytest.mark.parametrize("sizes", ["batch", "batch and map"])
def test_dynamic_sizes_compile_once(sizes):
    function = compile(lambda x: drop_block2d(x * 2, 5), dynamic=True)
    for n in (64, 80, 72, 100):
        side = 20 if sizes == "batch" else n // 4
        y = function(torch.ones(n, 13, side, side))
        assert (y == 0).float().mean().item() == pytest.approx(0.1, abs=0.02)
        assert y.mean().item() == pytest.approx(2, rel=1e-4)
    assert compilations() == 1


def test_batch_sizes_that_turn_out_dynamic_compile_twice_at_most():
    function = compile(lambda x: drop_block2d(x * 2, 5))
    for n in (8, 12, 16, 5, 9):
        function(torch.ones(n, 8, 20, 20))
    assert compilations() == 2


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_masks_are_fresh_differ_between_equal_layers_and_follow_the_seed(backend):
    layer = DropBlock2d(5)
    function = compile(lambda x: (layer(x), layer(x)), backend)
    x = torch.ones(8, 8, 20, 20)
    torch.manual_seed(1)
    first, second = function(x)
    third, _ = function(x)
    assert not torch.equal(first, second), "the compiler took two layers for one"
    assert not torch.equal(first, third), "the compiler took the mask for a constant"
    torch.manual_seed(1)
    again, _ = function(x)
    assert torch.equal(first, again)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_activation_checkpointing(backend):
    layer = DropBlock2d(5, keep_prob=0.7)

    def block(x):
        return layer(layer(x * 2).square()).sin() + 2

    function = compile(lambda x: checkpoint(block, x, use_reentrant=False), backend)
    for _ in range(3):
        x = torch.rand(8, 8, 20, 20).mul(0.1).add(0.1).requires_grad_()
        y = function(x)
        y.sum().backward()
        assert 0.3 < (y == 2).float().mean() < 0.7
        assert torch.equal(x.grad == 0, y == 2)


def test_keys_are_data_and_draw_nothing():
    """An int is compiled in at first and a variable from the second value on; a tensor is one from the start."""
    function = compile(lambda x, key: drop_block2d(x, 3, key=key) + 0)
    x = torch.rand(4, 8, 20, 20).add(1)
    state = torch.get_rng_state()
    for several, most in (((5, -1, 0, 2**63 - 1, -(2**63)), 2), (map(torch.tensor, (5, -1, 0)), 1)):
        for key in several:
            assert torch.equal(function(x, key) != 0, drop_block_mask(x.shape, 3, key=key))
        assert compilations() <= most
        torch._dynamo.reset()
        counters.clear()
    numpys = () if torch.__version__ < "2.9" else (np.int64(-7),)  # an earlier compiler makes tensors of them
    for key in (2**64 - 1, *numpys):
        torch._dynamo.reset()
        assert torch.equal(function(x, key) != 0, drop_block_mask(x.shape, 3, key=key))
    assert torch.equal(compile(lambda x: drop_block_mask(x.shape, 3, key=5))(x), drop_block_mask(x.shape, 3, key=5))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_default_compiler_draws_the_mask_of_a_key():
    function = compile(lambda x, key: drop_block2d(x * 2, 5, key=key) + 1, "inductor")
    x = torch.rand(4, 8, 20, 20).add(1).requires_grad_()
    for key in (5, -(2**63), 2**63 - 1):
        y = function(x, torch.tensor(key))
        expected = drop_block2d(x * 2, 5, key=key) + 1
        assert torch.allclose(y, expected)
        assert torch.equal(y == 1, expected == 1)
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0] == 0, expected == 1)


def test_what_a_dropped_unit_held_is_gone():
    function = compile(lambda x: drop_block2d(x, 3), "inductor")
    x = torch.full((8, 16, 12, 12), float("inf"), requires_grad=True)
    y = function(x)
    assert not torch.isnan(y).any()
    assert (y == 0).any()
    (gradient,) = torch.autograd.grad(y, x, torch.full_like(y, float("nan")))
    assert torch.equal(gradient == 0, y == 0)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (DropBlock1d(5), (16, 8, 50)),
        (DropBlock2d(5, share_channels=True), (16, 8, 20, 20)),
        (DropBlock2d(5), (8, 20, 20)),
        (DropBlock2d(5), (0, 8, 20, 20)),
        (DropBlock2d(5), (2, 0, 20, 20)),
        (DropBlock2d(5), (2, 8, 0, 20)),
        (DropBlock3d((2, 3, 3)), (4, 8, 6, 10, 10)),
        (DropBlock(5, 0.7), (16, 8, 20, 20)),
    ],
    ids=repr,
)
def test_every_layer(layer, shape):
    function = compile(layer.train())
    y = function(torch.ones(shape))
    assert y.shape == shape
    if y.numel():
        assert (y == 0).any()
        assert y.mean().item() == pytest.approx(1, rel=1e-5)
    function(torch.ones(shape))


def test_inplace():
    layer = DropBlock2d(5, inplace=True)
    x, leaf = torch.ones(4, 8, 20, 20), torch.ones(4, 8, 20, 20, requires_grad=True)
    function = compile(layer)
    y = function(x)
    assert torch.equal(y, x)
    assert (x == 0).any()
    function = compile(lambda x: layer(x * 2) + 1)
    y = function(leaf)
    y.sum().backward()
    assert torch.equal(leaf.grad == 0, y == 1)
    assert torch.equal(leaf, torch.ones_like(leaf))


def test_autocast():
    convolution, layer = nn.Conv2d(8, 8, 3), DropBlock2d(5)
    function = compile(lambda x: layer(convolution(x)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert function(torch.ones(4, 8, 20, 20)).dtype == torch.bfloat16


def test_a_small_network_trains():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), DropBlock2d(5), nn.ReLU(), nn.Conv2d(8, 4, 3), DropBlock2d(3), nn.ReLU()
    )
    function = compile(network, "inductor")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for step in range(4):
        for layer in (network[2], network[5]):
            layer.keep_prob = 1 - 0.1 * step
        function(torch.randn(4, 3, 20, 20)).square().mean().backward()
        assert all(torch.isfinite(p.grad).all() for p in network.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert compilations() == 1
    x = torch.randn(4, 3, 20, 20)
    network.eval()
    assert torch.equal(function(x), function(x))


def kernels(code):
    """The bodies of the kernels that a generated file defines, by name."""
    return dict(
        re.findall(r"^(\w+) = async_compile\.cpp_pybinding\([^\n]*'''(.*?)'''\)", code, re.DOTALL | re.MULTILINE)
    )


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_scaling_and_zeroing_are_fused_with_their_neighbours(memory_format):
    """One kernel in each direction, which does the neighbours' work too: no pass over the activation of its own."""
    layer = DropBlock2d(7)
    function = torch.compile(lambda x: layer(torch.relu(x * 2)) + 1, fullgraph=True)
    x = torch.rand(16, 8, 28, 28).to(memory_format=memory_format).requires_grad_()
    _, (forward, backward) = run_fw_bw_and_get_code(lambda: function(x))
    layout = memory_format == torch.channels_last
    for code, operator in ((forward, "draw"), (backward, "redraw")):
        calls = re.findall(rf"torch\.ops\.torch_dropblock\.{operator}\.default\(.*, 'exact', False, (\w+)[,)]", code)
        assert calls == [str(layout)], "the mask lies as the activation does"
    for code, neighbours in ((forward, ("add", "relu")), (backward, ("threshold_backward",))):
        passes = [name for name in kernels(code) if "randint" not in name]  # newer compilers have one for the key
        assert len(passes) == 1, "passes over the activation"
        (name,) = passes
        assert "where" in name
        for neighbour in neighbours:
            assert neighbour in name


def test_only_the_key_and_two_numbers_are_saved_for_the_backward_pass():
    function = compile(DropBlock2d(7), "inductor")  # `aot_eager` of PyTorch before 2.14 keeps masks
    saved = []
    x = torch.rand(16, 64, 28, 28, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        function(x)
    assert saved
    assert sum(tensor.nbytes for tensor in saved) <= 24


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_per_sample_gradients(randomness):
    def loss(x):
        y = drop_block2d(x, 3, keep_prob=0.7)
        return (y * y).sum() / 2, y

    function = torch.compile(vmap(grad(loss, has_aux=True), randomness=randomness), backend="aot_eager", fullgraph=True)
    x = torch.ones(3, 4, 8, 12, 12)
    gradients, y = function(x)
    assert torch.allclose(gradients, y * y.max())
    assert y.max().item() == pytest.approx(y.numel() / (y != 0).sum().item())  # one count for all
    assert torch.equal(y[0] == 0, y[1] == 0) == (randomness == "same")


def test_export_of_an_eval_model_has_no_trace_of_the_layer():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), DropBlock2d(3)).eval()
    program = torch.export.export(network, (torch.ones(2, 3, 8, 8),))
    assert [node.target for node in program.graph.nodes if node.op == "call_function"] == [
        torch.ops.aten.conv2d.default
    ]
    assert not [name for name in program.state_dict if not name.startswith("0.")]
    assert not program.constants
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(program.module()(x), network(x))


def test_channels_last_masks_lie_as_their_input_does():
    blocks = Blocks((4, 6), (9, 9), (3, 3))
    seeds = draw_seeds(1, blocks, table_of((9, 9), (3, 3), blocks.streams.length, 0.7, "exact"))
    masks = [sparse.dropped_mask(seeds, blocks, seeds.device, channels_last=flag) for flag in (False, True)]
    assert torch.equal(*masks)
    assert masks[1].is_contiguous(memory_format=torch.channels_last)


def test_a_bad_input_is_named():
    with pytest.raises(ValueError, match=r"^input must be .*got one of shape \(8, 8\)"):
        torch.compile(DropBlock2d(3), backend="eager")(torch.ones(8, 8))
    with pytest.raises(ValueError, match="leaf"):
        torch.compile(DropBlock2d(3, inplace=True), backend="eager")(torch.ones(2, 3, 8, 8, requires_grad=True))
