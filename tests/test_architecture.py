"""Imports point one way, the layer needs torch alone, and every source file has a test file."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import torch_dropblock

SOURCE = Path(torch_dropblock.__file__).parent
# each line may import from the lines above it
LAYERS = [
    {"checks", "coverage", "hints", "rng", "summary_table", "tracing", "wording", "integrations.__init__"},
    {"geometry"},
    {"reference", "drawing"},
    {"sparse"},
    {"native", "triton_apply", "triton_gamma", "triton_plan"},
    {"triton_draw"},
    {"triton_launch"},
    {"backends"},
    {"autograd", "compiled"},
    {"functional"},
    {"modules"},
    {"modes"},
    {"sites"},
    {"notices", "maps", "watch"},
    {"insertion", "resnet", "conversion", "schedule", "summary", "uncertainty"},
    {"__init__"},
    {"integrations.lightning"},
    {"photo", "figures"},
    {"demo", "bench", "terminal", "named_models", "playground_view"},
    {"compare.__init__", "compare.settings"},
    {"compare.networks", "compare.noise", "compare.processes", "compare.result_lines", "compare.rows"},
    {"compare.image_file", "compare.records", "compare.source"},
    {"compare.arrays", "compare.image_folder"},
    {"compare.folder_parts"},
    {"compare.folders"},
    {"compare.data"},
    {"compare.training", "compare.report"},
    {"compare.checkpoints"},
    {"compare.study"},
    {"playground_page", "playground_calls", "study_progress"},
    {"playground_sessions", "playground_uploads"},
    {"playground_gate"},
    {"playground"},
    {"playground_server"},
    {"cli_bench", "cli_compare", "cli_playground", "cli_summary"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
NOT_FOR_THE_LAYER = ["matplotlib", "typer", "rich", "PIL", "numpy", "triton", "lightning", "gradio", "torchvision"]


def imported(path):
    """The names in RANK of what a file imports of the package."""
    inside = ["torch_dropblock", *name_of(path).split(".")]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = inside[: -node.level] if node.level else []
            module = ".".join([*module, node.module or ""]).strip(".")
            if module.split(".")[0] == "torch_dropblock":
                yield from {_ranked(f"{module}.{alias.name}") or _ranked(module) for alias in node.names}
        elif isinstance(node, ast.Import):
            yield from [_ranked(alias.name) for alias in node.names if alias.name.split(".")[0] == "torch_dropblock"]


def _ranked(module):
    name = module.removeprefix("torch_dropblock").lstrip(".")
    return next((n for n in (name, f"{name}.__init__".lstrip(".")) if n in RANK), None)


def name_of(path):
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=name_of)
def test_imports_point_one_way(path):
    for name in imported(path):
        assert RANK[name] < RANK[name_of(path)], f"{name_of(path)} imports {name}"


PACKAGES = {"__init__", "__main__", "integrations.__init__", "compare.__init__"}


@pytest.mark.parametrize("name", sorted(RANK.keys() - PACKAGES))
def test_every_source_file_has_a_test_file(name):
    assert (SOURCE / name.replace(".", "/")).with_suffix(".py").exists()
    assert (Path(__file__).parent / f"test_{name.replace('.', '_')}.py").exists()


def test_the_layer_imports_nothing_but_torch():
    """What torch itself imports does not count. The import registers the operators that a saved program needs."""
    code = (
        "import sys, torch; before = set(sys.modules); import torch_dropblock; "
        f"print([name for name in {NOT_FOR_THE_LAYER} if name in set(sys.modules) - before], "
        "torch.ops.torch_dropblock.draw.default)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] torch_dropblock.draw.default"


def test_public_names():
    assert {name for name in dir(torch_dropblock) if not name.startswith("_")} == set(torch_dropblock.__all__)
    assert set(torch_dropblock.__all__) == {
        *(f"DropBlock{dims}" for dims in ("", "1d", "2d", "3d")),
        *(f"drop_block{dims}" for dims in ("1d", "2d", "3d")),
        "seed_probability",
        "expected_keep_rate",
        "keep_rate_map",
        "insert_dropblock",
        "insert_dropblock_resnet",
        "remove_dropblock",
        "convert_dropblock",
        "dropblock_summary",
        "mc_dropblock",
        "use_backend",
        "backend_report",
        "KeepProbSchedule",
    }
    assert torch_dropblock.__version__
    assert (SOURCE / "py.typed").exists()


def test_type_checkers_see_the_names_that_are_loaded():
    (checked,) = (node for node in ast.parse(SOURCE.joinpath("__init__.py").read_text()).body if type(node) is ast.If)
    seen = [(node.module, node.names[0].name, node.names[0].asname) for node in checked.body]
    assert seen == [(home, name, name) for home, names in torch_dropblock._PUBLIC.items() for name in names]


def test_public_names_are_there_before_torch_is_imported():
    code = """
import pickle, sys
import torch_dropblock
assert not hasattr(torch_dropblock, "nothing")
assert {"DropBlock2d", "__version__"} <= set(dir(torch_dropblock))
assert "torch" not in sys.modules, "torch was imported"
import torch

def drop(x):
    return torch_dropblock.drop_block2d(x, 3, keep_prob=0.5)

y = torch.compile(drop, fullgraph=True, backend="aot_eager")(torch.ones(2, 3, 9, 9))
assert (y == 0).any() and (y > 1).any()
names = {}
exec("from torch_dropblock import *", names)
assert set(torch_dropblock.__all__) <= set(names)
assert all(names[name] is getattr(torch_dropblock, name) for name in torch_dropblock.__all__)
for name in torch_dropblock.__all__:
    assert pickle.loads(pickle.dumps(names[name])) is names[name]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


LAYER = {"keep_prob": 0.9, "rate": "exact", "share_channels": False, "inplace": False}
DEFAULTS = {
    **{f"DropBlock{dims}d": LAYER for dims in (1, 2, 3)},
    **{f"drop_block{dims}d": LAYER | {"training": True, "generator": None} for dims in (1, 2, 3)},
    "DropBlock": {"p": 0.5},
    "seed_probability": {"rate": "exact"},
    "KeepProbSchedule": {"curve": "linear", "start_step": 0},
    "insert_dropblock": LAYER | {"block_size": 7, "dims": 2},
    "insert_dropblock_resnet": LAYER | {"block_size": 7, "groups": (3, 4), "inplace": True},
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_stay_what_they_are(name):
    parameters = inspect.signature(getattr(torch_dropblock, name)).parameters.values()
    assert {p.name: p.default for p in parameters if p.default is not p.empty} == DEFAULTS[name]
