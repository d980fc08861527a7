"""The selectors under ``repro/engines``: what they show, that every row counts, and what is refused with line and column."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyllm.errors import NotFoundError, ScenarioError
from pyllm.repro.collection import engine_file, find_scenarios
from pyllm.repro.engines import FOREIGN_KV_TYPES, HOLES, codes_there, encode, load_engine
from pyllm.routes.axes import AXES, DEVICE_AXES, INDEX, KV_TYPES
from pyllm.routes.devices import DEVICES
from pyllm.routes.key import Node

FILES = sorted((Path(__file__).parents[2] / "repro" / "engines").glob("*.yaml"))
ENGINES = {path.stem: load_engine(path) for path in FILES}
SHOWN = [pytest.param(ENGINES[name], shown, id=f"{name}-{place}") for name in ENGINES for place, shown in enumerate(ENGINES[name].shows, 1)]

TEXT = """\
engine: an engine 1
description: What it is.
source:
  repository: a/b
  commit: "1"
  files: [a.cu]
  url: https://example.org/1
rows:
  - when: {matrix: [turing, ampere], head: {not: [64/64]}, gqa: {max: 2}}
    then: abort
    site: a.cu:1
    says: no kernel
  - when: {kv: [turbo3/turbo3, f16/q4_0], n_q: {min: 2, multiple_of: 2}, alibi: [0]}
    then: vec
  - when: {}
    then: mma
shows:
  - {device: sm_87, head: 512/512, gqa: 2, n_q: 1, n_kv: 256, kv: f16/f16, then: abort, site: "a.cu:1"}
"""


def test_there_are_five_and_none_is_a_scenario():
    assert len(FILES) == 5
    assert all(engine.shows for engine in ENGINES.values())
    assert {row.then for engine in ENGINES.values() for row in engine.rows if row.hole} == set(HOLES)
    assert not set(FILES) & set(find_scenarios([str(FILES[0].parents[1])]))
    with pytest.raises(NotFoundError, match="there is no scenario in"):
        find_scenarios([str(FILES[0].parent)])


@pytest.mark.parametrize(("engine", "shown"), SHOWN)
def test_what_is_known_comes_out(engine, shown):
    number, row = engine.decide(codes_there(DEVICES[shown.device], shown.node, shown.kv))
    assert (row.then, row.site) == (shown.then, shown.site), f"row {number}: {row.says}"


def _values(about, conditions):
    """Values of an axis of nodes around every constant in ``conditions``."""
    constants = {value for condition in conditions for value in condition.values}
    if about.kind == "number":
        return {*range(1, 70), *(made for value in constants for made in (value - 1, value, value + 1, value + 2, 2 * value, 3 * value))}
    others = {"flag": (0, 1), "word": about.words, "head": ("176/176",), "kv": ("f16/f16", "q8_0/q8_0")}
    return constants | {encode(about.name, value) for value in others[about.kind]}


def _axes(engine):
    """For each part of a key, most read first, its classes: values that no condition of the engine tells apart, one for all. The device is one part."""
    conditions = [condition for row in engine.rows for condition in row.when]
    parts = [{tuple(zip(DEVICE_AXES, Node(8, 8, 1, 1, 1, 1).codes(device), strict=False)) for device in DEVICES.values()}]
    parts += [{((about.name, value),) for value in _values(about, conditions) if value >= 0} for about in AXES if about.name not in DEVICE_AXES]
    for part in parts:
        names = {name for name, _ in next(iter(part))}
        read = [condition for condition in conditions if condition.axis in names]
        if read:
            yield len(read), list({tuple(condition.holds(dict(value)[condition.axis]) for condition in read): dict(value) for value in sorted(part)}.values())


def _reaches(parts, key, wanted, before):
    """Whether a key exists beyond ``key`` that fulfils ``wanted`` and, of each list in ``before``, not all conditions."""
    if any(not one.holds(key[one.axis]) for one in wanted if one.axis in key):
        return False
    alive = [row for row in before if all(one.holds(key[one.axis]) for one in row if one.axis in key)]
    if any(all(one.axis in key for one in row) for row in alive):
        return False
    return not parts or any(_reaches(parts[1:], key | value, wanted, alive) for value in parts[0])


@pytest.mark.parametrize("name", ENGINES)
def test_every_row_decides_for_some_node(name):
    rows = [row.when for row in ENGINES[name].rows]
    parts = [part for _, part in sorted(_axes(ENGINES[name]), key=lambda part: -part[0])]
    assert [number for number in range(len(rows)) if not _reaches(parts, {}, rows[number], rows[:number])] == []


def test_a_row_that_is_shadowed_is_found(write):
    engine = load_engine(write("{min: 2, multiple_of: 2}", "{min: 2, max: 1}"))
    rows = [row.when for row in engine.rows]
    parts = [part for _, part in _axes(engine)]
    assert not _reaches(parts, {}, rows[1], rows[:1])
    assert not _reaches(parts, {}, rows[0], rows[-1:])
    assert _reaches(parts, {}, rows[2], rows[:2])


def test_codes_are_ours_and_foreign_types_follow():
    node = Node(512, 512, 4, 2, 1, 256, type_k="q4_0")
    assert codes_there(DEVICES["sm_87"], node, "q4_0/f16") == node.codes(DEVICES["sm_87"])
    foreign = codes_there(DEVICES["sm_87"], node, "turbo3/turbo3")
    assert foreign[INDEX["quantised"]] == 1
    assert not set(FOREIGN_KV_TYPES) & set(KV_TYPES)
    assert foreign[INDEX["kv"]] not in {encode("kv", f"{k}/{v}") for k in KV_TYPES for v in KV_TYPES}


@pytest.fixture
def write(tmp_path):
    """Write an engine's file."""

    def write(*change):
        path = tmp_path / "engine.yaml"
        path.write_text(TEXT.replace(*change, 1) if change else TEXT)
        return path

    return write


