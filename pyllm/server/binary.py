"""Which server binary runs, and what it says about itself."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pyllm.errors import NotFoundError, ServerError

#: Names the binary where the caller does not.
ENVIRONMENT = "PYLLM_SERVER"

_VERSION = re.compile(r"^pyllm-server (\S+) \(llama\.cpp (\S+)\)$", re.MULTILINE)


@dataclass(frozen=True)
class ServerVersion:
    """What ``pyllm-server --pyllm-version`` prints: the package it was built with, and the commit of llama.cpp."""

    version: str
    upstream: str


def find_server(explicit: str | os.PathLike[str] | None = None) -> Path:
    """The server binary: ``explicit``, else ``$PYLLM_SERVER``, else the installed ``pyllm-server``.

    Raises:
        NotFoundError: there is no file of that name, or it may not be executed.
    """
    if explicit is not None:
        return _checked(Path(explicit), "give the path of a llama-server or pyllm-server binary")
    named = os.environ.get(ENVIRONMENT)
    if named:
        return _checked(Path(named), f"set {ENVIRONMENT} to the path of a server binary, or unset it to use the installed one")
    return _checked(
        installed_server(),
        f"install pyllm again (`pip install .`), or set {ENVIRONMENT} to the path of a server binary",
    )


def installed_server() -> Path:
    """Where the package's own ``pyllm-server`` belongs, whether it is there or not."""
    from pyllm._ffi.door import NATIVE_FOLDER  # noqa: PLC0415 - loads the native library

    return NATIVE_FOLDER.parent / "bin" / "pyllm-server"


def _checked(path: Path, hint: str) -> Path:
    if not path.is_file():
        raise NotFoundError(f"there is no server binary `{path}`", hint)
    if not os.access(path, os.X_OK):
        raise NotFoundError(f"server binary `{path}` may not be executed", f"run `chmod +x {path}`")
    return path


def server_version(binary: Path) -> ServerVersion | None:
    """The version of a ``pyllm-server``; None for a llama-server of another make.

    Raises:
        ServerError: the binary cannot be started at all.
    """
    try:
        answer = subprocess.run([binary, "--pyllm-version"], capture_output=True, text=True, errors="replace", timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as failure:
        raise ServerError(f"server binary `{binary}` does not run: {failure}", "build it for this machine") from failure
    found = _VERSION.search(answer.stdout)
    return ServerVersion(*found.groups()) if found else None
