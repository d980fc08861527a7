"""Engines that take turns write what an engine writes, compute in their turns only, and say why they cannot go on."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

import pyllm
from pyllm import models
from pyllm.bench import turns
from pyllm.bench.decode import Workload, prompts
from pyllm.bench.depth import compare
from pyllm.bench.turns import Engine, seconds_in_turn
from pyllm.config import EngineConfig
from pyllm.errors import InternalError, LimitError, NotFoundError

if TYPE_CHECKING:
    from pathlib import Path

    from pyllm.engine.scheduler import Scheduler


TEXTS = prompts(Workload(2, 12, 60, 1), 300, 0)


@pytest.fixture
def config() -> EngineConfig:
    spec = {"types": "dflash", "depth_control": False}
    draft = models.make("llama-dflash", family="successor")
    return EngineConfig(model=models.make("llama", family="successor"), draft=(draft,), spec=spec, slots=2, ctx=1024, threads=1)  # type: ignore[arg-type]


def _n_steps(scheduler: Scheduler) -> int:
    return scheduler.n_steps


def _fall(scheduler: Scheduler) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _short(scheduler: Scheduler) -> None:
    raise LimitError("too short", "longer")


def test_both_write_what_an_engine_writes(config: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN", 0.002)
    plain = config.model_copy(update={"spec": None, "draft": ()})
    with pyllm.LLM(**plain.model_dump()) as llm:
        expected = [result.tokens for result in llm.generate(TEXTS, max_tokens=60, temperature=0, ignore_eos=True)]
    with Engine(plain) as one, Engine(config) as other:
        assert one.ask("n_vocab") == other.ask("n_vocab") > 0
        begin = time.perf_counter()
        took = seconds_in_turn((one, other), TEXTS, 60)
        # Nothing is counted twice: neither computed while it was the other's turn.
        assert 0 < min(took) <= sum(took) <= time.perf_counter() - begin
        assert one.ask("tokens") == other.ask("tokens") == expected
        assert one.ask("drafting")["accepted"] == 0 < other.ask("drafting")["accepted"]
        assert other.ask(_n_steps) < one.ask(_n_steps)


def test_a_turn_is_a_share_of_the_work(config: EngineConfig) -> None:
    """It ends with the first step that is over its time, and goes on from there in the next."""
    with Engine(config) as engine:
        engine.ask("begin", TEXTS, 100)
        engine.ask("turn", 1e-9)
        steps = engine.ask(_n_steps)
        assert (steps, engine.ask("busy")) == (1, True)
        time.sleep(0.05)
        assert engine.ask(_n_steps) == steps
        with pytest.raises(TimeoutError):
            engine.ask("tokens")
        assert engine.ask("turn", 60.0) < 60
        assert not engine.ask("busy")


def test_what_goes_wrong_is_raised_here(config: EngineConfig, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="No such file"):
        Engine(config.model_copy(update={"model": tmp_path / "none.gguf"}))
    with Engine(config) as engine:
        with pytest.raises(LimitError, match="too short") as raised:
            engine.ask(_short)
        assert raised.value.hint == "longer"
        assert engine.ask("busy") is False
        for _ in range(2):
            with pytest.raises(InternalError, match=f"ended with -{int(signal.SIGKILL)}"):
                engine.ask(_fall)


def test_depth_control_is_compared(config: EngineConfig) -> None:
    controlled = config.model_copy(update={"spec": config.spec.model_copy(update={"depth_control": True}), "ctx": 256})  # type: ignore[union-attr]
    told: list[str] = []
    found, costs = compare(controlled, (1, 2), prompt_tokens=8, tokens=48, rounds=3, progress=told.append)
    assert [one.slots for one in found] == [1, 2]
    assert told[-1] == "2 requests, round 3 of 3"
    for one in found:
        assert one.same_tokens
        assert 0 < one.ratio_range[0] <= one.ratio <= one.ratio_range[1]
        assert 0 <= one.depth <= 15
        assert 0 <= one.probing < 1
    assert [cost.rows for cost in costs] == [1, 2, 3, 4, 6, 8, 12, 16]
    assert costs[0].over_one == 1.0
