"""The GPU path as the layer has it: launching, derivatives, `torch.compile`, and on a device its graphs and speed."""

import itertools
import math
import re
import subprocess
import sys
import timeit

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor.utils import run_fw_bw_and_get_code
from torch.autograd import forward_ad
from torch.func import grad, vmap
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from helpers.gpu_path import (
    DEVICE,
    DTYPES,
    HAS_GPU,
    INTERPRETED,
    MARKS,
    assert_is_that_of_the_oracle,
    assert_same,
    launch,
    new_key,
    on_gpu,
    runs,
    some_blocks,
)
from torch_dropblock import DropBlock2d, drop_block1d, drop_block2d, drop_block3d, insert_dropblock, use_backend
from torch_dropblock.core import reference
from torch_dropblock.core.blocks import Blocks
from torch_dropblock.core.seeds import TABLE
from torch_dropblock.layer import compiled, operators
from torch_dropblock.layer.eager import ApplyBlocks, Call, drop

pytestmark = MARKS


@runs
@pytest.mark.parametrize("kind", ["contiguous", "channels_last"])
def test_nothing_depends_on_the_launch(kind):
    key, (blocks, table) = new_key(), some_blocks((2, 37), (9, 15), (3, 5))
    x = torch.randn(2, 37, 9, 15, device=DEVICE)
    if kind == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    results = []
    for how in (
        launch.Launch(1, 32, 64, 512, 16),
        launch.Launch(4, 8, 1024, 64, 64),
        launch.Launch(8, 64, 128, 2048, 8),
    ):
        mask, output = launch.draw(key, blocks, table, launch=how), torch.empty_like(x)
        launch.apply(x, output, mask, launch=how)
        results.append((mask.words, mask.scale, output))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@runs
@pytest.mark.parametrize("words", [64, pytest.param(512, marks=pytest.mark.sweep)])
@pytest.mark.parametrize(
    ("size", "block"),
    [
        *[((40, 50), (extent, 3)) for extent in (1, 8, 9)],
        *[pytest.param((40, 50), (extent, 3), marks=pytest.mark.sweep) for extent in (2, 7, 16, 17, 40)],
        ((9, 8, 7), (9, 1, 7)),
        ((20, 30, 9), (3, 1, 1)),
        ((100, 300), (90, 2)),
        ((7000,), (3000,)),
        pytest.param((5, 900), (2, 400), marks=pytest.mark.sweep),
        ((3, 3, 500), (2, 1, 300)),
        pytest.param((20, 40, 50), (9, 8, 3), marks=pytest.mark.sweep),
    ],
)
def test_blocks_that_reach_over_the_words_of_one_program(size, block, words):
    """A program's words and those whose blocks reach into them: less than its memory, and many times as much."""
    how = launch.Launch(streams=8, draws=64, words=words)
    key, (blocks, table) = new_key(), some_blocks((1, 2), size, block, 0.6)
    assert_is_that_of_the_oracle(launch.draw(key, blocks, table, launch=how), key, table)


@runs
def test_a_plane_too_large_is_named():
    blocks = Blocks((1,), (1 << 30,), (1,))
    assert "1073741824" in launch.why_not_of(blocks.size)
    with pytest.raises(ValueError, match="1073741824"):
        launch.draw(new_key(), blocks, torch.ones(TABLE, dtype=torch.float64, device=DEVICE))


# --- the layer ---------------------------------------------------------------------------------------------------


@pytest.fixture
def on_triton():
    with use_backend("triton"):
        yield


@runs
@pytest.mark.usefixtures("on_triton")
def test_tensors_whose_memory_is_not_there_or_holds_something_else():
    x = torch.rand(2, 3, 9, 9, device=DEVICE).add(1).requires_grad_()
    nothing = torch._efficientzerotensor(x.shape, device=DEVICE)
    assert not drop_block2d(nothing, 3, keep_prob=0.7).any()
    y = drop_block2d(x, 3, keep_prob=0.7)
    (gradient,) = torch.autograd.grad(y, x, nothing, retain_graph=True)
    assert not gradient.any()
    (gradient,) = torch.autograd.grad(y, x, (-x.detach())._neg_view())
    assert torch.equal(gradient, y)
    torch.manual_seed(1)
    expected = drop_block2d(x.detach(), 3, keep_prob=0.7)
    torch.manual_seed(1)
    view = (-x.detach())._neg_view()
    drop_block2d(view, 3, keep_prob=0.7, inplace=True)
    assert torch.equal(view, expected)


