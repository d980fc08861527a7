"""Records of what ran where CI cannot: results with device, driver, commit and command, tied to the sources that they measured."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyllm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).parents[2]

#: What decides how attention runs on a CUDA device; folders stand for the files in them. How rows are looked up
#: (native/route/decide.cpp) is not among them: that the right row is found is proven on a CPU, in tests/routes/test_native.py.
ATTENTION_SOURCES = (
    "native/upstream.lock",
    "native/fattn",
    "native/route/axes.cpp",
    "native/route/axes.h",
    "native/route/control.cpp",
    "native/route/control.h",
    "native/route/default_table.inc",
    "native/route/node.cpp",
    "native/route/node.h",
    "native/route/placement.cpp",
    "native/route/placement.h",
    "native/route/route.h",
    "native/route/table.cpp",
    "native/tests",
    "native/patches/0012-fully-masked-rows.patch",
    "native/patches/0013-no-room-for-a-kernel.patch",
    "native/patches/0014-attention-fails-its-graph.patch",
)


def digest(sources: Iterable[str], root: Path = ROOT, without: Iterable[str] = ()) -> str:
    """SHA-256 over the names and bytes of ``sources`` below ``root``, leaving out the files ``without``; texts in folders decide nothing.

    Raises:
        ConfigError: one of them is not there.
    """
    total = hashlib.sha256()
    left_out = {root / name for name in without}
    for name in sources:
        path = root / name
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        if not path.exists():
            raise ConfigError(f"`{name}` of a record's sources is not there", "measure again, with the present sources")
        for file in files:
            if file.is_file() and file not in left_out and "__pycache__" not in file.parts and file.suffix != ".md":
                total.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0")
    return total.hexdigest()


#: What `ci/gpu` runs, in this order; results of `sweep` and `speed` are the files of these names.
ATTENTION_COMMANDS = (
    "ci/gpu",
    "attention-check sweep 1 0 3000 sweep1.json",
    "attention-check sweep 20261 0 3000 sweep20261.json",
    "attention-check sweep 2 0 40000 sweep2.json verify",
    "PYLLM_TEST_PARTS=1 attention-check peaks peaks.json verify < instances.txt",
    "attention-check speed speed.json < native/tests/shapes.txt",
    "attention-check faults > faults.txt",
)


#: What `ci/gpu bench` and `ci/gpu sanitizer` run, and what decides their results.
BENCH_FILES = ("bench-attention", "bench-growth-kv", "bench-growth-q")
BENCH_SOURCES = (*ATTENTION_SOURCES, "native/core/attention.cpp", "pyllm/bench/attention", "pyllm/bench/instances.py")


#: What decides how deep is drafted, and what that costs the engine.
DEPTH_SOURCES = (
    "native/upstream.lock",
    "native/draft/acceptance.cpp",
    "native/draft/depth.cpp",
    "native/draft/depth_cost.cpp",
    "native/draft/depth_rest.cpp",
    "native/draft/micro_batches.cpp",
    "pyllm/engine/drafting.py",
    "pyllm/engine/warm_up.py",
)


#: What `ci/gpu context` leaves, and what decides it.
DECODE_FILES = ("context-gemma4-q8_0", "context-gemma4-q4_0", "context-qwen35-q8_0", "context-qwen35-q4_0")
DECODE_SOURCES = (
    "native/upstream.lock",
    "native/fattn",
    "native/route/default_table.inc",
    "native/draft",
    "native/patches/0042-a-graph-for-each-shape.patch",
    "native/patches/0044-rows-stay-where-they-are.patch",
    "native/patches/0045-shared-cells-need-no-room.patch",
    "native/patches/0046-a-mask-of-one-sequence.patch",
    "pyllm/bench/decode.py",
    "pyllm/engine/drafting.py",
    "pyllm/engine/scheduler.py",
)


#: What decides how fast eight slots with DFlash drafts are: over so few KV rows no attention is ours.
DFLASH_SOURCES = tuple(name for name in DECODE_SOURCES if name != "native/fattn")


def decode(results: Path, commit: str) -> dict[str, Any]:
    """The record of a folder with what ``ci/gpu context`` measured of decoding against the unmodified server, and ``log.txt``."""
    runs = {name: json.loads((results / f"{name}.json").read_text(encoding="utf-8")) for name in DECODE_FILES}
    return {
        **_machine(results),
        "commit": commit,
        "commands": ["ci/gpu context"],
        "sources": list(DECODE_SOURCES),
        "sources_sha256": digest(DECODE_SOURCES),
        "results": {name: {key: run[key] for key in _OF_A_RUN} for name, run in runs.items()},
    }


def dflash(results: Path, commit: str) -> dict[str, Any]:
    """The record of a folder with ``dflash-server.json`` of ``ci/gpu speculation``, and ``log.txt``.

    Its results are a list of one run, to which those of other hosts belong.
    """
    run = json.loads((results / "dflash-server.json").read_text(encoding="utf-8"))
    return {
        **_machine(results),
        "commit": commit,
        "commands": ["ci/gpu speculation"],
        "sources": list(DFLASH_SOURCES),
        "sources_sha256": digest(DFLASH_SOURCES),
        "results": [{"commit": commit, **{key: run[key] for key in _OF_A_RUN}}],
    }


_OF_A_RUN = ("spec", "prompt_tokens", "tokens", "rounds", "decoding", "kv_types", "results")


def depth_on_gpu(results: Path, commit: str) -> dict[str, Any]:
    """The record of a folder with ``depth-0.json`` and ``depth-1.json`` of ``ci/gpu speculation``, and ``log.txt``."""
    runs = [json.loads((results / f"depth-{rate}.json").read_text(encoding="utf-8")) for rate in (0, 1)]
    machine = _machine(results)
    made = depth(runs, commit, driver=machine["driver"], cuda=machine["cuda"]) | {"device": machine["device"]}
    made["commands"].insert(0, "ci/gpu speculation")
    return made


def depth(runs: list[dict[str, Any]], commit: str, *, driver: str = "", cuda: str = "") -> dict[str, Any]:
    """The record of what ``pyllm bench depth --json`` printed, once for each drafter; a CPU has no driver."""
    return {
        "device": runs[0]["device"],
        "driver": driver,
        "cuda": cuda,
        "cores": runs[0]["cores"],
        "commit": commit,
        "commands": [_depth_command(run) for run in runs],
        "sources": list(DEPTH_SOURCES),
        "sources_sha256": digest(DEPTH_SOURCES),
        "results": [{key: run[key] for key in ("error_rate", "turn_seconds", "results", "rows")} for run in runs],
    }


def _depth_command(run: dict[str, Any]) -> str:
    slots = "".join(f" --slots {one['slots']}" for one in run["results"])
    return f"pyllm bench depth{slots} --rounds {run['rounds']} -n {run['tokens']} --error-rate {run['error_rate']:g} --json"


def _machine(results: Path) -> dict[str, str]:
    """The last line of ``log.txt`` is the device's name and its driver, the first names the CUDA release of the build."""
    log = (results / "log.txt").read_text(encoding="utf-8").splitlines()
    device, driver = (word.strip() for word in log[-1].split(","))
    release = re.search(r"release ([0-9.]+)", log[0])
    return {"device": device, "driver": driver, "cuda": release[1] if release else log[0]}


