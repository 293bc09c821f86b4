"""`insert_dropblock_stages`: the last stages of any network."""

import copy

import pytest
import torch
from torch import nn

from helpers.small_networks import ChannelsLast, Pyramid, Residual, Transformer
from torch_dropblock import KeepProbSchedule, dropblock_summary, insert_dropblock_stages, remove_dropblock

SHAPES = {1: (2, 3, 64), 2: (2, 3, 32, 32), 3: (2, 3, 16, 32, 32)}
IMAGE = SHAPES[2]


def planned(model, shape=IMAGE, **options):
    plan = insert_dropblock_stages(model, shape, dry_run=True, **options)
    return {row.name: (row.map, row.layout, pytest.approx(row.keep_prob)) for row in plan.rows}


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_places_and_strengths(dims):
    model = Pyramid(dims)
    layers = insert_dropblock_stages(model, SHAPES[dims], dims=dims, block_size=3, keep_prob=0.8)
    assert {name: layer.keep_prob for name, layer in layers.items()} == pytest.approx(
        {"stage2.0": 0.95, "stage2.1": 0.95, "stage3.0": 0.8, "stage3.1": 0.8}
    )
    assert {layer.dims for layer in layers.values()} == {dims}


@pytest.mark.parametrize(
    ("model", "stages"), [(Pyramid(), 3), (ChannelsLast(), 2), (Transformer(), 1), (Transformer(fixed=32), 1)]
)
def test_training_step_checkpoints_and_removal(model, stages):
    plain = copy.deepcopy(model).eval()
    x = torch.randn(IMAGE)
    expected = plain(x)
    layers = insert_dropblock_stages(model, IMAGE, stages=stages, block_size=3, keep_prob=0.5)
    summary = dropblock_summary(model, IMAGE)
    assert {row.name: row.size for row in summary.rows} == {row.name: row.map for row in layers.rows}
    assert not any(row.is_doubtful for row in summary.rows)
    schedule = KeepProbSchedule(model, 2)
    schedule.step()
    assert not torch.equal(model(x), model(x))
    model(x).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    plain.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(plain.state_dict(), strict=True)
    assert torch.equal(model.eval()(x), plain(x))
    assert remove_dropblock(model) == len(layers)
    assert expected.shape == model(x).shape


def test_layouts_of_the_layers():
    assert {row.layout for row in insert_dropblock_stages(ChannelsLast(), IMAGE).rows} == {"channels_last"}
    assert {layer.layout for layer in insert_dropblock_stages(Transformer(), IMAGE, stages=1).values()} == {"tokens"}
    wide = insert_dropblock_stages(Transformer(), (1, 3, 16, 64), stages=1)
    assert {layer.layout for layer in wide.values()} == {(4, 16)}


def test_tokens_are_dropped_in_blocks_and_the_class_token_never():
    model = Transformer().train()
    (layer, *_) = insert_dropblock_stages(model, IMAGE, stages=1, keep_prob=0.5, block_size=8).values()
    seen = []
    model.blocks[0].register_forward_hook(lambda _module, _args, output: seen.append(output == 0))
    model(torch.randn(IMAGE))
    dropped = seen[0]
    assert not dropped[:, 0].any()
    assert 0 < dropped[:, 1:].float().mean() < 1
    assert torch.equal(dropped[:, 1:].all(1), dropped[:, 1:].any(1)), "a block of the size of the grid takes it whole"
    assert layer.keep_prob == 0.5


def test_dry_run_changes_nothing_and_is_deterministic():
    model = Pyramid()
    first, second = (insert_dropblock_stages(model, IMAGE, dry_run=True) for _ in range(2))
    assert (str(first), first.rows) == (str(second), second.rows)
    assert remove_dropblock(model) == 0
    assert insert_dropblock_stages(model, IMAGE).rows == first.rows


def test_random_state_weights_and_modes_stay():
    model = Transformer().eval()
    state, weights = torch.get_rng_state(), [p.clone() for p in model.parameters()]
    insert_dropblock_stages(model, IMAGE, stages=1)
    assert torch.equal(state, torch.get_rng_state())
    assert all(map(torch.equal, weights, model.parameters()))
    assert not any(module.training for module in model.modules())


class Plain(nn.Module):
    """Norms or convolutions in two sizes, and a classifier that is a convolution too."""

    def __init__(self, norm):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 5, 3, 2, 1)
        self.norm_a, self.norm_b = (nn.BatchNorm2d(4), nn.BatchNorm2d(5)) if norm else (nn.Identity(), nn.Identity())
        self.last = nn.Conv2d(5, 2, 1)

    def forward(self, x):
        return self.last(self.norm_b(self.b(self.norm_a(self.a(x)).relu())).relu()).flatten(1)