@runs
@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize(
    ("dtype", "memory_format", "share_channels"),
    [
        (torch.float16, torch.contiguous_format, False),
        (torch.bfloat16, torch.channels_last, False),
        (torch.float32, torch.contiguous_format, True),
        (torch.float64, torch.channels_last, True),
        *(
            pytest.param(*case, marks=pytest.mark.sweep)
            for case in itertools.product(DTYPES, [torch.contiguous_format, torch.channels_last], [False, True])
        ),
    ],
    ids=str,
)
def test_forward_and_backward_of_the_layer(dtype, memory_format, share_channels):
    x = torch.rand(4, 8, 14, 13, device=DEVICE).add(1).to(dtype).to(memory_format=memory_format).requires_grad_()
    y = drop_block2d(x, 3, keep_prob=0.8, share_channels=share_channels)
    assert y.dtype == dtype
    assert y.stride() == x.stride()
    kept = (y != 0).cpu()
    assert kept.float().mean().item() == pytest.approx(0.8, abs=0.15)
    assert_same(y.detach().cpu(), reference.drop_block(x.detach().cpu(), kept))
    gradient = torch.randn(y.shape, device=DEVICE).to(dtype)  # contiguous, whatever the layout of x
    y.backward(gradient)
    assert_same(x.grad.cpu(), reference.drop_block(gradient.cpu(), kept))
    if share_channels:
        assert torch.equal(kept, kept[:, :1].expand_as(kept))


@runs
@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize("share_batch", [False, True])
def test_a_variant_is_made_from_the_mask_of_the_key(share_batch):
    x = torch.rand(4, 8, 14, 13, device=DEVICE).add(1).to(memory_format=torch.channels_last).requires_grad_()
    options = {"keep_prob": 0.8, "key": 5, "share_batch": share_batch}
    y = drop_block2d(x, "25%", scale_by_keep=False, with_noise=True, **options)
    with use_backend("sparse"):
        expected = drop_block2d(x.detach().cpu(), 3, scale_by_keep=False, with_noise=True, **options)
    torch.testing.assert_close(y.cpu(), expected)
    assert y.stride() == x.stride()
    kept = drop_block2d(torch.ones_like(x), 3, **options) != 0
    y.sum().backward()
    assert torch.equal(x.grad, kept.float())


@runs
@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_mask_does_not_depend_on_the_memory_format_and_follows_the_seed(dims):
    function = {1: drop_block1d, 2: drop_block2d, 3: drop_block3d}[dims]
    x = torch.rand(4, 8, *(20, 9, 6)[:dims], device=DEVICE).add(1)
    outputs = []
    for memory in (x, x.transpose(0, 1).contiguous().transpose(0, 1), x):
        torch.manual_seed(3)
        outputs.append(function(memory, 3, keep_prob=0.8))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], function(x, 3, keep_prob=0.8))
    state = torch.get_rng_state() if DEVICE.type == "cpu" else torch.cuda.get_rng_state()
    drawn = [function(x, 3, generator=torch.Generator(DEVICE).manual_seed(5)) for _ in range(2)]
    assert torch.equal(*drawn)
    assert torch.equal(state, torch.get_rng_state() if DEVICE.type == "cpu" else torch.cuda.get_rng_state())


@runs
@pytest.mark.usefixtures("on_triton")
def test_in_place():
    x = torch.rand(4, 8, 12, 12, device=DEVICE).add(1)
    leaf = x.clone().requires_grad_()
    middle = leaf * 1
    y = drop_block2d(middle, 3, keep_prob=0.8, inplace=True)
    assert y is middle
    y.sum().backward()
    assert torch.equal(leaf.grad == 0, y == 0)


