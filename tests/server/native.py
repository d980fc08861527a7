"""Parts of native/server that need nothing of upstream, compiled and run by themselves."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_NATIVE = Path(__file__).parents[2] / "native"


def run(program: str, folder: Path, *arguments: object, stubs: dict[str, str] | None = None) -> str:
    """Compile a C++17 program against native/ and return what it prints. ``stubs`` are headers in place of upstream's."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler on this machine")
    if not _NATIVE.is_dir():
        pytest.skip("the sources are not beside the tests")
    for name, text in (stubs or {}).items():
        (folder / name).write_text(text)
    source, binary = folder / "program.cpp", folder / "program"
    source.write_text(program)
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-I", str(folder), "-I", str(_NATIVE), str(source), "-o", str(binary)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(binary), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout
