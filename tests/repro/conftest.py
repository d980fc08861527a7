"""Scenario texts, and the fake server of ``tests/server``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FAKE = Path(__file__).parents[1] / "server" / "fake_server.py"

TEXT = """\
name: {name}
description: What it proves.
source: {{repository: a/b, thread: "#1", url: "https://example.org/1"}}
reported:
  engine: b 1
  device: none
  symptom: it died
  flags: --model a.gguf --spec-type mtp --port 1
model: {{path: model.gguf}}
skip: {{engine: a fake has no engine}}
server:
  flags: -m {{model}} --spec-type draft-mtp {flags}
  substituted:
    - {{reported: --model a.gguf, used: "-m {{model}}", because: file name}}
    - {{reported: --spec-type mtp, used: --spec-type draft-mtp, because: name}}
    - {{reported: --port 1, used: "{flags}", because: the runner chooses}}
limit: 2
steps:
{steps}
"""


@pytest.fixture
def fake_binary(tmp_path):
    """An executable that runs ``fake_server.py``."""
    binary = tmp_path / "fake-llama-server"
    binary.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
    binary.chmod(0o755)
    return binary


@pytest.fixture
def write(tmp_path):
    """Write a scenario file below ``repro/`` and return its path."""

    def write(steps="  - prompt: {tokens: [1, 2], n: 4}\n", flags="", name="case/one", tail="", change=None):
        text = TEXT.format(name=name, steps=steps.rstrip("\n"), flags=flags) + tail
        if change is not None:
            text = change(text)
        path = tmp_path / "repro" / "case" / "one.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        (path.parent / "model.gguf").touch()
        return path

    return write
