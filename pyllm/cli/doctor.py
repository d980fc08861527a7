"""``pyllm doctor``: what this installation is, and what is wrong with it."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from pyllm._version import __version__
from pyllm.cli import console
from pyllm.errors import PyllmError

app = typer.Typer(add_completion=False)

#: What each optional module is for.
_EXTRAS = {
    "huggingface_hub": "downloads from the hub",
    "matplotlib": "plots",
    "prometheus_client": "metrics",
    "hypothesis": "tests",
    "pytest": "tests",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``hint`` says the way out when it is not ``ok``."""

    name: str
    value: str
    ok: bool = True
    hint: str = ""


def examine() -> tuple[list[Finding], dict[str, Any]]:
    """Everything that can be found out, as lines and as data."""
    data: dict[str, Any] = {
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    findings = [Finding("pyllm", f"{__version__}, Python {data['python']}, {data['platform']}")]
    for look in (_native, _server, _cache, _extras):
        findings += look(data)
    return findings, data


def _native(data: dict[str, Any]) -> list[Finding]:
    try:
        from pyllm import _ffi  # noqa: PLC0415 - loads the native library
        from pyllm._ffi.door import KV_TYPES, NATIVE_FOLDER, lib  # noqa: PLC0415 - loads the native library
    except ImportError as failure:
        text, _, hint = str(failure).partition("\n\nhint: ")
        data["native"] = None
        return [Finding("native library", text, ok=False, hint=hint or "install pyllm again: `pip install .`")]
    devices = _ffi.devices()
    data["native"] = {
        "folder": str(NATIVE_FOLDER),
        "abi": int(lib.pyllm_abi_version()),
        "upstream": _ffi.upstream_commit(),
        "build": _ffi.build_info(),
        "threads": _ffi.default_threads(),
        "kv_types": list(KV_TYPES),
        "devices": [vars(device) for device in devices],
    }
    lines = [
        Finding("native library", f"ABI {data['native']['abi']}, llama.cpp {data['native']['upstream']}"),
        Finding("build", data["native"]["build"]),
        Finding("threads", str(data["native"]["threads"])),
        Finding("KV types", ", ".join(KV_TYPES)),
    ]
    for device in devices:
        memory = f", {device.memory_free / 2**30:.1f} of {device.memory_total / 2**30:.1f} GiB free" if device.memory_total else ""
        lines.append(Finding("device", f"{device.name}: {device.description} ({device.backend}, {device.kind}{memory})"))
    if not devices:
        lines.append(Finding("device", "none", ok=False, hint="the build has no backend; install pyllm again"))
    return lines


def _server(data: dict[str, Any]) -> list[Finding]:
    from pyllm.server import find_server, server_version  # noqa: PLC0415 - httpx and pydantic take longer to load than the help to print

    data["server"] = None
    try:
        binary = find_server()
        version = server_version(binary)
    except PyllmError as failure:
        return [Finding("server", failure.message, ok=False, hint=failure.hint)]
    except ImportError:
        return [Finding("server", "unknown without the native library", ok=False, hint="set PYLLM_SERVER to a server binary")]
    data["server"] = {
        "path": str(binary),
        "version": version.version if version else None,
        "upstream": version.upstream if version else None,
    }
    if version is None:
        return [
            Finding(
                "server",
                f"{binary} is not a pyllm-server",
                ok=False,
                hint="unset PYLLM_SERVER to use the installed one",
            )
        ]
    native = data["native"]
    same = version.version == __version__ and (native is None or version.upstream == native["upstream"])
    text = f"{binary}: {version.version}, llama.cpp {version.upstream}"
    return [
        Finding(
            "server",
            text,
            ok=same,
            hint="" if same else f"it was built with another pyllm than {__version__}: install again",
        )
    ]


def _cache(data: dict[str, Any]) -> list[Finding]:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyllm"
    place = next((part for part in (folder, *folder.parents) if part.exists()), folder)
    ok = place.is_dir() and os.access(place, os.W_OK)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
    data["cache"] = {"path": str(folder), "bytes": size, "writable": ok}
    return [
        Finding(
            "cache",
            f"{folder}, {size / 2**20:.0f} MiB",
            ok=ok,
            hint="" if ok else "set XDG_CACHE_HOME to a folder that may be written to",
        )
    ]


def _extras(data: dict[str, Any]) -> list[Finding]:
    there = {name: importlib.util.find_spec(name) is not None for name in _EXTRAS}
    data["extras"] = there
    text = ", ".join(f"{name} ({purpose}): {'yes' if there[name] else 'no'}" for name, purpose in _EXTRAS.items())
    return [Finding("optional", text)]


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Report on this installation; exits 1 when something is wrong."""
    findings, data = examine()
    wrong = [finding for finding in findings if not finding.ok]
    if as_json:
        console.print_json(
            data
            | {
                "ok": not wrong,
                "problems": [{"what": finding.name, "text": finding.value, "hint": finding.hint} for finding in wrong],
            }
        )
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            print(f"{finding.name:{width}}  {'' if finding.ok else 'WRONG: '}{finding.value}")
    for finding in wrong:
        print(f"error: {finding.name}: {finding.value}\n\nhint: {finding.hint}", file=sys.stderr)
    if wrong:
        raise typer.Exit(1)
