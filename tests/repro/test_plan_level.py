"""The plan level: nodes decided by a reported engine's selector and by our routes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyllm.errors import ScenarioError
from pyllm.repro import Runner, load, report

REPORTS = sorted((Path(__file__).parents[2] / "repro" / "reports").glob("*.yaml"))

ENGINE = """\
engine: an engine 1
description: What it is.
source: {repository: a/b, commit: "1", files: [a.cu], url: "https://example.org/1"}
rows:
  - {when: {head: [512/512], gqa: {max: 2}}, then: abort, site: src/a.cu:1, says: no kernel}
  - {when: {kv: [turbo3/turbo3], n_q: {min: 9}}, then: cpu, site: src/a.cu:2, says: no kernel}
  - {when: {mask: [head]}, then: refuse, site: src/b.cu:3, says: a mask per head}
  - {when: {}, then: vec}
"""
PLAN = """\
plan:
  engine: mine
  devices: [sm_87, RTX 5090]
  nodes:
    - role: draft step
      head: 512/512
      heads: 4/2
      n_q: 1
      n_kv: 256
      kv: q4_0/f16
      expect: {then: abort, site: "src/a.cu:1"}
      ours: mma
      says: two query heads
    - {role: no draft, head: 256/256, heads: 8/2, n_q: 1, n_kv: 256, kv: q4_0/f16, on: [sm_87], expect: {then: vec}, ours: vec}
"""
OURS = "ours: mma\n      says: two query heads"
LOST = """\
    - role: recycled
      head: 256/256
      heads: 8/4
      n_q: 1
      n_kv: 1024
      kv: f16/f16
      on: [sm_87]
      found: {mask: [256, 1, 8, 1]}
      expect: {then: refuse, site: src/b.cu:3}
      ours: refused
      says: columns of the mask
