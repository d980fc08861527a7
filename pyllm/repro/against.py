"""The record of what the unmodified server of the pin makes of each scenario: verdicts and reasons, without what belongs to the machine that ran them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

#: What was run; ``ci/baseline`` builds the unmodified server and prints its path.
COMMAND = 'pyllm repro run --level server --against "$(ci/baseline)" --json'

#: What differs from run to run: where the server listens, folders in front of a file's name, the time of a log line.
_PASSING = ((re.compile(r" at https?://\S+"), ""), (re.compile(r"(?<![\w.])(?:\.{1,2}|~)?/(?:[\w.~-]+/)+"), ""), (re.compile(r"^[\d.]+ [DIWE] +"), ""))

#: How upstream says where it ends a process.
_ABORT = re.compile(r"\w\.(?:c|cc|cpp|cu|cuh|h):\d+: ")


def lasting(text: str) -> str:
    """One line of a run, as it would be on any machine."""
    for pattern, kept in _PASSING:
        text = pattern.sub(kept, text)
    return text.strip()


def reason(verdict: dict[str, Any]) -> str:
    """Why a level failed or was skipped, in one line; of one that passed, what was compared."""
    failure = verdict["failure"]
    if failure is None:
        return str(verdict["reason"]) or f"{verdict['requests']} requests, {verdict['compared']} equal to plain decoding"
    what, *more = failure["what"].splitlines()
    step = failure["step"]
    where = "at the end" if step is None else f"step {step}" if step else "at the start"
    parts = [f"{where}: {what}"]
    parts += [line for line in [*more, *failure["log"]] if _ABORT.search(line)][:1]
    if len(parts) == 1 and what not in failure["got"]:
        parts += [f"expected {failure['expected']}, got {failure['got']}"]
    return "; ".join(map(lasting, parts))


def pinned() -> str:
    """The commit of llama.cpp that is pinned, from the lock file of a clone."""
    return (ROOT / "native/upstream.lock").read_text(encoding="utf-8").split()[2]


def record(run: dict[str, Any], commit: str) -> dict[str, Any]:
    """The record of a run's JSON, at a commit of ours against the pinned one of upstream's."""
    return {
        "command": COMMAND,
        "commit": commit,
        "pyllm": run["pyllm"],
        "upstream": pinned(),
        "counts": run["counts"],
        "scenarios": {one["scenario"]: {"verdict": one["status"], "reason": reason(one)} for one in run["verdicts"]},
    }


if __name__ == "__main__":  # python -m pyllm.repro.against RUN.json COMMIT > repro/results/against-pin.json
    print(json.dumps(record(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), sys.argv[2]), indent=1, ensure_ascii=False))
