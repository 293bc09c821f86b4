"""Every check: what it accepts, and the kind and words of what it raises."""

import fractions
import functools

import numpy as np
import pytest
import torch

from torch_dropblock.core import checks


@pytest.mark.parametrize(
    ("value", "dims", "result"),
    [
        (7, 2, (7, 7)),
        ((3, 5), 2, (3, 5)),
        ([3, 5], 2, (3, 5)),
        (torch.Size([3, 5]), 2, (3, 5)),
        (np.int64(7), 3, (7, 7, 7)),
        (7, None, (7,)),
        ((2, 3, 4), None, (2, 3, 4)),
    ],
)
def test_positive_ints(value, dims, result):
    assert checks.positive_ints("size", value, dims) == result
    if dims:
        assert checks.block_size(value, dims) == result


@pytest.mark.parametrize(
    ("value", "dims", "result"),
    [
        ("30%", 2, (-300_000, -300_000)),
        (("30%", 7), 2, (-300_000, 7)),
        ([5, "12.5%", "100%"], 3, (5, -125_000, -1_000_000)),
        ("0.01%", 1, (-100,)),
        ("33.3333%", 1, (-333_333,)),
    ],
)
def test_shares_of_the_map(value, dims, result):
    assert checks.block_size(value, dims) == result


@pytest.mark.parametrize(
    "value", ["0%", "-5%", "101%", "%", "7", "x%", "nan%", "inf%", "0.00001%", ("30%", 0), ("30%",), ""]
)
def test_bad_shares(value):
    with pytest.raises(ValueError, match="^block_size must be a positive int or a share of the map such as '30%'"):
        checks.block_size(value, 2)


@pytest.mark.parametrize(
    ("value", "dims", "error"),
    [
        (0, 2, ValueError),
        (-1, 2, ValueError),
        ((3, 0), 2, ValueError),
        ((3,), 2, ValueError),
        ((3, 5, 7), 2, ValueError),
        ((), 2, ValueError),
        ((1, 1, 1, 1), None, ValueError),
        (True, 2, TypeError),
        ((3, False), 2, TypeError),
        (7.0, 2, TypeError),
        (0.1, 2, TypeError),
        (np.float32(7), 2, TypeError),
        (b"77", 2, TypeError),
        (None, 2, TypeError),
        ({7}, 2, TypeError),
        (torch.ones(2), 2, TypeError),
        (torch.tensor(7), 2, TypeError),
        (torch.tensor(True), 2, TypeError),
        (np.array([3, 3]), 2, TypeError),
        (-(10**400), 2, ValueError),
    ],
)
def test_bad_block_size(value, dims, error):
    for check, name in ((checks.block_size, "block_size"), (functools.partial(checks.positive_ints, "size"), "size")):
        if dims or name == "size":
            with pytest.raises(error, match=f"^{name} must be a positive int.*got ") as caught:
                check(value, dims)
            assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", [2**63, 10**400, (3, 10**400)])
def test_a_size_that_pytorch_cannot_hold(value):
    with pytest.raises(ValueError, match=r"^size must be below 2\*\*63, got "):
        checks.positive_ints("size", value, 2)
    with pytest.raises(ValueError, match=r"^block_size must be below 2\*\*63, got "):
        checks.block_size(value, 2)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_too_long_for_a_message(sign):
    """Python writes out no int of more than 4,300 digits."""
    number = sign * 10**5000
    for check in (
        lambda: checks.probability("name", number),
        lambda: checks.positive_ints("name", [number], 1),
        lambda: checks.whole_number("name", -abs(number), at_least=0),
    ):
        with pytest.raises(ValueError, match=r"^name must be .*too long to be written out"):
            check()


def test_a_float_block_size_gets_the_hint_that_torchvision_has_the_order_swapped():
    with pytest.raises(TypeError, match="torchvision's DropBlock2d.p, block_size. has them the other way round"):
        checks.block_size(0.1, 2)
    with pytest.raises(TypeError) as caught:
        checks.positive_ints("size", 0.1, 2)
    assert "torchvision" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        0,
        1,
        0.5,
        np.float32(0.5),
        fractions.Fraction(1, 2),
        fractions.Fraction(10**400, 3 * 10**400),
        torch.tensor(0.5),
        torch.tensor(0.5).half(),
    ],
)
def test_probability(value):
    result = checks.probability("keep_prob", value)
    assert type(result) is float
    assert result == float(value)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (-0.1, ValueError),
        (1.0000001, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (10**400, ValueError),
        (-(10**400), ValueError),
        (fractions.Fraction(10**400, 3), ValueError),
        (torch.tensor(1.5), ValueError),
        (torch.tensor(float("nan")), ValueError),
        ("0.9", TypeError),
        (None, TypeError),
        (True, TypeError),
        (0.9j, TypeError),
        ([0.9], TypeError),
        (torch.tensor([0.9]), TypeError),
        (torch.tensor(1), TypeError),
    ],
)
def test_bad_probability(value, error):
    with pytest.raises(error, match=r"^keep_prob must be a number in \[0, 1\].*got "):
        checks.probability("keep_prob", value)