def bench(results: Path, commit: str) -> dict[str, Any]:
    """The record of what ``ci/gpu bench sanitizer`` leaves in a folder.

    That is ``bench-*.json``, ``instances.txt``, ``memcheck.txt``, ``memcheck-whole.txt``, ``racecheck.txt``, and ``log.txt``.
    """
    found = {name: json.loads((results / f"{name}.json").read_text(encoding="utf-8")) for name in BENCH_FILES}
    return {
        **_machine(results),
        "commit": commit,
        "commands": ["ci/gpu bench", "ci/gpu sanitizer"],
        "sources": list(BENCH_SOURCES),
        "sources_sha256": digest(BENCH_SOURCES),
        "results": {
            "rates": found[BENCH_FILES[0]]["rates"],
            **{name: [_timed(one) for one in run["results"]] for name, run in found.items()},
            "instances": (results / "instances.txt").read_text(encoding="utf-8").splitlines(),
            **{tool: (results / f"{tool}.txt").read_text(encoding="utf-8").splitlines()[-1] for tool in ("memcheck", "memcheck-whole", "racecheck")},
        },
    }


def _timed(one: dict[str, Any]) -> dict[str, Any]:
    node = one["node"]
    shape = [node[name] for name in ("d_k", "d_v", "n_head", "n_head_kv", "n_kv", "n_q", "streams", "type_k", "type_v")]
    kept = ("side", "kernel", "us", "of_copy_rate", "error", "wrong")
    timings = [{name: timing[name] for name in kept} for timing in one["timings"] if not timing["refusal"]]
    return {"shape": " ".join(map(str, shape)), "bytes": one["bytes"], "timings": timings}


def attention(results: Path, commit: str) -> dict[str, Any]:
    """The record of a folder with ``sweep*.json``, ``peaks.json``, ``speed.json``, ``faults.txt`` and ``log.txt``, as ``ci/gpu`` leaves it."""
    return {
        **_machine(results),
        "commit": commit,
        "commands": list(ATTENTION_COMMANDS),
        "sources": list(ATTENTION_SOURCES),
        "sources_sha256": digest(ATTENTION_SOURCES),
        "results": {
            "sweeps": [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("sweep*.json"))],
            "peaks": json.loads((results / "peaks.json").read_text(encoding="utf-8")),
            "speed": json.loads((results / "speed.json").read_text(encoding="utf-8")),
            "faults": [line for line in (results / "faults.txt").read_text(encoding="utf-8").splitlines() if line.startswith(("ok", "FAILED"))],
        },
    }


def stale(path: Path, root: Path = ROOT) -> str:
    """Why a record does not belong to the present sources; empty when it does.

    A record may say under ``changed`` which files are no longer those that it measured, and what became of them, until it is measured again: its digest is
    made without these and holds for all others. README says so beside the figures.
    """
    record = json.loads(path.read_text(encoding="utf-8"))
    missing = [name for name in ("device", "driver", "cuda", "commit", "commands", "sources", "sources_sha256", "results") if name not in record]
    if missing:
        return f"it does not say its {missing[0]}"
    if digest(record["sources"], root, record.get("changed", ())) != record["sources_sha256"]:
        return f"its sources have changed since commit {record['commit']}: measure again with {record['commands'][0]}"
    return ""


if __name__ == "__main__":  # python -m pyllm.bench.record attention|bench|decode|depth|dflash FOLDER COMMIT > repro/results/attention-DEVICE.json
    make = {"attention": attention, "bench": bench, "decode": decode, "depth": depth_on_gpu, "dflash": dflash}[sys.argv[1]]
    text = json.dumps(make(Path(sys.argv[2]), sys.argv[3]), indent=1)
    # A shape in a line.
    print(re.sub(r"\{\s+\"shape\".*?\n   \}", lambda match: re.sub(r"\s+", " ", match[0]), text, flags=re.DOTALL))
