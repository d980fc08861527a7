"""What the compiler made of each instance of the verify kernels: registers, spills and shared memory, for each kind of device."""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

from pyllm.bench.record import digest
from pyllm.errors import ConfigError
from pyllm.routes.verify import HEADS, INSTANCES, TYPES, Instance, choose, takes_types

#: What decides it.
SOURCES = ("native/upstream.lock", "native/fattn/verify")

_KERNEL = re.compile(
    r"Compiling entry function '\w*attend(?:_in_teams|_transposed)?INS0_\d+(?P<way>Tile|Teams|Transposed)I"
    r"(?P<tile>(?:Li\d+E)+)EELi(?P<blocks>\d+)EEE\w+' for 'sm_(?P<arch>\d+)a?'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
    r"ptxas info *: Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def kernels(text: str) -> list[dict[str, Any]]:
    """The kernels that ``ptxas -v`` tells of: their :class:`Instance`, ``registers`` of a thread, bytes ``spilled`` and of ``static`` shared memory."""
    found = []
    for match in _KERNEL.finditer(text):
        d_k, d_v, m, n, warps, *way, type_k, type_v = map(int, re.findall(r"Li(\d+)E", match["tile"]))
        rows, teams, heads = (way[0], 0, 1) if match["way"] == "Tile" else (0, *way)
        instance = Instance(d_k, d_v, m, n, warps, rows, teams, heads, TYPES[type_k], TYPES[type_v], int(match["blocks"]))
        static = re.search(r"(\d+) bytes smem", match["rest"])
        found.append(
            {
                "arch": int(match["arch"]),
                "instance": list(instance),
                "registers": int(match["registers"]),
                "spilled": int(match["stores"]) + int(match["loads"]),
                "static": int(static[1]) if static else 0,
            }
        )
    return found


def shapes(smem: int) -> dict[Instance, str]:
    """For each instance that is chosen on a device with ``smem`` bytes for a block a line of ``pyllm bench attention --shapes``: short, odd, two streams."""
    found: dict[Instance, str] = {}
    kv_heads = (4, 3)  # two pairs of neighbours, and none
    for heads, (d_k, d_v), type_k, type_v, gqa, n_q in itertools.product(kv_heads, HEADS, TYPES[:-1], TYPES[:-1], (1, 4), (1, 5, 8, 12, 16, 40, 64)):
        if not (takes_types(d_k, type_k) and takes_types(d_v, type_v)) or gqa * n_q > 64:
            continue
        chosen = choose((d_k, d_v), type_k, type_v, gqa * n_q, smem, beside=heads)
        if chosen is not None:
            found.setdefault(chosen, f"{d_k} {d_v} {heads} {gqa} 1301 {n_q} 1 {type_k}/{type_v}")
    return found


def record(folder: Path, commit: str, cuda: str, archs: list[int]) -> dict[str, Any]:
    """The record of a folder as ``ci/instances`` leaves it.

    Raises:
        ConfigError: an instance is missing for one of ``archs``.
    """
    found = [kernel for path in sorted(folder.glob("sm_*.txt")) for kernel in kernels(path.read_text(encoding="utf-8")) if kernel["arch"] in archs]
    have = {(kernel["arch"], *kernel["instance"]) for kernel in found}
    missing = [(arch, one) for arch in archs for one in INSTANCES if (arch, *one) not in have]
    if missing:
        arch, one = missing[0]
        raise ConfigError(f"{len(missing)} instances were not compiled, such as {one} for sm_{arch}", "run `ci/instances` again, from an empty build/instances")
    return {
        "device": "none: compiled only",
        "driver": "",
        "cuda": cuda,
        "commit": commit,
        "commands": ["ci/instances " + " ".join(map(str, archs))],
        "sources": list(SOURCES),
        "sources_sha256": digest(SOURCES),
        "results": {"columns": [*Instance._fields], "kernels": found},
    }


if __name__ == "__main__":  # python -m pyllm.bench.instances FOLDER COMMIT CUDA ARCH..., or SMEM for shapes
    if len(sys.argv) == 2:
        print(*shapes(int(sys.argv[1])).values(), sep="\n")
        raise SystemExit
    text = json.dumps(record(Path(sys.argv[1]), sys.argv[2], sys.argv[3], [int(arch) for arch in sys.argv[4:]]), indent=1)
    # A kernel in a line.
    print(re.sub(r"\{\s+\"arch\".*?\}", lambda match: re.sub(r"\s+", " ", match[0]), text, flags=re.DOTALL))