@pytest.mark.parametrize(
    ("value", "error"), [("Exact", ValueError), ("", ValueError), (None, TypeError), (1, TypeError)]
)
def test_bad_rate(value, error):
    with pytest.raises(error, match="^rate must be 'exact' or 'paper', got "):
        checks.rate(value)


@pytest.mark.parametrize("value", [1, 0, None, "yes", torch.tensor(True)])
def test_bad_flag(value):
    with pytest.raises(TypeError, match="^inplace must be True or False, got "):
        checks.flag("inplace", value)


def test_generator():
    assert checks.generator(None, torch.device("cpu")) is None
    generator = torch.Generator()
    assert checks.generator(generator, torch.device("cpu")) is generator
    with pytest.raises(TypeError, match="^generator must be a torch.Generator or None, got 42"):
        checks.generator(42, torch.device("cpu"))
    with pytest.raises(ValueError, match="^generator must be on the input's device, cuda:0, got one on cpu"):
        checks.generator(generator, torch.device("cuda:0"))

    class OnAnotherGpu(torch.Generator):
        device = torch.device("cuda:1")

    for device in (torch.device("cuda:1"), torch.device("cuda")):
        assert checks.generator(OnAnotherGpu(), device).device.index == 1
    with pytest.raises(ValueError, match="^generator must be on the input's device, cuda:0, got one on cuda:1"):
        checks.generator(OnAnotherGpu(), torch.device("cuda:0"))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_feature_map(dims):
    for lead in ((2,), (2, 3)):
        value = torch.ones(*lead, *[4] * dims)
        assert checks.feature_map(value, dims) is value


@pytest.mark.parametrize(
    ("value", "dims", "error", "words"),
    [
        (torch.ones(4, 4), 2, ValueError, r"shape \(N, C, H, W\) or \(C, H, W\), got one of shape \(4, 4\)"),
        (torch.ones(1, 1, 1, 4, 4), 2, ValueError, r"got one of shape \(1, 1, 1, 4, 4\)"),
        (torch.ones(4), 1, ValueError, r"\(N, C, L\) or \(C, L\)"),
        (torch.ones(4, 4, 4), 3, ValueError, r"\(N, C, D, H, W\) or \(C, D, H, W\)"),
        (torch.tensor(1.0), 2, ValueError, r"got one of shape \(\)"),
        (torch.ones(1, 1, 4, 4, dtype=torch.int64), 2, TypeError, "got torch.int64"),
        (torch.ones(1, 1, 4, 4, dtype=torch.bool), 2, TypeError, "got torch.bool"),
        (torch.ones(1, 1, 4, 4, dtype=torch.complex64), 2, TypeError, "got torch.complex64"),
        (torch.ones(1, 1, 4, 4).to(torch.float8_e4m3fn), 2, TypeError, "got torch.float8_e4m3fn"),
        (torch.ones(4, 4, 4).to_sparse(), 2, TypeError, "layout torch.sparse_coo"),
        (np.ones((1, 1, 4, 4)), 2, TypeError, "got a ndarray"),
        ([[[[1.0]]]], 2, TypeError, "got a list"),
        (None, 2, TypeError, "got a NoneType"),
    ],
)
def test_bad_feature_map(value, dims, error, words):
    with pytest.raises(error, match=f"^input must be .*{words}"):
        checks.feature_map(value, dims)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_a_nested_tensor_is_no_feature_map():
    with pytest.raises(TypeError, match="^input must be .* got a nested one"):
        checks.feature_map(torch.nested.nested_tensor([torch.ones(3, 4, 4), torch.ones(3, 5, 4)]), 2)


def test_writable():
    leaf = torch.ones(2, 3, 4, 4, requires_grad=True)
    with pytest.raises(ValueError, match="^inplace=True is not possible on a leaf tensor that requires grad"):
        checks.writable(leaf)
    with torch.no_grad():
        checks.writable(leaf)
        checks.writable(leaf[:1])
    checks.writable(leaf * 1)
    checks.writable((leaf * 1)[:1])
    with pytest.raises(ValueError, match="^inplace=True is not possible on a view of a leaf tensor that requires grad"):
        checks.writable(leaf[:1])