@runs
@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize("keep_prob", [0.0, 1e-5, 1 - 1e-5, 1.0])
def test_extreme_keep_probs(keep_prob):
    x = torch.ones(2, 4, 9, 9, device=DEVICE, requires_grad=True)
    y = drop_block2d(x, 5, keep_prob=keep_prob)
    assert torch.isfinite(y).all()
    assert (y != 0).float().mean().item() == pytest.approx(round(keep_prob), abs=0.05)
    y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0)


@runs
@pytest.mark.usefixtures("on_triton")
def test_derivatives_of_every_kind():
    def function(x):
        generator = torch.Generator(DEVICE).manual_seed(5)
        return drop_block2d(x * x, 2, keep_prob=0.7, generator=generator) * x

    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, device=DEVICE, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x,), check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x,), fast_mode=True)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones(4, 8, 12, 12, device=DEVICE), torch.full((4, 8, 12, 12), 2.0).to(DEVICE))
        value, tangent = forward_ad.unpack_dual(drop_block2d(dual, 3, keep_prob=0.7))
    assert torch.equal(tangent, 2 * value)


@runs
@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap(randomness):
    def loss(x):
        y = drop_block2d(x, 3, keep_prob=0.7)
        return y.sum(), y

    x = torch.ones(5, 4, 8, 12, 12, device=DEVICE)
    gradients, y = vmap(grad(loss, has_aux=True), randomness=randomness)(x)
    assert torch.equal(gradients, y)
    assert torch.equal(y[0], y[1]) == (randomness == "same")
    assert torch.equal(y, (y != 0) * torch.tensor(y.numel() / (y != 0).sum().item(), device=DEVICE))


@runs
@pytest.mark.usefixtures("on_triton")
def test_activation_checkpointing_draws_the_same_mask_again():
    x = torch.rand(4, 8, 12, 12, device=DEVICE).add(1).requires_grad_()
    y = checkpoint(lambda x: drop_block2d(drop_block2d(x, 3).square(), 3), x, use_reentrant=False)
    y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0)


@runs
@pytest.mark.usefixtures("on_triton")
def test_only_the_key_is_saved_and_the_gradient_may_use_another_backend():
    saved = []
    x = torch.rand(4, 8, 14, 14, device=DEVICE, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = drop_block2d(x, 3, keep_prob=0.8)
    assert sum(tensor.untyped_storage().nbytes() for tensor in saved) == 8
    with use_backend("sparse"):
        y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0)


class Watch(TorchFunctionMode):
    """Refuses what makes the host wait for a device, and notes what allocates.

    A mode of functions, since eager mode takes other operations where one of operators sees them.
    """

    WAITS = ("item", "__int__", "__float__", "__bool__", "__index__", "tolist", "nonzero", "masked_select", "equal")
    ALLOCATES = ("empty", "zeros", "empty_like", "full", "randint", "arange", "tensor")

    def __init__(self):
        super().__init__()
        self.allocations = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        assert name not in self.WAITS, f"{name} waits for the device"
        if name in self.ALLOCATES:
            self.allocations.append(name)
        return func(*args, **(kwargs or {}))


class Stub:
    """In place of a compiled kernel: notes that it was launched."""

    def __init__(self, name, launches):
        self.name, self.launches = name, launches

    def __getitem__(self, grid):
        return lambda *_, **__: self.launches.append(self.name)


