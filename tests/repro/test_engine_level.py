"""The engine in its child process."""

from __future__ import annotations

import os
import signal

import pytest

from pyllm import models
from pyllm.config import EngineConfig
from pyllm.errors import ConfigError, LimitError, ServerError
from pyllm.repro import Runner, load
from pyllm.repro.engine import EngineSubject
from pyllm.repro.subject import Sent

SCENARIO = """\
name: case/engine
description: Everything the engine can do in a scenario, on the smallest pair.
source: {repository: a/b, thread: "#1", url: "https://example.org/1"}
reported: {engine: b 1, device: none, symptom: it died, flags: -m a}
model: llama
draft: llama-dflash
engine: {spec: dflash, slots: 2, ctx: 512, threads: 1}
skip: {server: only the engine is tested}
steps:
  - prompt: {random: 20, n: 6, count: 3}
  - prompt: {random: 400, n: 4}
    expect: {error: LimitError, says: a slot holds}
  - cancel: {random: 10, n: 100, after: 3}
  - restart
  - prompt: {random: 9, n: 5, stream: true}
"""


@pytest.fixture
def subject(tmp_path):
    subject = EngineSubject(EngineConfig(model=models.make("llama"), ctx=256, threads=1), limit=60, log_file=tmp_path / "log")
    yield subject
    subject.kill()


def _run(tmp_path, text):
    path = tmp_path / "repro" / "case" / "engine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return Runner(logs=tmp_path).run(load(path), "engine", path.parent)


def test_a_scenario_passes(tmp_path):
    verdict = _run(tmp_path, SCENARIO)
    assert (verdict.status, verdict.failure) == ("pass", None)
    # Three prompts, the proofs after the refusal and the cancellation, and the last one.
    assert (verdict.requests, verdict.compared) == (6, 6)
    assert verdict.oracle == "the engine with one slot, without speculation"


def test_another_error_than_the_expected_one_fails(tmp_path):
    verdict = _run(tmp_path, SCENARIO.replace("LimitError", "ContextFullError"))
    assert verdict.failure is not None
    assert verdict.failure.step == 2
    assert verdict.failure.got.startswith("LimitError: ")


def test_settings_that_are_refused_as_expected(tmp_path):
    text = SCENARIO.replace("threads: 1", "batch: 8, threads: 1") + "expect: {start: refused, says: cannot hold}\n"
    assert _run(tmp_path, text).status == "pass"


def test_a_crash_is_a_finding_with_its_signal(subject):
    subject.start()
    assert subject.target.startswith("pyllm ")
    assert subject.died() == ""
    os.kill(subject._child.pid, signal.SIGSEGV)
    with pytest.raises(ServerError, match="signal SIGSEGV"):
        subject.run([Sent((300,), 1)])
    assert subject.died() == "the engine's process ended: signal SIGSEGV"
    assert subject.stop() == subject.died()


def test_errors_keep_their_class_and_requests_their_order(subject):
    subject.start()
    long, short = Sent(tuple([300] * 300), 1), Sent((300, 301), 3)
    refused, answered = subject.run([long, short])
    assert refused.fault is not None
    assert (refused.fault.name, refused.fault.defect) == (LimitError.__name__, False)
    assert len(answered.tokens) == 3
    assert subject.tokenize("a")
    assert subject.stop() == ""


def test_a_model_that_cannot_be_opened(tmp_path):
    subject = EngineSubject(
        EngineConfig(model=models.make("llama"), slots=8, batch=8, spec={"types": "ngram", "n_max": 4}),
        limit=60,
        log_file=tmp_path / "log",
    )
    try:
        with pytest.raises(ConfigError, match="cannot hold"):
            subject.start()
    finally:
        subject.kill()


def test_a_child_that_hangs(subject):
    subject.start()
    subject.limit = 0.2
    os.kill(subject._child.pid, signal.SIGSTOP)
    with pytest.raises(ServerError, match=r"no answer to `check` within 0\.2 s"):
        subject.check()
    os.kill(subject._child.pid, signal.SIGCONT)