@pytest.mark.parametrize("split", [lambda x: x.chunk(2), lambda x: x.split([1, 1]), lambda x: x.split(1), torch.unbind])
def test_writable_on_one_of_several_views(split):
    several = split(torch.ones(2, 3, 4, 4, requires_grad=True) * 1)
    for view in (several[0], several[0][:], several[0].view(-1, 4)):
        with pytest.raises(ValueError, match="^inplace=True is not possible on a view made with others at once"):
            checks.writable(view)
    with pytest.raises(RuntimeError, match="view"):  # autograd itself says so, but only after the write
        view.mul_(1)


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x[:1]

    @staticmethod
    def backward(ctx, grad):
        return torch.cat([grad, torch.zeros_like(grad)])


def test_writable_on_views_that_autograd_cannot_follow():
    x = torch.ones(2, 3, 4, 4, requires_grad=True) * 1
    with torch.no_grad():
        silent = x[:1]
    for view, words in ((silent, "under no_grad"), (Halved.apply(x), r"by an autograd\.Function")):
        with pytest.raises(ValueError, match=f"^inplace=True is not possible on a view made {words}"):
            checks.writable(view)
        with torch.no_grad():
            checks.writable(view)
    checks.writable(x.detach())
    checks.writable(x.detach()[:1])


def test_writable_on_a_tensor_of_inference_mode():
    with torch.inference_mode():
        x = torch.ones(2, 3, 4, 4)
        checks.writable(x)
    with pytest.raises(ValueError, match="outside inference mode on a tensor made in it"):
        checks.writable(x)


@pytest.mark.parametrize(
    ("make", "overlaps"),
    [
        (lambda: torch.ones(2, 3, 4, 4), False),
        (lambda: torch.ones(2, 3, 4, 4).permute(2, 0, 3, 1), False),
        (lambda: torch.ones(4, 6, 8, 8)[::2, 1::3, :, ::2], False),
        (lambda: torch.ones(1, 3, 4, 4).expand(1, 3, 4, 4), False),
        (lambda: torch.ones(1, 3, 4, 4).expand(2, 3, 4, 4), True),
        (lambda: torch.ones(20).as_strided((2, 3, 4), (1, 1, 4)), True),
        (lambda: torch.ones(20).unfold(0, 4, 1), True),
        (lambda: torch.ones(20).unfold(0, 4, 4), False),
    ],
)
def test_writable_on_overlapping_memory(make, overlaps):
    if overlaps:
        with pytest.raises(
            ValueError, match="^inplace=True is not possible on a tensor whose elements may share memory"
        ):
            checks.writable(make())
    else:
        checks.writable(make())


@pytest.mark.parametrize(
    ("value", "result"),
    [
        (None, None),
        (0, 0),
        (-(2**63), -(2**63)),
        (2**63 - 1, 2**63 - 1),
        (2**63, -(2**63)),
        (2**64 - 1, -1),
        (np.int64(-5), -5),
        (np.uint64(2**64 - 1), -1),
        (np.uint8(200), 200),
    ],
)
def test_key(value, result):
    key = checks.key(value, None)
    assert key == result
    assert type(key) is type(result)


def test_a_key_that_is_a_tensor_is_taken_as_it_is():
    key = torch.tensor(-5)
    assert checks.key(key, None) is key


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (2**64, ValueError),
        (-(2**63) - 1, ValueError),
        (1.0, TypeError),
        (True, TypeError),
        ("5", TypeError),
        ([5], TypeError),
        (np.float32(5), TypeError),
        (np.array([5, 6]), TypeError),
        (torch.tensor(5.0), TypeError),
        (torch.tensor(5, dtype=torch.int32), TypeError),
        (torch.tensor(True), TypeError),
        (torch.tensor([5]), TypeError),
    ],
)
def test_bad_key(value, error):
    with pytest.raises(error, match="^key must be an int of 64 bits or an int64 tensor of no dimensions, got "):
        checks.key(value, None)


def test_key_and_generator_exclude_each_other():
    with pytest.raises(ValueError, match="^key and generator exclude each other"):
        checks.key(5, torch.Generator())
    assert checks.key(None, torch.Generator()) is None


@pytest.mark.parametrize("value", [(2, 0, 8), [2, 0, 8], torch.Size([2, 0, 8]), (np.int64(2), 0, 8)])
def test_sizes(value):
    assert checks.sizes("shape", value) == (2, 0, 8)


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (8, TypeError, "shape must be a sequence of ints, got 8"),
        ("88", TypeError, "shape must be a sequence of ints, got '88'"),
        (torch.ones(2), TypeError, "shape must be a sequence of ints"),
        ((2, -1), ValueError, r"shape\[1\] must be an int of at least 0, got -1"),
        ((2, 1.5), TypeError, r"shape\[1\] must be an int of at least 0, got 1.5"),
        ((True, 2), TypeError, r"shape\[0\] must be an int of at least 0, got True"),
    ],
)
def test_bad_sizes(value, error, words):
    with pytest.raises(error, match=f"^{words}"):
        checks.sizes("shape", value)
