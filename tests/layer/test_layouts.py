"""Other layouts: the masks of the same maps with channels first, on every path, without a copy."""

import pytest
import torch
from torch import nn

from torch_dropblock import DropBlock1d, DropBlock2d, drop_block1d, drop_block2d, drop_block3d
from torch_dropblock.layer import layouts

DROP = {1: drop_block1d, 2: drop_block2d, 3: drop_block3d}
SIZES = {1: (60,), 2: (14, 14), 3: (6, 6, 6)}
OPTIONS = {"keep_prob": 0.8, "key": 7}


def maps_first(x, size, prefix=0):
    """The maps of (N, prefix + S, C) or (N, *S, C) with channels first."""
    units = x.flatten(1, -2)[:, prefix:].unflatten(1, size)
    return units.movedim(-1, 1)


def cases():
    for dims, size in SIZES.items():
        units = torch.Size(size).numel()
        yield dims, "channels_last", (2, *size, 5), 0
        yield dims, "tokens", (2, units + (0 if dims == 1 else 3), 5), 0 if dims == 1 else 3
        yield dims, size, (2, units + 2, 5), 2


@pytest.mark.parametrize(("dims", "layout", "shape", "prefix"), [*cases()])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("share_channels", [False, True])
def test_mask_and_scale_are_those_of_channels_first(dims, layout, shape, prefix, inplace, share_channels):
    x = torch.rand(shape) + 1
    size = SIZES[dims]
    wanted = DROP[dims](maps_first(x, size, prefix), 3, share_channels=share_channels, **OPTIONS)
    given = x.clone()
    y = DROP[dims](given, 3, layout=layout, inplace=inplace, share_channels=share_channels, **OPTIONS)
    assert (y is given) == inplace
    assert y.shape == x.shape
    assert torch.equal(maps_first(y, size, prefix), wanted)
    assert torch.equal(y.flatten(1, -2)[:, :prefix], x.flatten(1, -2)[:, :prefix])