def test_a_file_is_read(write):
    engine = load_engine(write())
    decided = {
        kv: engine.decide(codes_there(DEVICES[device], Node(512, 512, gqa, 1, 2, 256), kv))
        for kv, device, gqa in (("f16/f16", "sm_87", 2), ("f16/q4_0", "sm_87", 3), ("bf16/bf16", "gfx1100", 1))
    }
    assert {kv: (number, str(row)) for kv, (number, row) in decided.items()} == {
        "f16/f16": (1, "abort at a.cu:1"),
        "f16/q4_0": (2, "vec"),
        "bf16/bf16": (3, "mma"),
    }


@pytest.mark.parametrize(
    ("change", "place", "says", "hint"),
    [
        (("    says: no", "    say: no"), (12, 5), "key `say` is not known", "did you mean `says`?"),
        (("rows:", "row:"), (8, 1), "key `row` is not known", "did you mean `rows`?"),
        (("gqa: {max", "gqua: {max"), (9, 60), "axis `gqua` is not known", "did you mean `gqa`?"),
        (("{max: 2}", "{maxx: 2}"), (9, 66), "operator `maxx` is not known", "did you mean `max`?"),
        (("{max: 2}", "{max: two}"), (9, 66), "axis `gqa` has no value `two`", "whole numbers"),
        (("{max: 2}", "{multiple_of: 0}"), (9, 66), "multiple_of 0", "at least 1"),
        (("{max: 2}", "2"), (9, 60), "axis `gqa` is compared with 2", "a list of values"),
        (("{max: 2}", "{}"), (9, 60), "axis `gqa` is compared with {}", "a list of values"),
        (("turing, ampere", "turing, ampre"), (9, 29), "axis `matrix` has no value `ampre`", "it has none, volta, turing"),
        (("[64/64]", "[64/64, 64x64]"), (9, 58), "axis `head` has no value `64x64`", "512/512"),
        (("{not: [64/64]}", "{min: 64/64}"), (9, 45), "`min` compares numbers, axis `head` has none", "`not`"),
        (("f16/q4_0", "f16/q4_9"), (13, 32), "axis `kv` has no value `f16/q4_9`", "turbo3"),
        (("alibi: [0]", "alibi: [2]"), (13, 82), "axis `alibi` has no value `2`", "0 and 1"),
        (("then: abort", "then: abrot"), (10, 5), "outcome `abrot` is not known", "did you mean `abort`?"),
        (("    site: a.cu:1\n", ""), (10, 5), "`abort` without a site", "FILE:LINE"),
        (("    says: no kernel\n", ""), (10, 5), "`abort` without a reason", "says"),
        (("then: vec\n", "then: vec\n    site: b\n"), (15, 5), "route `vec` with a site", "a hole"),
        (("  - when: {}\n    then: mma\n", ""), (13, 5), "the last row does not take every node", "when: {}"),
        (("device: sm_87", "device: sm_78"), (18, 6), "device `sm_78` is not known", "known devices"),
        (("n_kv: 256, kv", "n_kv: 256, mask: strean, kv"), (18, 63), "axis `mask` has no value `strean`", "stream"),
        (("then: abort, site", "then: cpu, siet"), (18, 87), "key `siet` is not known", "`site`"),
    ],
)
def test_mistakes_are_refused_with_line_and_column(write, change, place, says, hint):
    path = write(*change)
    with pytest.raises(ScenarioError) as caught:
        load_engine(path)
    line, column = place
    assert says in caught.value.message
    assert caught.value.message.startswith(f"{path}:{line}:{column}: ")
    assert hint in caught.value.hint


def test_files_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("PYLLM_REPRO", str(FILES[0].parents[1]))
    with pytest.raises(NotFoundError, match="there is no engine file"):
        load_engine(tmp_path / "x.yaml")
    with pytest.raises(NotFoundError) as caught:
        engine_file("llama.cpp-f05cf467", tmp_path)
    assert "did you mean `llama.cpp-f05cf4676`?" in caught.value.hint
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "mine.yaml").write_text(TEXT)
    assert engine_file("mine", tmp_path / "case") == tmp_path / "engines" / "mine.yaml"
    (tmp_path / "engines" / "mine.yaml").write_text("- a\n")
    with pytest.raises(ScenarioError, match=r"mine\.yaml:1:1: an engine is a mapping"):
        load_engine(tmp_path / "engines" / "mine.yaml")