"""


@pytest.fixture
def plan(write, tmp_path):
    """Write a scenario with a plan, and the engine that it names."""

    def plan(text=PLAN, change=("", "")):
        path = write(tail=text.replace(*change, 1))
        (path.parent.parent / "engines").mkdir(exist_ok=True)
        (path.parent.parent / "engines" / "mine.yaml").write_text(ENGINE)
        return path

    return plan


def _run(path, **options):
    return Runner(**options).run(load(path), "plan", path.parent)


def test_a_plan_passes(plan):
    verdict = _run(plan())
    assert (verdict.status, verdict.failure) == ("pass", None)
    assert verdict.sentence == "3 nodes on sm_87 and sm_120: 2 abort in an engine 1 (a.cu:1), all run here: mma 2, vec 1"
    assert (verdict.target, verdict.oracle) == ("the route table of this version", "the selector of an engine 1")
    first = verdict.nodes[0]
    assert (first["place"], first["role"], first["device"], first["node"]) == (1, "draft step", "sm_87", "512/512 heads 4/2 n_q 1 n_kv 256 q4_0/f16")
    assert first["there"] == {"kv": "q4_0/f16", "then": "abort", "site": "src/a.cu:1", "says": "no kernel", "row": 1}
    assert (first["here"]["route"], first["here"]["params"]) == ("mma", [4, 2])
    assert {other["route"] for other in first["here"]["rejected"]} == {"vec", "sparse", "verify"}
    assert 0 < first["here"]["smem"]["needs"] <= first["here"]["smem"]["limit"] == 163 * 1024
    assert [node["place"] for node in verdict.nodes] == [1, 2, 1]


def test_a_node_that_contradicts_itself_has_to_be_refused(plan):
    verdict = _run(plan(PLAN + LOST))
    assert verdict.status == "pass"
    assert verdict.sentence == (
        "4 nodes on sm_87 and sm_120: 2 abort and 1 is refused in an engine 1 (a.cu:1, b.cu:3), "
        "1 contradicts itself and is refused here, the others run: mma 2, vec 1"
    )
    lost = next(node for node in verdict.nodes if node["role"] == "recycled")
    assert lost["node"] == "Q [256, 1, 8, 1] K [256, 1024, 4, 1] V [256, 1024, 4, 1] mask [256, 1, 8, 1] f16/f16"
    assert lost["here"] == {"refused": "columns of the mask and rows of K differ: 256 and 1024"}
    alone = _run(plan(PLAN.partition("    - ")[0] + LOST))
    assert alone.sentence == "1 node on sm_87: 1 is refused in an engine 1 (b.cu:3), 1 contradicts itself and is refused here"


@pytest.mark.parametrize(
    ("change", "what", "expected", "got"),
    [
        (('site: "src/a.cu:1"', 'site: "src/a.cu:2"'), "an engine 1 decides otherwise", "abort at src/a.cu:2", "abort at src/a.cu:1 (row 1: no kernel)"),
        (('{then: abort, site: "src/a.cu:1"}', "{then: vec}"), "an engine 1 decides otherwise", "vec", "abort at src/a.cu:1 (row 1: no kernel)"),
        (("ours: mma", "ours: vec"), "pyllm decides otherwise", "vec that says 'two query heads'", "mma: two query heads share each K/V tile"),
        (("two query heads", "three"), "pyllm decides otherwise", "mma that says 'three'", "mma: two query heads share each K/V tile"),
        (("ours: mma", "ours: refused"), "pyllm decides otherwise", "refused that says 'two query heads'", "mma: two query heads share each K/V tile"),
        ((OURS, "found: {v: [512, 128, 2, 1]}"), "pyllm decides otherwise", "any route", "refused: rows of K and V differ: 256 and 128"),
    ],
)
def test_another_decision_fails_with_the_node(plan, change, what, expected, got):
    verdict = _run(plan(change=change))
    assert verdict.status == "fail"
    failure = verdict.failure
    assert failure is not None
    assert (failure.step, failure.what) == (1, f"draft step, on sm_87: {what}")
    assert (failure.expected, failure.got) == (expected, got)
    # The same node on the other device is told too.
    assert len(failure.log) == 1
    assert failure.log[0].startswith("node 1, draft step, on sm_120: ")
    assert failure.command == "pyllm repro run case/one --level plan --nodes"
    assert next(iter(report.lines([verdict]))).split("\t")[2:] == ["fail", f"node 1: draft step, on sm_87: {what}"]
    block = next(iter(report.failures([verdict])))
    assert block.startswith("case/one at plan level, node 1\n")
    assert f"expected  {expected}\ngot       {got}\nalso\n  node 1" in block


def test_types_of_the_reported_engine_stand_beside_ours(plan):
    text = PLAN.replace("q4_0/f16", "turbo3/turbo3, kv_here: f16/f16").replace(
        "kv: turbo3/turbo3, kv_here: f16/f16\n", "kv: turbo3/turbo3\n      kv_here: f16/f16\n"
    )
    verdict = _run(plan(text.replace("n_q: 1,", "n_q: 9,"), ("on: [sm_87], expect: {then: vec}, ours: vec", "expect: {then: cpu, site: 'src/a.cu:2'}")))
    assert verdict.failure is None
    assert verdict.sentence == "4 nodes on sm_87 and sm_120: 2 abort and 2 go to the CPU in an engine 1 (a.cu:1, a.cu:2), all run here: mma 4"
    block = next(iter(report.nodes([verdict]))).splitlines()
    assert block[0] == "case/one at plan level: the selector of an engine 1, and the route table of this version"
    assert block[2:5] == [
        "1. draft step, on sm_87",
        "   node   512/512 heads 4/2 n_q 1 n_kv 256 f16/f16, there turbo3/turbo3",
        "   there  abort at src/a.cu:1: no kernel",
    ]
    assert block[5].startswith("   here   mma 4x2: two query heads share each K/V tile (")
    assert block[6].startswith("          not vec: ")


def test_each_device_gets_its_part_of_a_split(plan):
    verdict = _run(plan(change=("nodes:", "split: 2\n  nodes:")))
    assert verdict.nodes[0]["node"].startswith("512/512 heads 2/1 n_q 1")
    assert verdict.nodes[1]["node"].startswith("256/256 heads 4/1 n_q 1")


def test_why_a_plan_is_skipped(write, plan):
    path = write()
    assert _run(path).reason == "no attention plan in this scenario"
    assert _run(write(change=lambda text: text.replace("skip: {", "skip: {plan: not about attention, "))).reason == "not about attention"
    assert _run(plan(), against="http://127.0.0.1:9").reason == "--against names a server"


def test_the_reports_show_their_holes(monkeypatch):
    monkeypatch.setenv("PYLLM_REPRO", str(REPORTS[0].parents[1]))
    verdicts = {path.stem[:3]: _run(path) for path in REPORTS}
    assert {name: verdict.status for name, verdict in verdicts.items()} == {"000": "pass", "001": "pass", "002": "pass", "003": "skipped", "004": "pass"}
    assert verdicts["003"].reason == "the report is about slots and the width of a decode, not about a route of attention"
    holes = {
        name: {(node["device"], node["there"]["then"], node["there"]["site"].rsplit("/", 1)[-1]) for node in verdict.nodes if node["there"]["site"]}
        for name, verdict in verdicts.items()
    }
    assert holes == {
        "000": {("sm_87", "abort", "fattn.cu:110")},
        "001": {("sm_120", "abort", "fattn.cu:109"), ("sm_86", "abort", "fattn.cu:109")},
        "002": {("gfx1100", "abort", "fattn.cu:579")},
        "003": set(),
        "004": {("sm_121", "abort", "batch_prefill.cu:330")},
    }
    # Where tensors contradict each other nothing runs; every other node has a route and a reason here.
    for name, verdict in verdicts.items():
        assert {"refused" in node["here"] for node in verdict.nodes if node["there"]["site"]} == (set() if name == "003" else {name == "002"})
        assert all(node["here"].get("refused") or node["here"]["reason"] for node in verdict.nodes)
    json.loads(report.as_json(list(verdicts.values()), None))


def test_report_4_is_16_to_1_on_99_kib_of_shared_memory():
    nodes = _run(REPORTS[4]).nodes
    hole = next(node for node in nodes if node["there"]["then"] == "abort")
    assert hole["node"] == "128/128 heads 32/2 n_q 3 n_kv 256 q8_0/q8_0"
    assert hole["here"]["smem"]["limit"] == 99 * 1024
    assert hole["here"]["smem"]["needs"] < 99 * 1024


@pytest.mark.parametrize(
    ("change", "at", "says", "hint"),
    [
        (("engine: mine", "engine: mien"), "engine: mien", "there is no engine `mien`", "engines: "),
        (("  devices:", "  device:"), "device:", "key `device` is not known", "did you mean `devices`?"),
        (("[sm_87, RTX 5090]", "[sm_87, sm_78]"), "sm_78", "device `sm_78` is not known", "known devices"),
        (("[sm_87, RTX 5090]", "[]"), "devices", "`devices` is []", ""),
        (("n_q: 1", "n_q: 0"), "n_q: 0", "`n_q` is 0", ""),
        (("n_q: 1", "nq: 1"), "nq: 1", "key `nq` is not known", "did you mean `n_q`?"),
        (("head: 512/512", "head: 512"), "head: 512", "`head` is 512", ""),
        (("head: 512/512", "head: 2048/512"), "role: draft", "no selector can be asked: d_k is 2048", ""),
        (("heads: 4/2", "heads: 4-2"), "heads: 4-2", "`heads` is '4-2'", ""),
        (("kv: q4_0/f16", "kv: q4_9/f16"), "kv: q4_9", "axis `kv` has no value `q4_9/f16`", "turbo3"),
        (("kv: q4_0/f16", "kv: turbo3/turbo3"), "kv: turbo3", "`turbo3/turbo3` are not types of ours", "kv_here"),
        (("kv: q4_0/f16", "kv: q4_0/f16\n      kv_here: f16/f16"), "kv_here", "`f16/f16` cannot stand for `q4_0/f16`", "types of ours"),
        (("kv: q4_0/f16", "kv: turbo3/turbo3\n      kv_here: turbo2/f16"), "kv_here", "`turbo2/f16` cannot stand for", "types of ours"),
        (("kv: q4_0/f16", "kv: q4_0/f16\n      mask: strean"), "mask: strean", "axis `mask` has no value `strean`", "stream"),
        (("then: abort", "then: abrot"), "then: abrot", "outcome `abrot` is not known", "did you mean `abort`?"),
        ((', site: "src/a.cu:1"', ""), "then: abort", "`abort` without a site", "FILE:LINE"),
        (("ours: mma", "ours: mna"), "ours: mna", "route `mna` is not known", "did you mean `mma`?"),
        (("on: [sm_87]", "on: [sm_86]"), "sm_86", "`sm_86` is no device of the plan", "did you mean `sm_87`?"),
        (("nodes:", "split: 4\n  nodes:"), "heads: 4/2", "heads 4/2 do not divide over 4 devices", "whole heads"),
        (("nodes:", "nods:"), "nods:", "key `nods` is not known", "did you mean `nodes`?"),
        (("ours: mma", "found: {v: [512, 256, 2]}"), "v: [512", "`v` has no item 4", ""),
        (("ours: mma", "found: {vv: [512, 256, 2, 1]}"), "vv: [512", "key `vv` is not known", "did you mean `v`?"),
    ],
)
def test_mistakes_are_refused_with_line_and_column(plan, change, at, says, hint):
    path = plan(change=change)
    with pytest.raises(ScenarioError) as caught:
        load(path)
    text = path.read_text()
    before = text[: text.index(at, text.index("plan:"))]
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    assert says in caught.value.message
    assert caught.value.message.startswith(f"{path}:{line}:{column}: ")
    assert hint in caught.value.hint


def test_a_plan_and_a_reason_against_it(write, plan):
    plan()
    path = write(tail=PLAN, change=lambda text: text.replace("skip: {", "skip: {plan: no, "))
    with pytest.raises(ScenarioError, match=r"one\.yaml:10:8: the scenario has a `plan` and a reason in"):
        load(path)
