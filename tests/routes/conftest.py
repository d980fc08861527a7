"""The pinned upstream's source, where a build has unpacked it, and what the tests of facts read from it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def upstream():
    """``ggml`` of the pinned tree as it was published: the cache that ``native/upstream.cmake`` fills, or ``PYLLM_UPSTREAM_DIR``."""
    given = os.environ.get("PYLLM_UPSTREAM_DIR")
    lock = (ROOT / "native" / "upstream.lock").read_text()
    key = re.search(r"sha256:([0-9a-f]{16})", lock)[1]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyllm" / "upstream"
    for tree in [Path(given)] if given else sorted(cache.glob(f"{key}-*")):
        if (tree / "ggml" / "CMakeLists.txt").is_file():
            return tree / "ggml"
    pytest.skip(f"the pinned upstream is not unpacked: {given or f'{cache}/{key}-*'} has no ggml (a build unpacks it)")


@pytest.fixture(scope="session")
def cuda(upstream):
    """The folder of the CUDA kernels."""
    return upstream / "src" / "ggml-cuda"


@pytest.fixture(scope="session")
def body():
    """The text of a function in a source text, by what its first line contains."""

    def find(text, start):
        lines = iter(text.splitlines())
        for line in lines:
            if start in line and line.endswith("{"):
                inside = []
                for inner in lines:
                    if inner.startswith("}"):
                        return "\n".join(inside)
                    inside.append(inner)
        raise AssertionError(f"no function `{start}`")

    return find
