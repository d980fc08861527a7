"""The program as its users run it, and what it printed the last time.

A snapshot is a file in ``snapshots/``; ``PYLLM_SNAPSHOTS=write`` writes them anew, to be reviewed as a diff.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

FOLDER = Path(__file__).with_name("snapshots")
FAKE = Path(__file__).parents[1] / "server" / "fake_server.py"
PYLLM = [sys.executable, "-c", "from pyllm.cli import main; main()"]

#: What differs between machines and runs, in this order.
VOLATILE = [
    (re.compile(r"[\u2500-\u257f]"), " "),  # frames around the groups of a help page
    (
        re.compile(r"<(?:bool|str|int|float|path|list\[\w+\]|string|file|directory|text|integer)>|\b(?:TEXT|INTEGER|FLOAT|PATH)\b"),
        "",
    ),
    (re.compile(r"\d+\.\d+ s\b"), "[TIME]"),
    (re.compile(r"\d+\.\d tokens/s"), "[SPEED]"),
    (re.compile(r"\d+ of \d+ drafted"), "[COUNT] drafted"),
    (re.compile(r"\b\d+ MiB"), "[SIZE]"),
    (re.compile(r"port \d{5}|--port \d+|127\.0\.0\.1:\d+"), "[PORT]"),
    (re.compile(r"-[0-9a-f]{16}\.gguf"), "-[HASH].gguf"),
    (re.compile(r"[ \t]+"), " "),
    (re.compile(r" +$", re.MULTILINE), ""),
    (re.compile(r"\n{2,}"), "\n\n"),
]


@dataclass(frozen=True)
class Outcome:
    """One run of the program."""

    code: int
    out: str
    err: str


@pytest.fixture
def environment(tmp_path):
    """A plain terminal of 200 columns that is none, with nothing of the user's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYLLM_", "LLAMA_"))}
    return kept | {
        "COLUMNS": "200",
        "TERMINAL_WIDTH": "200",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "PYLLM_REPRO": str(Path(__file__).parents[2] / "repro"),
    }


@pytest.fixture
def pyllm(environment, tmp_path):
    """Run the program in an empty folder."""

    def run(*args, stdin="", **extra):
        done = subprocess.run(
            [*PYLLM, *map(str, args)],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=environment | extra,
            timeout=120,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def start(environment, tmp_path):
    """Start the program and leave it running."""

    def start(*args, **extra):
        return subprocess.Popen(
            [*PYLLM, *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environment | extra,
        )

    return start


@pytest.fixture
def snapshot(tmp_path):
    """Compare an outcome with the file of that name."""

    def compare(name, outcome):
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        text = f"exit code {outcome.code}\n--- stdout\n{outcome.out}\n--- stderr\n{outcome.err}\n"
        text = text.replace(str(tmp_path), "[TMP]").replace(cache, "[CACHE]").replace(str(Path(__file__).parents[2]), "[ROOT]")
        for pattern, word in VOLATILE:
            text = pattern.sub(word, text)
        file = FOLDER / f"{name}.txt"
        if os.environ.get("PYLLM_SNAPSHOTS") == "write":
            file.write_text(text, encoding="utf-8")
        assert text == file.read_text(encoding="utf-8")

    return compare


@pytest.fixture
def fake_binary(tmp_path):
    """An executable that runs ``fake_server.py``."""
    binary = tmp_path / "fake-llama-server"
    binary.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
    binary.chmod(0o755)
    return binary