@pytest.fixture
def launches(monkeypatch):
    """The names of the kernels that are launched, none of which runs."""
    launches = []

    def first(prepared, *tensors):
        stub = Stub(prepared.kernel.__name__, launches)
        stub[prepared.grid](*tensors)
        return stub

    monkeypatch.setattr(launch.Prepared, "first", first)
    Blocks.of.cache_clear()  # they keep kernels
    launch._solve.cache_clear()
    yield launches
    Blocks.of.cache_clear()
    launch._solve.cache_clear()


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU another thread runs the backward pass")
@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize(("share_channels", "apply"), [(False, "apply_flat"), (True, "apply_tiles")])
def test_two_launches_and_a_few_allocations_in_each_direction(launches, share_channels, apply):
    """The output, the words and the scratch; forward also the scale and the key. Nothing is waited for."""
    x = torch.rand(4, 8, 14, 14, device=DEVICE, requires_grad=True)
    key, ones, each = new_key(), torch.ones_like(x), ["empty", "empty", "empty_like"]
    call = Call(*some_blocks((4, 8), (14, 14), (3, 3), 0.8, share_channels), "triton")

    def step():
        torch.autograd.backward(drop_block2d(x, 3, keep_prob=0.8, share_channels=share_channels), ones)

    step()
    assert launches == ["draw", apply] * 2
    with Watch() as forward:
        drop_block2d(x, 3, keep_prob=0.8, share_channels=share_channels)
    assert sorted(forward.allocations) == sorted(["randint", "empty", *each])
    drop(ones, key, call)
    with Watch() as backward:
        drop(ones, key, call)  # what the node of the backward pass calls, where no mode sees it
    assert sorted(backward.allocations) == each
    took = min(timeit.repeat(step, number=100, repeat=3)) / 100
    print(f"{took * 1e6:.0f} µs of the host, forward and backward together, without the launches")


@pytest.mark.usefixtures("on_triton")
@runs
@pytest.mark.parametrize(
    ("channels_last", "size", "kernels"),
    [
        (False, (14, 14), ["draw"]),
        (True, (14, 14), ["draw_channels"]),
        (True, (65, 65), ["draw", "channels_inside"]),  # a plane is too large for one program
    ],
)
def test_launches_of_the_operators_of_compiled_code(launches, channels_last, size, kernels):
    """Beside them, the compiler launches the key, and one kernel in each direction if nothing is beside the layer."""
    key, keep_prob = new_key(), torch.tensor([0.9], dtype=torch.float64, device=DEVICE)
    arguments = [4, 8], list(size), [3, 3], "exact", False, channels_last, "triton"
    with Watch():
        mask, _, table = operators.draw(key, keep_prob, *arguments)
    assert launches == ["solve"] * HAS_GPU + kernels
    launches.clear()
    again = operators.redraw(key, *operators.needed_again(keep_prob, table, "triton"), *arguments)
    assert launches == kernels
    assert mask.shape == again.shape
    launches.clear()
    operators.draw(key, operators.note(keep_prob, 0.9), *arguments)  # as a layer does
    assert launches == kernels


@runs
def test_solving_on_the_device_is_one_launch_that_nobody_waits_for(launches):
    with Watch() as seen:
        launch.solved_table(torch.tensor(0.9, dtype=torch.float64, device=DEVICE), (14, 14), (3, 3), "exact", 120)
    assert launches == ["solve"]
    assert seen.allocations == ["tensor", "empty"]


@runs
def test_the_backward_pass_draws_from_the_table_that_was_solved():
    x = torch.rand(4, 8, 14, 14, device=DEVICE, requires_grad=True)
    keep_prob = torch.tensor(0.8, dtype=torch.float64, device=DEVICE)
    key, (blocks, expected) = new_key(), some_blocks((4, 8), (14, 14), (3, 3), 0.8)
    table = launch.solved_table(keep_prob, blocks.size, blocks.block, "exact", blocks.streams.length)
    assert torch.equal(table, expected)
    y = ApplyBlocks.apply(x, key, Call(blocks, table, "triton"), False)
    keep_prob.fill_(0.1)
    y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0)
    assert torch.equal(y == 0, launch.draw(key, blocks, expected).dense())


# --- torch.compile -----------------------------------------------------------------------------------------------

CHECKS = ("test_schema", "test_faketensor")  # tests/layer/test_compiled.py has the others, of the same operators
OPERATORS = [
    ([4, 8], [20, 20], [5, 5], False, False),
    ([4, 37], [9, 9], [5, 5], False, True),
    ([4, 8], [9, 9], [5, 5], True, False),
    ([8], [30], [4], True, False),
    ([2, 3], [5, 6, 7], [2, 2, 2], False, True),
    ([0, 8], [20, 20], [5, 5], False, False),
]