def test_norms_then_convolutions():
    assert planned(Plain(norm=True)).keys() == {"norm_a", "norm_b"}
    assert planned(Plain(norm=False)).keys() == {"a", "b"}
    assert planned(Pyramid(), where="norms").keys() == {
        f"stage{stage}.{block}.norm" for stage in (2, 3) for block in (0, 1)
    }
    assert planned(Pyramid(), where="convolutions", stages=1).keys() == {"stage3.0.conv", "stage3.1.conv"}


def test_norms_inside_an_attention_are_left_out():
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GroupNorm(1, 8), AttentionOfMaps(), nn.Conv2d(8, 2, 1))
    assert planned(model, where="norms", stages=1).keys() == {"1"}


class AttentionOfMaps(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.query = nn.GroupNorm(1, 8), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        q = self.query(self.norm(x)).flatten(2)
        return x + (q @ (q.transpose(1, 2) @ q).softmax(-1)).view_as(x)


def test_dilated_stages_keep_their_depth():
    def dilated(model, stage, dilation):
        for block in model.get_submodule(stage):
            block.conv.stride, block.conv.dilation, block.conv.padding = (1, 1), (dilation,) * 2, (dilation,) * 2

    model = Pyramid()
    dilated(model, "stage3", 2)
    assert {name: row[::2] for name, row in planned(model).items()} == {
        f"stage{stage}.{block}": ((8, 8), kept) for stage, kept in ((2, 0.975), (3, 0.9)) for block in (0, 1)
    }


def test_lists_of_images_and_dicts():
    class OfList(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Pyramid()

        def forward(self, images):
            return self.net(torch.stack(images["images"] if isinstance(images, dict) else images))

    images = [(3, 32, 32), (3, 32, 32)]
    expected = {f"net.stage{stage}.{block}" for stage in (2, 3) for block in (0, 1)}
    assert planned(OfList(), [images]).keys() == expected
    assert planned(OfList(), [{"images": images}]).keys() == expected


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Transformer(), {}, "stages must be at most 1 here, got 2: the 3 blocks of Transformer all have maps of one "
         "resolution; stages=1 takes all of them"),
        (Pyramid(), {"stages": 4}, "stages must be at most 3 here, got 4: the 6 blocks of Pyramid have maps of 3 "
         "resolutions; stages=3"),
        (Transformer(scrambled=True), {}, "are not in the order of rows and columns, so a block would be scattered"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 5)), {}, "no block, norm or convolution with a map to drop "
         "from; no module of it returns a map that follows the height and width of the input"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.LazyLinear(9), nn.LazyLinear(9),
                       nn.LazyLinear(9)), {"stages": 1}, "fewer than half of the layers of Sequential return maps"),
        (Pyramid(), {"where": "heads"}, "where must be 'blocks', 'norms' or 'convolutions', got 'heads'"),
        (Pyramid(), {"dims": 4}, "dims must be 1, 2 or 3, got 4"),
        (Pyramid(), {"stages": 0}, "stages must be an int of at least 1, got 0"),
        (Pyramid(), {"keep_prob": 2.0}, "keep_prob must be a number in \\[0, 1\\]"),
        (Pyramid(), {"block_size": 0}, "block_size must be"),
    ],
)  # fmt: skip
def test_refusals(model, options, message):
    with pytest.raises(ValueError, match=message):
        insert_dropblock_stages(model, IMAGE, **options)


def test_refusals_name_the_closest_candidates():
    with pytest.raises(ValueError, match=r"closest candidates for insert_dropblock are 'blocks' \(Sequential, 8×8\)"):
        insert_dropblock_stages(Transformer(), IMAGE)


def test_wrapped_and_done_before():
    model = Pyramid()
    insert_dropblock_stages(model, IMAGE)
    with pytest.raises(ValueError, match="has an inserted DropBlock layer already"):
        insert_dropblock_stages(model, IMAGE)
    with pytest.raises(ValueError, match=r"torch\.compile has wrapped it"):
        insert_dropblock_stages(torch.compile(Pyramid()), IMAGE)
    with pytest.raises(TypeError, match="insert_dropblock_stages\\(model, \\(1, 3, 224, 224\\)"):
        insert_dropblock_stages(Pyramid(), IMAGE, 2)


def test_shape_that_does_not_fit():
    with pytest.raises(ValueError, match=r"the model does not run on an input of shape \(1, 1, 32, 32\)"):
        insert_dropblock_stages(nn.Sequential(Residual(3), Residual(3)), (1, 1, 32, 32))
