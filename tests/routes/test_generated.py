"""What is made from the route table is made from the present one."""

from __future__ import annotations

import pytest

from pyllm.routes import generate


@pytest.mark.parametrize("path", sorted(generate.files()), ids=lambda path: path.name)
def test_it_is_not_stale(path):
    assert path.read_text(encoding="utf-8") == generate.files()[path], "run ci/generate and review the difference"
