"""The proof has to fail when it should: rows deleted, conditions broken, kernel instances removed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pyllm.routes.check import check
from pyllm.routes.condition import at_least, multiple_of
from pyllm.routes.executors import ACCEPTS
from pyllm.routes.row import Row
from pyllm.routes.table import ROWS
from pyllm.routes.tablefile import Table


@pytest.fixture(scope="module")
def report():
    return check(Table(ROWS, ACCEPTS))


def test_the_built_in_table_is_proven(report):
    assert report.findings == []
    assert report.keys > 10**13
    assert sum(report.won) == report.keys
    assert min(report.won) > 0
    assert report.seconds < 30


def test_without_its_last_row_it_is_not_total():
    found = check(Table(ROWS[:-1], ACCEPTS)).findings
    assert [one.kind for one in found] == ["total"]
    assert "head 160/160" in found[0].key or "no row" in found[0].text


# Each twentieth row, for time; the slow suite takes all of them.
def rows_to_delete(step):
    return [pytest.param(number, id=f"{number}-{ROWS[number].title}") for number in range(0, len(ROWS) - 1, step)]


def missed(number):
    """Deleting a row changes what runs somewhere: another row wins its keys, or the proof fails."""
    before = check(Table(ROWS, ACCEPTS))
    after = check(Table(ROWS[:number] + ROWS[number + 1 :], ACCEPTS))
    return after.findings or [won for place, won in enumerate(after.won) if won != before.won[place if place < number else place + 1]]


@pytest.mark.parametrize("number", rows_to_delete(20))
def test_a_deleted_row_shows(number):
    assert missed(number)


@pytest.mark.slow
@pytest.mark.parametrize("number", rows_to_delete(1))
def test_any_deleted_row_shows(number):
    assert missed(number)


@pytest.mark.parametrize(
    ("axis", "route"),
    [
        ("align", "mma"),
        ("n_kv", "mma"),
        ("mask", "mma"),
        ("softcap", "mma"),
        ("head", "vec"),
        ("n_kv", "vec"),
        ("align", "tile"),
        ("view", "mma"),
        ("alibi", "mma"),
        ("mask_align", "mma"),
    ],
)
def test_a_row_without_a_condition_is_not_sound(axis, route):
    number = next(n for n, row in enumerate(ROWS) if row.route == route and any(c.axis == axis for c in row.conditions))
    broken = replace(ROWS[number], conditions=tuple(c for c in ROWS[number].conditions if c.axis != axis))
    found = check(Table((*ROWS[:number], broken, *ROWS[number + 1 :]), ACCEPTS)).findings
    sound = [one for one in found if one.kind == "sound"]
    assert sound, found
    assert f"row {number} " in sound[0].text
    assert sound[0].key
    assert sound[0].keys > 0


def test_a_loosened_limit_is_not_sound():
    """n_kv in multiples of 128 is enough for the vector kernel's step, but its row says 256; 64 is not."""
    number, row = next((n, row) for n, row in enumerate(ROWS) if row.route == "vec")
    conditions = tuple(multiple_of("n_kv", 64) if c.axis == "n_kv" else c for c in row.conditions)
    found = check(Table((*ROWS[:number], replace(row, conditions=conditions), *ROWS[number + 1 :]), ACCEPTS)).findings
    assert any(one.kind == "sound" and "KV rows: 64" in one.text for one in found)


def instances():
    titles = sorted({accept.title for accept in ACCEPTS if accept.route in {"mma", "sparse"}})
    used = {row.title for row in ROWS}
    return [title for title in titles if title in used]


@pytest.mark.parametrize("title", instances())
def test_a_removed_kernel_instance_is_not_sound(title):
    found = check(Table(ROWS, tuple(accept for accept in ACCEPTS if accept.title != title))).findings
    assert any(one.kind == "sound" and f"`{title}`, which does not accept it: there is no such kernel instance" in one.text for one in found)


def test_less_shared_memory_is_not_sound():
    """An instance that needs more than a device has: the proof names the bytes."""
    greedy = tuple(replace(accept, conditions=(*accept.conditions, at_least("smem", 200_000))) if accept.title == "mma 8x8" else accept for accept in ACCEPTS)
    found = [one for one in check(Table(ROWS, greedy)).findings if one.kind == "sound"]
    assert any("shared memory" in one.text and "200000" in one.text for one in found)


def test_a_row_that_never_decides():
    found = check(Table((*ROWS[:-1], Row("tile", 0, 0, "too late", ROWS[0].conditions), ROWS[-1]), ACCEPTS)).findings
    assert any(one.kind == "unreachable" and "too late" in one.text for one in found)


def test_what_another_kernel_takes_does_not_go_to_the_reference():
    lazy = tuple(row for row in ROWS if row.route != "tile")
    found = [one for one in check(Table(lazy, ACCEPTS)).findings if one.kind == "frugal"]
    assert found
    assert "tile" in found[0].text
