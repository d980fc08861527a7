"""What the unmodified server of the pin makes of the scenarios: the README's table is what was recorded."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pyllm.repro import against, load

ROOT = Path(__file__).parents[2]
RECORD = json.loads((ROOT / "repro/results/against-pin.json").read_text(encoding="utf-8"))
SCENARIOS = {path.relative_to(ROOT / "repro").with_suffix("").as_posix() for path in (ROOT / "repro").rglob("*.yaml") if path.parent.name != "engines"}


def rows() -> dict[str, tuple[str, str]]:
    """The README's table: what stands first in a row, and its cells `unmodified` and `pyllm`."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("| scenario | unmodified | pyllm |\n")[2].partition("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[1:]]
    return {name.split()[0]: (unmodified, ours) for name, unmodified, ours in cells}


def test_every_scenario_is_recorded():
    assert set(RECORD["scenarios"]) == SCENARIOS
    verdicts = [one["verdict"] for one in RECORD["scenarios"].values()]
    assert {status: verdicts.count(status) for status in RECORD["counts"]} == RECORD["counts"]
    assert RECORD["counts"]["skipped"] == 0
    assert RECORD["upstream"] == against.pinned()
    assert RECORD["command"] == against.COMMAND
    assert f"llama.cpp {RECORD['upstream']}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_is_what_was_recorded():
    table = rows()
    # Reports stand there by their number.
    names = {next(name for name in table if full == name or (name.startswith("reports/") and full.startswith(f"{name}-"))): full for full in SCENARIOS}
    assert len(names) == len(table) == len(SCENARIOS)
    for name, (unmodified, ours) in table.items():
        recorded = RECORD["scenarios"][names[name]]
        assert (unmodified == "pass") == (recorded["verdict"] == "pass"), (name, recorded)
        assert ours


def test_nothing_of_a_machine_is_recorded():
    text = json.dumps(RECORD)
    assert not re.search(r"(?<!repro)/(?:home|root|tmp|usr|var|work)/|\.gguf|127\.0\.0\.1|localhost", text)
    for one in RECORD["scenarios"].values():
        assert one["reason"]
        assert "\n" not in one["reason"]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("the server at http://127.0.0.1:42731 gave no answer within 30 s", "the server gave no answer within 30 s"),
        ("../../upstream/832d-4b9f/src/llama-batch.cpp:641: GGML_ASSERT(a / b) failed", "llama-batch.cpp:641: GGML_ASSERT(a / b) failed"),
        ("0.48.580.936 W decode: failed to find a memory slot", "decode: failed to find a memory slot"),
        ("`/tmp/x-1/a.gguf` is 1/2 of it, 4 slots × (1 + 8)", "`a.gguf` is 1/2 of it, 4 slots × (1 + 8)"),
        ("step 2: expected 199, got 196", "step 2: expected 199, got 196"),
        ("expected 0/1/2, and/or/both", "expected 0/1/2, and/or/both"),
    ],
)
def test_what_lasts_of_a_line(text, kept):
    assert against.lasting(text) == kept


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (None, "3 requests, 2 equal to plain decoding"),
        (
            {"what": "it started", "step": 0, "expected": "a refusal", "got": "a start", "log": ["x"]},
            "at the start: it started; expected a refusal, got a start",
        ),
        (
            {"what": "ended: SIGABRT\n  ../a/b.cpp:7: died", "step": 0, "expected": "a start", "got": "ended", "log": []},
            "at the start: ended: SIGABRT; b.cpp:7: died",
        ),
        ({"what": "ended", "step": 2, "expected": "an answer", "got": "none", "log": ["0.1.2 I on", "/a/b.cpp:7: died"]}, "step 2: ended; b.cpp:7: died"),
        ({"what": "answered 500", "step": 1, "expected": "an answer", "got": "RefusedError: answered 500", "log": []}, "step 1: answered 500"),
        (
            {"what": "its log says `x`", "step": None, "expected": "never", "got": "2 times", "log": []},
            "at the end: its log says `x`; expected never, got 2 times",
        ),
    ],
)
def test_a_reason_in_one_line(failure, reason):
    assert against.reason({"failure": failure, "reason": "", "requests": 3, "compared": 2}) == reason


def test_a_record_of_a_run():
    one = {"scenario": "a/b", "status": "skipped", "reason": "needs a GPU", "failure": None}
    made = against.record({"pyllm": "1.2.3", "counts": {"pass": 0, "fail": 0, "skipped": 1}, "verdicts": [one]}, "abc1234")
    assert made["commit"] == "abc1234"
    assert made["scenarios"] == {"a/b": {"verdict": "skipped", "reason": "needs a GPU"}}


def test_names_are_paths():
    assert {load(ROOT / "repro" / f"{name}.yaml").name for name in SCENARIOS} == SCENARIOS
