"""Calls that are followed operator by operator: the same bits as in eager mode, or an error that says what to do."""

import pytest
import torch
from torch import nn
from torch._functorch.aot_autograd import aot_function, make_boxed_func
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize, linearize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from torch_dropblock import DropBlock2d, drop_block2d
from torch_dropblock.layer import tracing

# torch's own forward-mode rules still use its deprecated torch.jit.script when they are first loaded
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.(script|trace).* is deprecated")


def drop(x, **options):
    return drop_block2d(x, 3, keep_prob=0.7, **options)


def seeded(function, *arguments):
    torch.manual_seed(3)
    return function(*arguments)


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def watched(x):
    with Watching():
        return drop(x)


def in_place(x):
    return drop(x * 1, inplace=True)


def wrapped(x):
    return torch._from_functional_tensor(drop(torch._to_functional_tensor(x)))


def doubled(x):
    return drop(TwoTensor(x, x)).a


@pytest.mark.parametrize(
    "function", [watched, functionalize(drop), functionalize(in_place), wrapped, doubled], ids=lambda f: f.__name__
)
def test_the_same_bits_as_in_eager_mode(function):
    x = torch.randn(4, 8, 12, 12)
    assert torch.equal(seeded(function, x), seeded(drop, x))


@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
def test_make_fx_records_a_fresh_mask_for_each_call(tracing_mode):
    x = torch.randn(4, 8, 12, 12)
    traced = make_fx(drop, tracing_mode=tracing_mode)(x)
    assert torch.equal(seeded(traced, x), seeded(drop, x))
    assert not torch.equal(traced(x), traced(x))


def test_aot_function():
    function = aot_function(drop, fw_compiler=lambda graph, _: make_boxed_func(graph))
    x = torch.randn(4, 8, 12, 12, requires_grad=True)
    y = seeded(function, x)
    assert torch.equal(y, seeded(drop, x))
    y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # of PyTorch's own folding
def test_linearize():
    """As with dropout, the linear function draws at each call."""
    x, tangent = torch.ones(4, 8, 12, 12), torch.randn(4, 8, 12, 12)
    y, linear = linearize(drop, x)
    assert (y == 0).any()
    kept = seeded(linear, x)
    assert torch.equal(kept, seeded(drop, x))
    assert torch.equal(seeded(linear, tangent), tangent * kept)


@pytest.mark.parametrize("function", [watched, functionalize(drop)], ids=lambda f: f.__name__)
def test_derivatives(function):
    x = torch.rand(2, 3, 8, 8).add(1).requires_grad_()
    y = function(x * x)
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    assert torch.equal(gradient == 0, y == 0)
    torch.testing.assert_close(second * x, gradient)


def test_a_flop_counter_leaves_the_mask_alone():
    layer = nn.Sequential(nn.Conv2d(8, 8, 3), DropBlock2d(3))
    x = torch.randn(4, 8, 12, 12)
    with FlopCounterMode(display=False) as counter:
        y = seeded(layer, x)
    assert torch.equal(y, seeded(layer, x))
    assert counter.get_total_flops() == 2 * 4 * 8 * 8 * 9 * 10 * 10


def test_what_is_followed():
    x = torch.ones(2, 3, 8, 8)
    subclass = x.as_subclass(type("Subclass", (torch.Tensor,), {}))
    for plain in (x, nn.Parameter(x), subclass, x[:, :, ::2], x.new_empty(0, 3, 8, 8)):
        assert not tracing.followed(plain)
    for other in (x.to("meta"), FakeTensorMode().from_tensor(x), torch._to_functional_tensor(x), TwoTensor(x, x)):
        assert tracing.followed(other)
    assert torch.vmap(lambda x: torch.tensor(tracing.followed(x)))(x).tolist() == [False, False]
    with Watching():
        assert tracing.followed(x)


@pytest.mark.parametrize("trace", [torch.jit.trace, torch.jit._get_trace_graph], ids=["trace", "graph"])
@pytest.mark.parametrize("inplace", [False, True])
def test_jit_trace_says_what_to_do_and_leaves_pytorch_usable(trace, inplace):
    network = nn.Sequential(nn.Conv2d(8, 8, 3), DropBlock2d(3, inplace=inplace))
    x = torch.randn(4, 8, 12, 12)
    with pytest.raises(ValueError, match=r"^training must be False under torch\.jit\.trace.*call model\.eval\(\)"):
        trace(network, (x,))
    torch.jit.trace(nn.Conv2d(8, 8, 3), x)
    operators = {node.kind() for node in torch.jit.trace(network.eval(), x).inlined_graph.nodes()}
    assert {kind for kind in operators if kind.startswith("aten::")} == {"aten::_convolution"}
    assert (drop(x) == 0).any()


def test_jit_trace_where_nothing_is_dropped():
    network = nn.Sequential(nn.Conv2d(8, 8, 3), DropBlock2d(3, keep_prob=1.0))
    x = torch.randn(4, 8, 12, 12)
    assert torch.equal(torch.jit.trace(network, x)(x), network(x))
