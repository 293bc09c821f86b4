"""Imports point one way, the layer needs torch alone, and every source file has a test file."""

import ast
import graphlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import torch_dropblock

SOURCE = Path(torch_dropblock.__file__).parent
TESTS = Path(__file__).parents[1]
# Each line may import from the lines above it; the entries of a line, from one another in no way.
WINGS = [
    {"core"},
    {"backends"},
    {"layer"},
    {"networks", "pictures", "bench"},
    {"playground", "compare", "integrations"},
    {"command"},
]
FLOOR = {wing: floor for floor, wings in enumerate(WINGS) for wing in wings}
FILES = sorted(path for path in SOURCE.rglob("*.py") if len(path.relative_to(SOURCE).parts) > 1)
MODULES = [path for path in FILES if path.name != "__init__.py"]
NOT_FOR_THE_LAYER = ["matplotlib", "typer", "rich", "PIL", "numpy", "triton", "lightning", "gradio", "torchvision"]


def name_of(path):
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


NAMES = {name_of(path) for path in FILES}


def imported(path):
    """The modules of the package that a file imports, wherever in it."""
    package = ["torch_dropblock", *path.relative_to(SOURCE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            if module.split(".")[0] == "torch_dropblock":
                module = module.removeprefix("torch_dropblock").lstrip(".")
                for alias in node.names:
                    name = f"{module}.{alias.name}".lstrip(".")
                    yield name if name in NAMES else module
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "torch_dropblock":
                    yield alias.name.removeprefix("torch_dropblock").lstrip(".")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_wings_import_from_the_wings_before_them(path):
    wing = name_of(path).split(".")[0]
    for name in imported(path):
        if name:  # the package itself has its version
            other = name.split(".")[0]
            assert other == wing or FLOOR[other] < FLOOR[wing], f"{name_of(path)} imports {name}"


def test_no_file_imports_itself_by_way_of_others():
    graphlib.TopologicalSorter({name_of(path): set(imported(path)) for path in FILES}).prepare()


def test_the_top_of_the_package_is_its_wings():
    names = {path.name for path in SOURCE.iterdir()} - {"__pycache__"}
    assert names == {"__init__.py", "__main__.py", "py.typed", *FLOOR}
    assert len(WINGS) <= 8


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_source_file_has_a_test_file(path):
    place = path.relative_to(SOURCE)
    assert (TESTS / place.parent / f"test_{place.stem}.py").exists()


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
        "drop_block_mask",
        "seed_probability",
        "expected_keep_rate",
        "keep_rate_map",
        "insert_dropblock",
        "dropblock_layers",
        "insert_dropblock_resnet",
        "insert_dropblock_stages",
        "remove_dropblock",
        "convert_dropblock",
        "dropblock_summary",
        "mc_dropblock",
        "mc_predict",
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

y = torch.compile(drop, fullgraph=True, backend="eager")(torch.ones(2, 3, 9, 9))
assert (y == 0).any() and (y > 1).any()
names = {}
exec("from torch_dropblock import *", names)
assert set(torch_dropblock.__all__) <= set(names)
assert all(names[name] is getattr(torch_dropblock, name) for name in torch_dropblock.__all__)
for name in torch_dropblock.__all__:
    assert pickle.loads(pickle.dumps(names[name])) is names[name]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


VARIANT = {"share_batch": False, "scale_by_keep": True, "with_noise": False}
LAYER = {
    "keep_prob": 0.9,
    "rate": "exact",
    "share_channels": False,
    "inplace": False,
    "layout": "channels_first",
} | VARIANT
DEFAULTS = {
    **{f"DropBlock{dims}d": LAYER for dims in (1, 2, 3)},
    **{f"drop_block{dims}d": LAYER | {"training": True, "generator": None, "key": None} for dims in (1, 2, 3)},
    "drop_block_mask": {k: LAYER[k] for k in ("keep_prob", "rate", "share_channels", "share_batch")}
    | {"dims": 2, "key": None, "device": None},
    "DropBlock": {"p": 0.5},
    "seed_probability": {"rate": "exact"},
    "KeepProbSchedule": {"curve": "linear", "start_step": 0, "grow_blocks": False},
    "insert_dropblock": LAYER | {"block_size": 7, "dims": 2},
    "insert_dropblock_resnet": {k: LAYER[k] for k in ("keep_prob", "rate", "share_channels", *VARIANT)}
    | {"block_size": 7, "groups": (3, 4), "inplace": True},
    "insert_dropblock_stages": {k: LAYER[k] for k in ("keep_prob", "rate", "share_channels", "inplace", *VARIANT)}
    | {"stages": 2, "block_size": 7, "dims": 2, "where": "blocks", "dry_run": False},
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_stay_what_they_are(name):
    parameters = inspect.signature(getattr(torch_dropblock, name)).parameters.values()
    assert {p.name: p.default for p in parameters if p.default is not p.empty} == DEFAULTS[name]
