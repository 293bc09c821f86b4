"""The build: whatever CC holds, there is a library, or a reason why there is none."""

import importlib.util
import os
import shutil
import stat
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
GCC = shutil.which("gcc")

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the library is for Linux"),
    pytest.mark.skipif(not (ROOT / "hatch_build.py").exists(), reason="the tests run without the source tree"),
]


@pytest.fixture
def hatch_build(monkeypatch):
    """The file that hatchling runs; hatchling itself is there only while a package is built."""
    interface = ModuleType("hatchling.builders.hooks.plugin.interface")
    interface.BuildHookInterface = object
    for name in ("hatchling", "hatchling.builders", "hatchling.builders.hooks", "hatchling.builders.hooks.plugin"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("TORCH_DROPBLOCK_NATIVE", raising=False)
    return module


@pytest.fixture
def why_not(hatch_build, tmp_path):
    """`why_not` of a small source, and whether it left a library."""
    source, library = tmp_path / "native.c", tmp_path / "_native.so"
    source.write_text("int answer(void) { return 42; }\n")

    def call():
        reason = hatch_build.why_not(source, library)
        assert library.exists() == (not reason)
        return reason

    return call


def program(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.skipif(GCC is None, reason="needs gcc")
@pytest.mark.parametrize("cc", [None, "", "   ", "gcc", " gcc ", "gcc -DNAME='a b'", "'gcc'"])
def test_compilers_that_are_there(why_not, monkeypatch, cc):
    if cc is not None:
        monkeypatch.setenv("CC", cc)
    assert why_not() == ""


@pytest.mark.skipif(GCC is None, reason="needs gcc")
@pytest.mark.parametrize("options", ["", " -O2"])
def test_a_compiler_with_a_blank_in_its_path(why_not, monkeypatch, tmp_path, options):
    compiler = program(tmp_path / "my tools" / "gcc", f'#!/bin/sh\nexec {GCC} "$@"\n')
    monkeypatch.setenv("CC", f"'{compiler}'{options}" if options else str(compiler))
    assert why_not() == ""


@pytest.mark.parametrize(
    ("cc", "reason"),
    [
        ('gcc "-O3', "CC must be a command, got 'gcc \"-O3': No closing quotation"),
        ("gcc\\", "CC must be a command, got 'gcc\\\\': No escaped character"),
        ("''", "it takes a C compiler, and \"''\" is no program on the path; install gcc, or name another in CC"),
        ("no-such-cc -m64", "it takes a C compiler, and 'no-such-cc -m64' is no program on the path; install gcc, or "),
        ("true", "true wrote no native.o"),
        ("false", "false failed with code 1"),
    ],
)
def test_what_is_no_compiler(why_not, monkeypatch, cc, reason):
    monkeypatch.setenv("CC", cc)
    assert why_not().startswith(reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("#!/bin/sh\nprintf 'na\\357ve \\377' >&2; exit 3\n", "failed with code 3\nna\\xefve \\xff"),
        ("#!/bin/sh\nprintf '\\377'; case $* in *-shared*) ;; *) touch \"${@: -1}\";; esac\n", "wrote no _native.so"),
        ("\x7fELF of another machine", "cannot be run: [Errno 8] Exec format error"),
        ("#!/no/such/shell\n", "cannot be run: [Errno 2] No such file or directory"),
        ("#!/bin/sh\nkill -9 $$\n", "failed with code -9"),
    ],
)
def test_a_compiler_that_fails(why_not, monkeypatch, tmp_path, text, reason):
    if "@:" in text:
        text = text.replace("/bin/sh", shutil.which("bash") or pytest.skip("needs bash"))
    monkeypatch.setenv("CC", str(program(tmp_path / "cc", text)))
    assert why_not().startswith(f"{tmp_path / 'cc'} {reason}")


def test_left_out_on_purpose(why_not, monkeypatch):
    monkeypatch.setenv("TORCH_DROPBLOCK_NATIVE", "0")
    assert why_not() == "TORCH_DROPBLOCK_NATIVE is 0"


@pytest.mark.parametrize("version", ["standard", "editable"])
def test_the_build_goes_on_without_the_library_and_says_why(hatch_build, monkeypatch, tmp_path, version):
    (tmp_path / "src" / "torch_dropblock").mkdir(parents=True)
    monkeypatch.setenv("CC", 'gcc "')
    hook, said, build = hatch_build.NativeBuildHook(), [], {"force_include": {}}
    hook.root, hook.app = str(tmp_path), ModuleType("app")
    hook.app.display_warning = said.append
    hook.initialize(version, build)
    hook.finalize(version, build, "")
    assert build == {"force_include": {}}
    assert said == ["without the native library: CC must be a command, got 'gcc \"': No closing quotation"]
    assert os.listdir(tmp_path / "src" / "torch_dropblock") == []


@pytest.mark.skipif(GCC is None, reason="needs gcc")
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_wheel_is_for_every_python_and_one_processor(hatch_build, monkeypatch, tmp_path, machine):
    source = tmp_path / "src" / "torch_dropblock" / "backends" / "native.c"
    source.parent.mkdir(parents=True)
    source.write_text("int answer(void) { return 42; }\n")
    monkeypatch.setattr(sysconfig, "get_platform", lambda: f"linux-{machine}")
    hook, build = hatch_build.NativeBuildHook(), {"force_include": {}}
    hook.root, hook.app = str(tmp_path), ModuleType("app")
    hook.app.display_info = lambda _: None
    hook.initialize("standard", build)
    (library,) = build["force_include"]
    assert Path(library).is_file()
    hook.finalize("standard", build, "")
    assert (build["tag"], build["pure_python"]) == (f"py3-none-linux_{machine}", False)