@runs
@pytest.mark.parametrize(("lead", "size", "block", "share_channels", "channels_last"), OPERATORS)
@pytest.mark.parametrize("keep_prob", [0.0, 0.9, 1.0])
def test_operators_are_what_they_say(lead, size, block, share_channels, channels_last, keep_prob):
    arguments = (
        torch.tensor(7, device=DEVICE),
        torch.tensor(keep_prob, dtype=torch.float64),
        *(lead, size, block, "exact", share_channels, channels_last, "triton"),
    )
    mask, scale, table = operators.draw(*arguments)
    again = *arguments[:2], table, *arguments[2:]
    if keep_prob == 0.9:
        torch.library.opcheck(operators.draw, arguments, test_utils=CHECKS)
        torch.library.opcheck(operators.redraw, again, test_utils=CHECKS)
    assert torch.equal(mask, operators.redraw(*again))
    if keep_prob:
        assert torch.equal(mask, operators.redraw(arguments[0], None, *again[2:]))
    if 0 in lead:
        return
    dropped = operators.Draw(*arguments[2:]).dropped(mask)
    if keep_prob == 0.0:
        assert dropped.all()
        return
    blocks, table = some_blocks(tuple(lead), tuple(size), tuple(block), keep_prob, share_channels)
    assert torch.equal(dropped, launch.draw(arguments[0], blocks, table).dense())
    assert scale.item() == dropped.numel() / max((~dropped).sum().item(), 1)


@runs
@pytest.mark.parametrize(
    ("backend", "memory_format", "share_channels"),
    [
        ("aot_eager", torch.channels_last, False),
        ("aot_eager", torch.contiguous_format, True),
        ("inductor", torch.channels_last, False),
        *(
            pytest.param(*case, marks=pytest.mark.sweep)
            for case in [
                ("aot_eager", torch.contiguous_format, False),
                ("aot_eager", torch.channels_last, True),
                ("inductor", torch.contiguous_format, False),
                ("inductor", torch.contiguous_format, True),
                ("inductor", torch.channels_last, True),
            ]
        ),
    ],
)
def test_compiled_code_gives_the_values_and_gradients_of_eager_mode(backend, memory_format, share_channels):
    torch._dynamo.reset()
    key, keep_prob = new_key(), torch.tensor(0.8, dtype=torch.float64)
    function = torch.compile(
        lambda x: compiled._Apply.apply(x, key, keep_prob, (5, 3), "exact", share_channels, "triton"),
        backend=backend,
        fullgraph=True,
    )
    call = Call(*some_blocks((3, 37), (20, 17), (5, 3), 0.8, share_channels), "triton")
    one, gradient = (torch.randn(3, 37, 20, 17, device=DEVICE).to(memory_format=memory_format) for _ in range(2))
    x, again = one.clone().requires_grad_(), one.clone().requires_grad_()
    y, expected = function(x), ApplyBlocks.apply(again, key, call, False)
    assert torch.equal(y, expected)
    assert y.stride() == expected.stride()
    y.backward(gradient)
    expected.backward(gradient)
    assert torch.equal(x.grad, again.grad)


@runs
@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.sweep)])
def test_a_compiled_volume_without_samples_whose_strides_are_those_of_channels_last(backend):
    """Four dimensions, of which the innermost in memory is a map's."""
    torch._dynamo.reset()
    function = torch.compile(lambda x: drop_block3d(x, 2, keep_prob=0.7), backend=backend, fullgraph=True)
    x = torch.ones(1, 8, 5, 6, 7, device=DEVICE)[0].to(memory_format=torch.channels_last).requires_grad_()
    y = function(x)
    assert y.shape == x.shape
    assert (y == 0).float().mean().item() == pytest.approx(0.3, abs=0.15)
    y.sum().backward()
    assert torch.equal(x.grad, y)


