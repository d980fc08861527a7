"""Conversations saved where they do not fit, or by a process that is killed: an older file stays whole, and so does the slot."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.saver import beside_folder, engine, following, talk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SAVER = [sys.executable, str(Path(__file__).with_name("saver.py"))]
#: After the refusal; the hint says that the older file is unchanged.
WORKS = {"unchanged": True, "goes on": True, "restored": True, "saves again": True}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder" / "talk.pyllm"


@pytest.fixture
def saver(path: Path) -> Callable[..., dict[str, Any]]:
    def run(mode: str, *args: object, before: Sequence[str] = ()) -> dict[str, Any]:
        done = subprocess.run([*before, *SAVER, mode, str(path), *map(str, args)], capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    return run


def test_over_the_limit_on_file_sizes(path: Path, saver: Callable[..., dict[str, Any]]) -> None:
    told = saver("limited")
    failure = told.pop("failure")
    assert re.fullmatch(rf"`{path}` cannot be written: File too large behind byte \d+, the limit is \d{{4,}}", failure.pop("message"))
    assert failure == {"type": "LimitError", "hint": "raise the limit on file sizes (ulimit -f) or write elsewhere; what was there before is unchanged"}
    assert told.pop("left") == []
    assert told == WORKS


def test_on_a_full_disk(path: Path, saver: Callable[..., dict[str, Any]]) -> None:
    mount = f'mount -t tmpfs -o size=8m tmpfs "{path.parent}" && exec "$@"'
    tried = subprocess.run(["unshare", "-m", "sh", "-c", mount, "sh", "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {tried.stderr.strip()}")
    told = saver("full", before=["unshare", "-m", "sh", "-c", mount, "sh"])
    failure = told.pop("failure")
    assert re.fullmatch(rf"`{path}` cannot be written: No space left on device behind byte \d+, \d+ bytes are free", failure.pop("message"))
    assert failure == {"type": "LimitError", "hint": "free some space or write elsewhere; what was there before is unchanged"}
    assert told.pop("left") == ["ballast"]
    assert told == WORKS


@pytest.mark.parametrize("rounds", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_while_it_saves(path: Path, saver: Callable[..., dict[str, Any]], rounds: int) -> None:
    with engine() as llm:
        said = {which: talk(llm, which) for which in "AB"}
        for slot, which in enumerate("AB"):
            llm.save(slot, beside_folder(path, which))
        stayed = {which: following(llm, slot, said[which]) for slot, which in enumerate("AB")}
    told = saver("killed", rounds)
    assert told["cut"] >= rounds // 10  # or the test did not hit what it is about
    assert told["most"] == 1
    outcomes: Counter[str] = Counter()
    with engine() as llm:
        for number in range(rounds):
            slot = llm.restore(beside_folder(path, number), 0)
            # The last token that was said is in no memory yet.
            held = llm.slots()[slot].n_tokens
            which = next(which for which in "AB" if held == len(said[which]) - 1)
            assert following(llm, slot, said[which]) == stayed[which]
            outcomes[which] += 1
        llm.save(0, path)
    assert set(outcomes) == {"A", "B"}
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
