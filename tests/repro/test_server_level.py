"""Verdicts over a server that dies, refuses, hangs or answers wrongly."""

from __future__ import annotations

import pytest

from pyllm.errors import NotFoundError, ServerError
from pyllm.repro import Runner, load
from pyllm.server import ServerProcess


@pytest.fixture
def judge(write, fake_binary, tmp_path):
    """Write a scenario and run it against the fake."""

    def judge(steps="  - prompt: {tokens: [1, 2], n: 4}\n", flags="", tail="", against=None):
        path = write(steps, flags, tail=tail)
        return Runner(against or str(fake_binary), tmp_path / "logs").run(load(path), "server", path.parent)

    return judge


def test_good_answers_pass(judge, tmp_path):
    steps = """\
  - prompt: {tokens: [1, 2], n: 4, slot: 0}
  - prompt: {continues: true, cut: 1, tokens: [50], n: 3, slot: 0, stream: true}
  - prompt: [{text: ab, n: 2}, {tokens: [9], n: 2, temperature: 0.5}]
  - restart
  - wait: {seconds: 0.01}
  - prompt: {tokens: [3], n: 2}
"""
    verdict = judge(steps)
    assert (verdict.status, verdict.failure) == ("pass", None)
    assert (verdict.requests, verdict.compared) == (5, 4)
    assert (verdict.drafted, verdict.accepted) == (20, 15)
    assert verdict.oracle == "the same binary without its drafter flags"
    assert {file.name for file in (tmp_path / "logs").iterdir()} == {"case-one-server.log", "case-one-server-alone.log"}


@pytest.mark.parametrize(
    ("answer", "what", "got"),
    [
        ("die", "the server ended: signal SIGABRT", "ended the connection"),
        ("500", "internal trouble", "500 server_error"),
        ("400", "exceeds the available context", "400"),
        ("hang", "no answer within 2 s", "no answer"),
        ("wrong", "differs from the plain one at token 1 of 4", "[3, 54, 5, 6] from token 0"),
        ("short", "the answer is not complete", "3 tokens, finish length"),
    ],
)
def test_bad_answers_fail(judge, answer, what, got):
    steps = "  - prompt: {tokens: [9], n: 4}\n  - prompt: {tokens: [1, 2], n: 4}\n"
    verdict = judge(steps, f"--answer {answer} --answer-after 1")
    assert verdict.status == "fail"
    failure = verdict.failure
    assert failure is not None
    assert what in failure.what
    assert got in failure.got
    assert failure.step == 2
    assert failure.expected
    assert "--spec-type draft-mtp" in failure.command
    if answer == "die":
        assert failure.log == ("GGML_ASSERT(false) failed",)


@pytest.mark.parametrize("answer", ["die", "500"])
def test_an_expected_error_is_never_a_crash(judge, answer, monkeypatch):
    monkeypatch.setattr("pyllm.repro.runner.text_tokens", lambda _: (7, 8))
    steps = "  - prompt: {tokens: [1], n: 1}\n    expect: {error: LimitError}\n"
    verdict = judge(steps, f"--answer {answer}")
    assert verdict.status == "fail"
    assert verdict.failure is not None
    assert "LimitError" in verdict.failure.expected


def test_after_an_expected_error_the_slot_is_tried(judge, monkeypatch):
    monkeypatch.setattr("pyllm.repro.runner.text_tokens", lambda _: (7, 8))
    steps = f"  - prompt: {{tokens: {[1] * 200}, n: 1}}\n    expect: {{error: LimitError}}\n"
    verdict = judge(steps)
    assert (verdict.status, verdict.requests, verdict.compared) == ("pass", 1, 1)
    verdict = judge(steps, "--answer wrong")
    assert verdict.status == "fail"


def test_an_error_that_only_some_requests_may_have(judge, monkeypatch):
    monkeypatch.setattr("pyllm.repro.runner.text_tokens", lambda _: (7, 8))
    steps = "  - prompt: [{tokens: [1], n: 1}, {tokens: LONG, n: 1}]\n    expect: {error: LimitError, at_most: 1}\n"
    assert judge(steps.replace("LONG", str([1] * 200))).status == "pass"
    assert judge(steps.replace("LONG", "[2]")).status == "pass"
    verdict = judge(steps.replace("LONG", str([1] * 200)).replace("tokens: [1],", f"tokens: {[3] * 200},"))
    assert verdict.failure is not None
    assert verdict.failure.what == "2 requests were not answered"


def test_an_error_that_does_not_come(judge, monkeypatch):
    monkeypatch.setattr("pyllm.repro.runner.text_tokens", lambda _: (7, 8))
    verdict = judge("  - prompt: {tokens: [1], n: 1}\n    expect: {error: LimitError}\n")
    assert verdict.failure is not None
    assert verdict.failure.got == "no error"