@runs
@pytest.mark.usefixtures("on_triton")
def test_a_compiled_layer_takes_the_path_that_was_asked_for(monkeypatch):
    torch._dynamo.reset()
    drawn = []
    draw = launch.draw
    monkeypatch.setattr(launch, "draw", lambda *given, **more: drawn.append(given) or draw(*given, **more))
    layer = DropBlock2d(3, keep_prob=0.5)
    function = torch.compile(layer, fullgraph=True)  # `aot_eager` of PyTorch before 2.14 keeps masks
    # a mask of about as many bytes as the table, the compiler would keep
    x = torch.ones(32, 8, 24, 24, device=DEVICE, requires_grad=True)
    y = function(x)
    y.sum().backward()
    assert len(drawn) == 2
    assert torch.equal(x.grad, y)
    layer.keep_prob = 0.99
    assert (function(x) != 0).float().mean() > 0.9
    with use_backend("sparse"):
        function(x)
    assert len(drawn) == 4, "compiled code keeps its path"


@runs
@pytest.mark.usefixtures("on_triton")
def test_a_backward_pass_that_has_the_table_alone(monkeypatch):
    """As on a GPU, where a new keep_prob is written to the same memory."""
    torch._dynamo.reset()
    monkeypatch.setattr(operators, "needed_again", lambda keep_prob, table, backend: (None, table))
    function = torch.compile(DropBlock2d(3, keep_prob=0.5), backend="aot_eager", fullgraph=True)
    x = torch.ones(4, 8, 24, 24, device=DEVICE, requires_grad=True)
    y = function(x)
    y.sum().backward()
    assert torch.equal(x.grad, y)


@pytest.mark.skipif(not INTERPRETED, reason="reads the code that is generated for a CPU")
@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize(
    "memory_format", [torch.channels_last, pytest.param(torch.contiguous_format, marks=pytest.mark.sweep)]
)
def test_the_bits_are_taken_apart_where_the_neighbours_work(memory_format):
    """One kernel in each direction: no pass over the activation, and no mask of bytes, beside it."""
    torch._dynamo.reset()
    layer = DropBlock2d(3)
    function = torch.compile(lambda x: layer(torch.relu(x * 2)) + 1, fullgraph=True)
    x = torch.rand(2, 37, 12, 12).to(memory_format=memory_format).requires_grad_()
    _, codes = run_fw_bw_and_get_code(lambda: function(x))
    assert len(codes) == 2
    for code, operator in zip(codes, ("draw", "redraw"), strict=True):
        assert f"torch_dropblock.{operator}.default(" in code
        kernels = re.findall(r"^(\w+) = async_compile\.cpp_pybinding", code, re.MULTILINE)
        (kernel,) = (name for name in kernels if "randint" not in name)  # newer compilers have one for the key
        assert "where" in kernel


# --- a GPU -------------------------------------------------------------------------------------------------------


@on_gpu
def test_auto_takes_triton_for_cuda_tensors():
    from torch_dropblock import backend_report

    assert backend_report(torch.ones(2, 3, 8, 8, device="cuda")).backend == "triton"


