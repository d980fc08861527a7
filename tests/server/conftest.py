"""A server in a few lines of Python, in the place of a binary."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FAKE = Path(__file__).with_name("fake_server.py")


@pytest.fixture
def fake_binary(tmp_path):
    """An executable that runs ``fake_server.py``; its behaviour is chosen by flags."""
    binary = tmp_path / "fake-llama-server"
    binary.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
    binary.chmod(0o755)
    return binary