@pytest.mark.parametrize(("dims", "layout", "shape", "prefix"), [*cases()])
@pytest.mark.parametrize("inplace", [False, True])
def test_gradients(dims, layout, shape, prefix, inplace):
    x = torch.rand(shape, dtype=torch.float64, requires_grad=True)

    def drop(x):
        return DROP[dims](x * 1, 3, layout=layout, inplace=inplace, **OPTIONS)

    assert torch.autograd.gradcheck(drop, x, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_unbatched_and_strided(dtype):
    x = torch.rand(2, 14, 14, 6).to(dtype)
    whole = drop_block2d(x, 3, layout="channels_last", **OPTIONS)
    assert whole.dtype == dtype
    assert whole.is_contiguous()
    one = drop_block2d(x[0], 3, layout="channels_last", **OPTIONS)
    assert torch.equal(one, drop_block2d(x[0].movedim(-1, 0), 3, **OPTIONS).movedim(0, -1))
    assert torch.equal(drop_block2d(x[..., ::2], 3, layout="channels_last", **OPTIONS),
                       drop_block2d(x[..., ::2].contiguous(), 3, layout="channels_last", **OPTIONS))  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch.*")  # of the compiler of PyTorch 2.8
@pytest.mark.parametrize(
    ("dims", "layout", "shape", "prefix"),
    [(1, "channels_last", (2, 60, 5), 0), (2, "channels_last", (2, 14, 12, 5), 0), (2, "tokens", (2, 199, 5), 3)],
)
def test_compiled_in_one_graph(dims, layout, shape, prefix):
    torch._dynamo.reset()
    layer = {1: DropBlock1d, 2: DropBlock2d}[dims](3, keep_prob=0.5, layout=layout)

    def run(x):
        return layer(x), DROP[dims](x, 3, layout=layout, **OPTIONS)

    x = torch.rand(shape) + 1
    y, z = torch.compile(run, fullgraph=True, backend="aot_eager")(x)
    dropped = y.flatten(1, -2)[:, prefix:] == 0
    assert 0.2 < dropped.float().mean() < 0.8
    assert torch.equal(y.flatten(1, -2)[:, :prefix], x.flatten(1, -2)[:, :prefix])
    assert torch.equal(z, run(x)[1])


def test_nothing_is_copied():
    """The backends see memory that is channels last, and a signal's as that of a map of height 1."""
    seen = []

    def drop(maps, block, inplace):
        seen.append((maps.data_ptr(), maps.is_contiguous(memory_format=torch.channels_last), block))
        return maps

    for shape, layout, block in [((2, 8, 8, 3), "channels_last", (3, 3)), ((2, 64, 3), "tokens", (3, 3)),
                                 ((2, 64, 3), "channels_last", (3,))]:  # fmt: skip
        x = torch.rand(shape)
        assert layouts.through(drop, x, layout, block, False) is x
        assert seen.pop() == (x.data_ptr(), True, (1, *block)[-2:])


def test_nothing_to_drop_returns_the_input():
    x = torch.rand(2, 8, 8, 3)
    assert drop_block2d(x, 3, keep_prob=1.0, layout="channels_last") is x
    assert DropBlock2d(3, layout="tokens").eval()(x) is x


def test_leaf_is_refused_before_anything_is_written():
    x = torch.rand(2, 17, 3, requires_grad=True)
    before = x.detach().clone()
    with pytest.raises(ValueError, match="leaf tensor"):
        drop_block2d(x, 3, keep_prob=0.5, layout="tokens", inplace=True)
    assert torch.equal(x, before)


def test_repr_and_assignment():
    assert "layout" not in repr(DropBlock2d(3))
    layer = DropBlock2d(3, layout=[4, 5])
    assert layer.layout == (4, 5)
    assert repr(layer).endswith("layout=(4, 5))")
    layer.layout = "channels_last"
    assert layer(torch.rand(1, 4, 5, 3)).shape == (1, 4, 5, 3)
    with pytest.raises(ValueError, match="layout must be"):
        layer.layout = "last"


def test_layer_saved_without_a_layout():
    layer = DropBlock2d(3)
    del layer.__dict__["layout"]
    assert layer(torch.rand(1, 3, 8, 8)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("layout", "error", "message"),
    [
        ("nhwc", ValueError, "layout must be 'channels_first', 'channels_last', 'tokens' or the size of a token grid"),
        (5, TypeError, "layout must be"),
        ((4,), ValueError, "layout must be a positive int or a sequence of 2 of them"),
        ((4, 0), ValueError, "layout must be"),
    ],
)
def test_bad_layouts(layout, error, message):
    with pytest.raises(error, match=message):
        drop_block2d(torch.rand(2, 16, 3), 3, layout=layout)


@pytest.mark.parametrize(
    ("x", "layout", "error", "message"),
    [
        (torch.rand(2, 3), "channels_last", ValueError, r"shape \(N, H, W, C\) or without the batch, got one of shape"),
        (torch.rand(2, 4, 4, 3), "tokens", ValueError, r"\(N, prefix \+ H·W, C\)"),
        (torch.rand(2, 10, 3), (4, 4), ValueError, "at least 16 tokens for layout=\\(4, 4\\), got 10; set layout"),
        ("x", "tokens", TypeError, "got a str"),
        (torch.ones(2, 16, 3, dtype=torch.int64), "tokens", TypeError, "dtype"),
    ],
)
def test_bad_inputs(x, layout, error, message):
    with pytest.raises(error, match=message):
        drop_block2d(x, 3, layout=layout)


@pytest.mark.parametrize(("tokens", "dims", "grid"), [(197, 2, (14, 14)), (196, 2, (14, 14)), (201, 2, (14, 14)),
                                                      (1, 2, (1, 1)), (27, 3, (3,) * 3), (26, 3, (2,) * 3),
                                                      (50, 1, (50,)), (10**6, 2, (1000, 1000))])  # fmt: skip
def test_square_grid(tokens, dims, grid):
    assert layouts.square_grid(tokens, dims) == grid


def test_layer_in_a_network_of_tokens():
    model = nn.Sequential(nn.Linear(3, 8), DropBlock2d(3, keep_prob=0.5, layout=(4, 6)), nn.Linear(8, 2))
    x = torch.rand(4, 25, 3)
    model(x).sum().backward()
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))