@on_gpu
@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")  # it was made on the stream of the warm-up
def test_a_cuda_graph_draws_fresh_masks_and_follows_a_schedule():
    x = torch.ones(64, 64, 28, 28, device="cuda", requires_grad=True)
    keep_prob = torch.tensor(0.9, dtype=torch.float64, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            y = drop_block2d(x, 7, keep_prob=keep_prob)
            torch.autograd.grad(y.sum(), x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = drop_block2d(x, 7, keep_prob=keep_prob)
        (gradient,) = torch.autograd.grad(y.sum(), x)
    outputs = []
    for value in (0.9, 0.9, 0.5):
        keep_prob.fill_(value)
        graph.replay()
        assert torch.equal(gradient, y)
        assert (y != 0).float().mean().item() == pytest.approx(value, abs=0.01)
        outputs.append(y.detach().clone())
    assert not torch.equal(outputs[0], outputs[1])
    torch.cuda.manual_seed(3)
    graph.replay()
    first = y.detach().clone()
    torch.cuda.manual_seed(3)
    graph.replay()
    assert torch.equal(first, y)


@on_gpu
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")  # which PyTorch itself makes, to begin with
@pytest.mark.parametrize("inserted", [False, True])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_training_with_a_schedule(mode, inserted):
    torch._dynamo.reset()
    counters["inductor"].clear()
    network = nn.Sequential(nn.Identity() if inserted else DropBlock2d(7))
    layer = insert_dropblock(network, ["0"])["0"] if inserted else network[0]
    network.cuda()
    function = torch.compile(lambda x: network(x * 2) + 1, mode=mode, fullgraph=True)
    x = torch.ones(64, 64, 28, 28, device="cuda", requires_grad=True)
    seen = []
    for keep_prob in (0.9, 0.9, 0.9, 0.7, 0.5):
        layer.keep_prob = keep_prob
        torch.compiler.cudagraph_mark_step_begin()
        y = function(x)
        assert (y == 1).float().mean().item() == pytest.approx(1 - keep_prob, abs=0.02)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(gradient == 0, y == 1)
        seen.append((y == 1).clone())
    assert not torch.equal(seen[1], seen[2])
    assert not counters["inductor"]["cudagraph_skips"]


@on_gpu
@pytest.mark.parametrize("function", ["DropBlock2d(7)", "lambda x: drop_block2d(x, 7)"])
def test_the_first_call_of_a_process_may_be_that_of_a_cuda_graph(function):
    """PyTorch refuses tensors that stay in the pool of that call."""
    lines = (
        "import torch",
        "from torch_dropblock import DropBlock2d, drop_block2d",
        f"function = torch.compile({function}, mode='reduce-overhead')",
        "x = torch.ones(4, 8, 28, 28, device='cuda', requires_grad=True)",
        "for _ in range(4):",
        "    torch.compiler.cudagraph_mark_step_begin()",
        "    y = function(x)",
        "    (gradient,) = torch.autograd.grad(y.sum(), x)",
        "    assert torch.equal(gradient, y), (gradient, y)",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]


@on_gpu
def test_a_note_is_as_good_as_the_value_on_the_device():
    key, keep_prob = new_key(), torch.tensor([0.9], dtype=torch.float64, device=DEVICE)
    arguments = [4, 64], [14, 14], [7, 7], "exact", False, True, "triton"
    solved = operators.draw(key, keep_prob, *arguments)
    noted = operators.draw(key, operators.note(keep_prob, 0.9), *arguments)
    assert all(map(torch.equal, noted, solved))
    assert torch.equal(operators.redraw(key, None, noted[2], *arguments), solved[0])


@on_gpu
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_code_of_dynamic_sizes_has_the_mask_of_a_laptop(dynamic, memory_format):
    torch._dynamo.reset()
    function = torch.compile(lambda x: drop_block2d(x, 7, key=42), fullgraph=True, dynamic=dynamic)
    x = torch.ones(4, 64, 9, 7).to(memory_format=memory_format)
    assert torch.equal(function(x.cuda()).cpu(), drop_block2d(x, 7, key=42))


@on_gpu
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"share_batch": True},
        {"scale_by_keep": False},
        {"with_noise": True},
        {"share_batch": True, "scale_by_keep": False, "with_noise": True, "share_channels": True},
    ],
    ids=str,
)
def test_options_have_the_mask_and_the_noise_of_a_laptop(options, is_compiled, memory_format):
    torch._dynamo.reset()

    def function(x):
        return drop_block2d(x, 7, keep_prob=0.8, key=42, **options)

    x = (torch.rand(8, 64, 14, 14) + 1).to(memory_format=memory_format).requires_grad_()
    there = x.detach().cuda().requires_grad_()
    expected = function(x)
    expected.sum().backward()
    y = (torch.compile(function, fullgraph=True) if is_compiled else function)(there)
    y.sum().backward()
    torch.testing.assert_close(y.cpu(), expected, rtol=1e-4, atol=1e-4)  # logarithms differ in their last bits
    torch.testing.assert_close(there.grad.cpu(), x.grad)