def test_a_cancelled_request_leaves_a_working_slot(judge, monkeypatch):
    monkeypatch.setattr("pyllm.repro.runner.text_tokens", lambda _: (7, 8))
    verdict = judge("  - cancel: {tokens: [1], n: 50, after: 2}\n")
    assert (verdict.status, verdict.requests) == ("pass", 1)


def test_refused_save_and_restore_through_slots(judge, monkeypatch):
    monkeypatch.setattr("pyllm.repro.runner.text_tokens", lambda _: (7, 8))
    steps = "  - restore: {slot: 0, from: a.bin}\n    expect: {error: StateError}\n"
    assert judge(steps).status == "pass"
    verdict = judge("  - save: {slot: 0, to: a.bin}\n")
    assert verdict.failure is not None
    assert "no such slot file" in verdict.failure.what


def test_a_crash_while_stopping_is_found(judge):
    verdict = judge(flags="--on-stop crash")
    assert verdict.failure is not None
    assert "signal SIGABRT when it was asked to stop" in verdict.failure.what


def test_a_server_that_does_not_start(judge):
    verdict = judge(flags="--start exit")
    assert verdict.failure is not None
    assert verdict.failure.step == 0
    assert "exit code 3" in verdict.failure.what


def test_an_expected_refusal_at_the_start(judge):
    tail = "expect: {start: refused, says: no such model}\n"
    assert judge(flags="--start exit", tail=tail).status == "pass"
    assert judge(flags="--start exit", tail=tail.replace("no such", "another")).status == "fail"
    assert judge(flags="--start hang", tail=tail).status == "fail"
    verdict = judge(tail=tail)
    assert verdict.failure is not None
    assert verdict.failure.what == "it started"


def test_a_verb_that_servers_do_not_have_is_skipped(judge):
    verdict = judge("  - fork: {slot: 0, to: 1}\n")
    assert verdict.status == "skipped"
    assert verdict.reason


def test_a_file_that_was_not_saved_cannot_be_corrupted(judge):
    verdict = judge("  - corrupt: {file: a, field: b, value: 1}\n")
    assert verdict.status == "fail"
    assert "`a` was not saved" in verdict.failure.what


@pytest.mark.parametrize(
    ("expect", "what"),
    [
        ("{drafted: 5}", "proposed another number"),
        ("{drafts_as: 1}", "not those of step 1"),
        ("{cached: 1}", "computed again"),
    ],
)
def test_counts_that_are_others(judge, expect, what):
    steps = f"  - prompt: [{{tokens: [3], n: 2}}, {{tokens: [4], n: 2}}]\n  - prompt: {{tokens: [1, 2], n: 4}}\n    expect: {expect}\n"
    verdict = judge(steps)
    assert verdict.status == "fail"
    assert verdict.failure is not None
    assert what in verdict.failure.what
    assert verdict.failure.step == 2


def test_counts_that_are_the_same(judge):
    steps = "  - prompt: {tokens: [3], n: 2}\n  - prompt: {tokens: [1, 2], n: 4, depth: 4}\n    expect: {drafted: 4, drafts_as: 1}\n"
    assert judge(steps).status == "pass"


def test_what_a_log_must_not_say(judge):
    assert judge(tail="expect: {never: no such words}\n").status == "pass"
    verdict = judge(tail="expect: {never: listening}\n")
    assert verdict.failure is not None
    assert verdict.failure.what == "its log says `listening`"


def test_requirements_and_what_was_not_run(judge):
    verdict = judge(tail="requires: [cpu, gpu]\n")
    assert (verdict.status, verdict.reason) == ("skipped", "needs a GPU, this build sees none")
    verdict = judge(tail="beyond: [{needs: gpu2, shows: a split, flags: --answer die}]\n")
    assert verdict.status == "pass"
    assert verdict.not_run == ("a split (needs two GPUs, this build sees none)",)


def test_a_running_server(write, fake_binary):
    path = write()
    scenario = load(path)
    with ServerProcess(fake_binary, ["-m", "/elsewhere/other.gguf", "--spec-type", "x"]) as server:
        verdict = Runner(server.url).run(scenario, "server", path.parent)
        assert verdict.status == "skipped"
        assert "serves `other.gguf`" in verdict.reason
        restart = write("  - restart\n")
        assert "started here" in Runner(server.url).run(load(restart), "server", path.parent).reason
    with pytest.raises(ServerError, match="no server answers"):
        Runner(server.url).run(scenario, "server", path.parent)


def test_a_binary_that_is_not_there(write):
    path = write()
    with pytest.raises(NotFoundError, match="there is no server binary"):
        Runner("/nowhere/llama-server").run(load(path), "server", path.parent)


def test_the_other_levels_say_why_they_are_skipped(write):
    path = write()
    scenario = load(path)
    assert Runner().run(scenario, "plan", path.parent).reason == "no attention plan in this scenario"
    assert Runner().run(scenario, "engine", path.parent).reason == "a fake has no engine"
