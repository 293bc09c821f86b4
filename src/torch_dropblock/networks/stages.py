"""`insert_dropblock_stages`: insert layers into the last stages of any network, found by running it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

from torch import nn
from torch.nn.modules import batchnorm, conv, instancenorm

from ..core import checks, geometry
from ..core.checks import BlockSize, Rate
from ..core.geometry import Size
from ..core.hints import hinted
from . import sites
from .chains import Chains
from .inputs import InputSize
from .insertion import LAYERS
from .plan import Plan, Row, layout_text, table
from .probe import Probe, probe

Where = Literal["blocks", "norms", "convolutions"]
KINDS: tuple[Where, ...] = get_args(Where)
NORMS = (batchnorm._BatchNorm, instancenorm._InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@hinted(
    "the shape of an input comes second, batch first, and the rest are keywords: "
    "insert_dropblock_stages(model, (1, 3, 224, 224), stages=2, block_size=7, keep_prob=0.9)"
)
def insert_dropblock_stages(
    model: nn.Module,
    input_size: InputSize,
    *,
    stages: int = 2,
    block_size: BlockSize = 7,
    keep_prob: float = 0.9,
    dims: int = 2,
    where: Where = "blocks",
    rate: Rate = "exact",
    share_channels: bool = False,
    share_batch: bool = False,
    scale_by_keep: bool = True,
    with_noise: bool = False,
    inplace: bool = False,
    dry_run: bool = False,
) -> Plan:
    """Insert DropBlock after the repeated blocks of the last stages of a network. The model is changed in place.

    A stage is the blocks with maps of one resolution. The last has the smallest maps, and each before it drops a
    quarter of the share of the next, as in the paper.

    The blocks are found by running a copy of the model, without values, on inputs of several sizes. Axes that follow
    the height and width of the input are those of a map, so a layer gets the layout of the map that it acts on. Blocks
    are modules of one class, called in a chain. Without such blocks, layers follow the norms, and without norms the
    convolutions. They never follow what the model returns, maps of one unit, or what is inside an attention. Weights,
    statistics, modes and random state of the model stay as they are.

    Args:
        model: the network.
        input_size: shape of the model's input with its batch, such as (1, 3, 224, 224); several shapes, a mapping from
            keyword to shape, or tensors instead of shapes. `[[(3, 64, 64)]]` is a list of images as one argument.
        stages: number of resolutions that get layers, the last ones.
        block_size: size of a block, one for all spatial dimensions or one for each: units, clamped to the map, or a
            share of the map such as `"30%"`.
        keep_prob: probability that a unit is kept in the last stage, in [0, 1].
        dims: number of spatial dimensions of the maps, 1, 2 or 3.
        where: `"blocks"`, `"norms"` or `"convolutions"`; the last two leave out what comes before them.
        rate: `"exact"` or `"paper"`, as for the layer.
        share_channels: one mask per sample for all of its channels.
        share_batch: one mask for all samples.
        scale_by_keep: scale the kept units, or leave them as they are.
        with_noise: standard normal noise where dropped instead of 0.
        inplace: write into the outputs; see `insert_dropblock`.
        dry_run: insert nothing.

    Returns:
        The layers by the name of the module that each follows. Print it to see each place, map, block and keep_prob.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of its range; the model is wrapped or compiled, does not run on such an input, or
            has layers already; or no place was found. The error says why and names the closest candidates. Nothing is
            inserted then.

    Source: the strengths are those of the paper's authors, in resnet_model.py; the places are this library's rule.

    Examples:
        >>> def block():
        ...     return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        >>> stem, down = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.MaxPool2d(2)
        >>> model = nn.Sequential(stem, nn.Sequential(block(), block()), down, nn.Sequential(block(), block()))
        >>> model.append(nn.Conv2d(8, 2, 1))  # doctest: +ELLIPSIS
        Sequential(...
        >>> print(insert_dropblock_stages(model, (1, 3, 64, 64), block_size=5))
        after module  type          map  block  keep_prob
        ─────────────────────────────────────────────────
        1.0           Sequential  32×32    5×5      0.975
        1.1           Sequential  32×32    5×5      0.975
        3.0           Sequential  16×16    5×5        0.9
        3.1           Sequential  16×16    5×5        0.9
        <BLANKLINE>
        4 layers, after the blocks of the last 2 of 2 stages.
    """
    sites.refuse_wrapped(model, "insert")
    options: dict[str, Any] = {
        "rate": rate,
        "share_channels": share_channels,
        "share_batch": share_batch,
        "scale_by_keep": scale_by_keep,
        "with_noise": with_noise,
        "inplace": inplace,
    }
    checks.spatial_dims(dims)
    checks.whole_number("stages", stages, at_least=1)
    checks.flag("dry_run", dry_run)
    if where not in KINDS:
        raise ValueError(f"where must be 'blocks', 'norms' or 'convolutions', got {where!r}")
    keep_prob = checks.probability("keep_prob", keep_prob)
    LAYERS[dims](block_size, keep_prob=keep_prob, **options)  # check the rest before the model runs
    found = probe(model, input_size, dims)
    chains = Chains(found)
    kind, names = places(found, where, chains)
    ranks = depths(found, names)
    _refuse_too_few(model, found, kind, ranks, stages)
    chosen = [name for name in names if ranks[name] < stages]
    if kind == "blocks":
        chosen = chains.without_strays(chosen)
    layers, rows = {}, []
    for name in chosen:
        site, depth = found.maps[name], ranks[name]
        kept = 1.0 - (1.0 - keep_prob) / 4**depth if depth else keep_prob
        layers[name] = LAYERS[dims](block_size, keep_prob=kept, layout=site.layout, **options)
        block = geometry.clamp(site.size, checks.block_size(block_size, dims))
        rows.append(Row(name, type(found.modules[name]).__name__, site.size, site.layout, block, kept))
    if not dry_run:
        sites.attach(model, layers)
    return Plan(layers, rows, list(_notes(found, kind, len(layers), stages, 1 + max(ranks.values()))))


def places(found: Probe, where: Where, chains: Chains) -> tuple[Where, list[str]]:
    """Return the places for layers, of the first kind from `where` on that a network has, and that kind."""
    names: list[str] = []
    for kind in KINDS[KINDS.index(where) :]:
        names = chains.blocks() if kind == "blocks" else list(_modules_of(found, kind))
        if names:
            return kind, names
    return where, names


def depths(found: Probe, names: Sequence[str]) -> dict[str, int]:
    """Return the depth of each place: 0 in the last stage, 1 in the one before it, and so on.

    A map counts as smaller by the dilation of its convolutions: a dilated network has the maps of an earlier stage, and
    the depth of a later one.
    """
    dilations: dict[tuple[str, Size], int] = {}
    groups = {name: (name.rpartition(".")[0], found.maps[name].size) for name in names}
    for name in names:
        dilations[groups[name]] = max(dilations.get(groups[name], 1), _dilation(found, name))
    sizes = {name: [side / dilations[groups[name]] for side in found.maps[name].size] for name in names}
    smallest = [min(sides) for sides in zip(*sizes.values(), strict=True)]
    octaves = {
        name: round(max(math.log2(side / least) for side, least in zip(size, smallest, strict=True)))
        for name, size in sizes.items()
    }
    order = sorted(set(octaves.values()))
    return {name: order.index(octave) for name, octave in octaves.items()}


def _modules_of(found: Probe, kind: Where) -> Iterator[str]:
    """Yield the norms or the convolutions that return maps: none that makes the result, none inside an attention."""
    attentions = tuple(f"{name}." for name in found.trace.attends if name)
    seen = set(found.trace.returned)
    for name in [name for name in found.maps if name in found.trace.read]:
        module, call = found.modules[name], found.trace.calls[name][0]
        is_one = _is_norm(module) if kind == "norms" else isinstance(module, conv._ConvNd)
        if is_one and call.output and call.output.id not in seen and not name.startswith(attentions):
            seen.add(call.output.id)
            yield name


def _is_norm(module: nn.Module) -> bool:
    if isinstance(module, NORMS):
        return True
    return "norm" in type(module).__name__.lower() and all(parameter.dim() == 1 for parameter in module.parameters())


def _dilation(found: Probe, name: str) -> int:
    """Return the largest dilation of the convolutions in a module, or of the one whose output it takes."""
    inside = [module for module in found.modules[name].modules() if isinstance(module, conv._ConvNd)]
    taken = {tensor.id for tensor in found.trace.calls[name][0].inputs}
    if not inside:
        for other, calls in found.trace.calls.items():
            module = found.modules[other]
            if isinstance(module, conv._ConvNd) and any(call.output and call.output.id in taken for call in calls):
                inside.append(module)
    return max((max(module.dilation) for module in inside), default=1)


def _refuse_too_few(model: nn.Module, found: Probe, kind: Where, ranks: dict[str, int], stages: int) -> None:
    what = type(model).__name__
    if found.scrambled and (not ranks or kind != "blocks"):
        raise ValueError(
            f"the tokens of {len(found.scrambled)} modules of {what}, such as {found.scrambled[0]!r}, are not in the "
            f"order of rows and columns, so a block would be scattered over the image; {candidates(found)}"
        )
    if not ranks:
        raise ValueError(f"{what} has no block, norm or convolution with a map to drop from; {candidates(found)}")
    if kind != "blocks" and 2 * len(_with_maps(found)) < len(_with_parameters(found)):
        raise ValueError(
            f"fewer than half of the layers of {what} return maps, and it has no repeated blocks that do; "
            f"{candidates(found)}"
        )
    sizes = 1 + max(ranks.values())
    if sizes < stages:
        only = "all have maps of one resolution" if sizes == 1 else f"have maps of {sizes} resolutions"
        raise ValueError(
            f"stages must be at most {sizes} here, got {stages}: the {len(ranks)} {kind} of {what} {only}; "
            f"stages={sizes} takes all of them, and insert_dropblock(model, names) a part; {candidates(found)}"
        )


def _with_parameters(found: Probe) -> list[str]:
    points = {name for name, calls in found.trace.calls.items() if _returns_a_point(calls[0].output)}
    return [name for name, module in found.modules.items() if module._parameters and name not in points]


def _returns_a_point(output: Any) -> bool:
    return output is not None and len(output.shape) > 3 and set(output.shape[2:]) == {1}


def _with_maps(found: Probe) -> list[str]:
    return [name for name in _with_parameters(found) if name in found.maps]


def candidates(found: Probe, most: int = 4) -> str:
    """Name the last modules that return a map, of each size the last."""
    last = {found.maps[name].size: name for name in found.maps if name}
    names = sorted(last.values(), key=lambda name: math.prod(found.maps[name].size))[:most]
    if not names:
        return "no module of it returns a map that follows the height and width of the input"
    shown = (
        f"{name!r} ({type(found.modules[name]).__name__}, {'×'.join(map(str, found.maps[name].size))})"
        for name in names
    )
    return f"the closest candidates for insert_dropblock are {', '.join(shown)}"


def module_table(model: nn.Module, input_size: InputSize, dims: int, width: int) -> str:
    """Return a table of the modules that return maps: the candidates for `insert_dropblock`."""
    found = probe(model, input_size, dims)
    rows = [
        (name, type(found.modules[name]).__name__, "×".join(map(str, site.size)), layout_text(site.layout))
        for name, site in found.maps.items()
        if name
    ]
    if not rows:
        raise ValueError(f"{type(model).__name__} has no candidate: {candidates(found)}")
    note = (
        f"{len(rows)} of {len(found.modules)} modules return maps; insert_dropblock(model, names) takes them by name."
    )
    return table(("module", "type", "map", "layout"), rows, [note], width)


def _notes(found: Probe, kind: Where, layers: int, stages: int, sizes: int) -> Iterator[str]:
    last = "the last of" if stages == 1 else f"the last {stages} of"
    yield f"{layers} layer{'s' * (layers > 1)}, after the {kind} of {last} {sizes} stage{'s' * (sizes > 1)}."
    if found.trace.stopped:
        yield "The model needs values after its maps, as detectors do: modules that would have run then do not count."
    if found.fixed:
        yield "The model takes inputs of one size, so the layouts are those of its convolutions and norms."
