"""The record of the matrix counts what pytest has written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pyllm.bench import matrix
from pyllm.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

XML = """<testsuites><testsuite>
<testcase name="test_everything[(('llama', 'dflash', 'llama-dflash'), 1, 'f16', False, True, 'cold')]" time="1.2"><properties>
<property name="count" value="2"/><property name="near_ties" value="1"/><property name="drafted" value="30"/>
<property name="known_accepted" value="7"/><property name="rejection" value="1"/></properties></testcase>
<testcase name="test_everything[(('qwen35', 'mtp', None), 8, 'q4_0', True, False, 'restore')]" time="2.9">
<failure message="AssertionError: at 3&#10;more"/></testcase>
</testsuite></testsuites>"""


def test_what_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "0.xml"
    file.write_text(XML)
    found = matrix.summary([file])
    assert found["combinations"] == 2
    assert found["violations"] == {"test_everything[(('qwen35', 'mtp', None), 8, 'q4_0', True, False, 'restore')]": "AssertionError: at 3"}
    assert [found[name] for name in ("count", "near_ties", "drafted", "restored_accepted", "seconds")] == [2, 1, 30, 0, 4]
    assert [found[name] for name in ("known_count", "known_accepted", "rejection")] == [0, 7, 1]
    assert found["axes"]["pair"] == {"llama dflash llama-dflash": 1, "qwen35 mtp None": 1}
    assert found["axes"]["slots"] == {"1": 1, "8": 1}
    with pytest.raises(ConfigError, match="in another file"):
        matrix.summary([file, file])