@on_gpu
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_growing_blocks_in_compiled_code(mode):
    torch._dynamo.reset()
    layer = DropBlock2d(7, keep_prob=0.7).cuda()
    function = torch.compile(layer, mode=mode, fullgraph=True)
    for strength in (0.2, 0.5, 1.0):
        layer.set_strength(strength, grow_block=True)
        block = layer.block_size
        y = function(torch.ones(64, 64, 28, 28, device="cuda"))
        assert (y == 0).float().mean().item() == pytest.approx(1 - layer.keep_prob, abs=0.01)
        # every zero belongs to a whole block of zeros, and some blocks are no larger
        seeds = torch.nn.functional.max_pool2d(y, block, stride=1) == 0
        pad = torch.nn.functional.pad(seeds.half(), (block - 1,) * 4)
        assert torch.equal(torch.nn.functional.max_pool2d(pad, block, stride=1) == 1, y == 0)
        larger = torch.nn.functional.max_pool2d(y, block + 1, stride=1) == 0
        assert larger.sum() < seeds.sum() / 2


@on_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("share_channels", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_device_is_not_waited_for(memory_format, share_channels):
    x = torch.ones(16, 64, 28, 28, device="cuda").to(memory_format=memory_format).requires_grad_()
    keep_prob = torch.tensor(0.9, device="cuda")
    for backend in ("triton", "sparse"):
        with use_backend(backend):
            drop_block2d(x, 7, share_channels=share_channels).sum().backward()  # compiled before it is watched
            if backend == "triton":
                drop_block2d(x, 7, keep_prob=keep_prob, share_channels=share_channels).sum().backward()
            try:
                torch.cuda.set_sync_debug_mode("error")
                drop_block2d(x, 7, share_channels=share_channels).sum().backward()
                if backend == "triton":
                    drop_block2d(x, 7, keep_prob=keep_prob, share_channels=share_channels).sum().backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")


@on_gpu
def test_deterministic_mode_and_autocast():
    torch.use_deterministic_algorithms(True)
    try:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            x = torch.ones(4, 8, 28, 28, device="cuda", dtype=torch.bfloat16, requires_grad=True)
            y = drop_block2d(x, 7)
        y.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert y.dtype == torch.bfloat16


@on_gpu
@pytest.mark.parametrize("size", [(1024, 1024), (1, 1), (7, 7), (56, 56)])
def test_sizes(size, z_score):
    planes = max(64, 2**24 // math.prod(size))
    dropped = drop_block2d(torch.ones(planes, 1, *size, device="cuda"), 7) == 0
    assert abs(z_score(dropped.double().flatten(1).mean(-1).cpu(), 0.1)) < 5


@on_gpu
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_more_than_2_to_the_31_elements(memory_format):
    if torch.cuda.get_device_properties(0).total_memory < 24e9:
        pytest.skip("needs 24 GB")
    x = torch.ones(1100, 640, 56, 56, device="cuda", dtype=torch.float16).to(memory_format=memory_format)
    assert x.numel() > 2**31
    y = drop_block2d(x, 7, inplace=True)
    for part in (y[:10], y[-10:]):
        assert (part == 0).float().mean().item() == pytest.approx(0.1, abs=0.002)
        blocks = torch.nn.functional.max_pool2d(part.float(), 7, stride=1)  # every zero belongs to a whole block
        grown = torch.nn.functional.max_pool2d(torch.nn.functional.pad((blocks == 0).half(), (6, 6, 6, 6)), 7, stride=1)
        assert torch.equal(grown == 1, part == 0)


@on_gpu
@pytest.mark.parametrize("kind", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_speed(kind, dtype):
    """A wide bound, since machines are shared; benchmarks/gpu.py has the figures."""
    from torch_dropblock.bench import measure as bench

    case = bench.Case((128, 256, 64, 64), str(dtype).removeprefix("torch."), kind, device="cuda")
    rows = {row.contender: row for row in bench.measure(case, rounds=5)}
    assert rows[bench.OURS].ratio < 2
    assert rows[bench.OURS].saved_bytes_per_element * math.prod(case.shape) <= 64
