"""Compile `native.c` into the wheel, or beside the source of an editable install.

Without a compiler the package is built from Python alone. TORCH_DROPBLOCK_NATIVE=0 leaves the library out.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# -ffp-contract=off: contraction would round in other places than PyTorch. The last two allow the compiler to vectorise
# loops with comparisons.
FLAGS = ["-O3", "-std=gnu11", "-fPIC", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]


class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        package = Path(self.root, "src", "torch_dropblock", "backends")
        self.folder = tempfile.TemporaryDirectory()
        library = (package if version == "editable" else Path(self.folder.name)) / "_native.so"
        library.unlink(missing_ok=True)
        missing = why_not(package / "native.c", library)
        if missing:
            self.app.display_warning(f"without the native library: {missing}")
            return
        self.app.display_info("with the native library")
        if version != "editable":  # an editable install has it beside the source
            build_data["force_include"][str(library)] = "torch_dropblock/backends/_native.so"
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"  # the library works with every version of Python

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self.folder.cleanup()


def why_not(source: Path, library: Path) -> str:
    """Compile the library; return an empty string, or the reason for a failure, which does not end the build."""
    if os.environ.get("TORCH_DROPBLOCK_NATIVE") == "0":
        return "TORCH_DROPBLOCK_NATIVE is 0"
    if not sys.platform.startswith("linux"):
        return "it takes Linux, where PyTorch's threads are those of GCC's OpenMP library"
    wanted = os.environ.get("CC", "").strip() or "gcc"
    try:
        compiler = [wanted] if shutil.which(wanted) else shlex.split(wanted)  # a path may contain blanks
    except ValueError as error:
        return f"CC must be a command, got {wanted!r}: {error}"
    if not compiler or shutil.which(compiler[0]) is None:
        return f"it takes a C compiler, and {wanted!r} is no program on the path; install gcc, or name another in CC"
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder, "native.o")
        # in two steps: linking with -fopenmp would add a second OpenMP library beside PyTorch's
        for made, options in ((compiled, [*FLAGS, "-c", str(source)]), (library, ["-shared", str(compiled)])):
            failed = _failure([*compiler, *options, "-o", str(made)], made)
            if failed:
                library.unlink(missing_ok=True)
                return f"{compiler[0]} {failed}"
    return ""


def _failure(command: list[str], made: Path) -> str:
    """Run a command that makes a file; return an empty string, or the error."""
    plain = {**os.environ, "LC_ALL": "C"}  # compiler messages in ASCII
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="backslashreplace", env=plain, check=False
        )
    except OSError as error:
        return f"cannot be run: {error}"
    if done.returncode:
        return f"failed with code {done.returncode}\n{done.stderr}"
    return "" if made.is_file() else f"wrote no {made.name}"
