"""Records of what ran where CI cannot: results with device, driver, commit and command, tied to the sources that they measured."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyllm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).parents[2]

#: What decides how attention runs on a CUDA device; folders stand for the files in them.
ATTENTION_SOURCES = (
    "native/upstream.lock",
    "native/fattn",
    "native/route",
    "native/tests",
    "native/patches/0012-fully-masked-rows.patch",
    "native/patches/0013-no-room-for-a-kernel.patch",
    "native/patches/0014-attention-fails-its-graph.patch",
)


def digest(sources: Iterable[str], root: Path = ROOT) -> str:
    """SHA-256 over the names and bytes of ``sources`` below ``root``.

    Raises:
        ConfigError: one of them is not there.
    """
    total = hashlib.sha256()
    for name in sources:
        path = root / name
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        if not path.exists():
            raise ConfigError(f"`{name}` of a record's sources is not there", "measure again, with the present sources")
        for file in files:
            if file.is_file():
                total.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0")
    return total.hexdigest()


def write(path: Path, *, device: str, driver: str, cuda: str, commit: str, commands: list[str], sources: Iterable[str], results: dict[str, Any]) -> None:
    """Write a record: ``results`` with where and from what they come."""
    names = list(sources)
    record = {
        "device": device,
        "driver": driver,
        "cuda": cuda,
        "commit": commit,
        "commands": commands,
        "sources": names,
        "sources_sha256": digest(names),
        "results": results,
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def stale(path: Path) -> str:
    """Why a record does not belong to the present sources; empty when it does."""
    record = json.loads(path.read_text(encoding="utf-8"))
    missing = [name for name in ("device", "driver", "cuda", "commit", "commands", "sources", "sources_sha256", "results") if name not in record]
    if missing:
        return f"it does not say its {missing[0]}"
    if digest(record["sources"]) != record["sources_sha256"]:
        return f"its sources have changed since commit {record['commit']}: measure again with {record['commands'][0]}"
    return ""
