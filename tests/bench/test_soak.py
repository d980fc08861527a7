"""The soak is what it says: checked, complete, and the same from the same seed."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from pyllm import models
from pyllm.bench import soak as soaking
from pyllm.bench.command import app
from pyllm.checkpoints import Checkpoint
from pyllm.engine.scheduler import Scheduler
from pyllm.errors import InternalError


@pytest.mark.parametrize("name", list(soaking.engines()))
def test_the_same_from_the_same_seed(name: str) -> None:
    config = soaking.engines()[name]
    first, second = soaking.soak(config, 120, 7), soaking.soak(config, 120, 7)
    assert first.digest == second.digest
    assert first.ends == second.ends
    assert first.cycles == 120
    assert first.tokens > 0
    assert soaking.soak(config, 120, 8).digest != first.digest


def test_everything_happens() -> None:
    """Also what needs an idle slot; and the budget holds while checkpoints come with copies and files."""
    result = soaking.soak(soaking.engines()["falcon-h1, ngram"], 1500, 1)
    assert min(result.events[event] for event in soaking.EVENTS) > 0, result.events
    assert result.copied + result.restored > 0


def _grown(*engine: int) -> soaking.Soak:
    kept = (3 << 20, 1 << 20, 5 << 20, 9 << 20)
    resident = tuple((size << 20) + own for size, own in zip(engine, kept, strict=True))
    return soaking.Soak(seed=3, cycles=soaking.LEAST_CYCLES, resident=resident, kept=kept)


def test_memory_that_grows_is_seen() -> None:
    """And what the driver keeps is not taken for it."""
    with pytest.raises(InternalError, match=r"memory grows: 100 MiB in the second quarter of 10000 cycles, 103 MiB in the last"):
        _grown(90, 100, 101, 103).check_memory()
    _grown(90, 100, 101, 101).check_memory()


def test_what_the_driver_keeps_is_what_it_could_give_back() -> None:
    """A state that the engine holds too is the engine's."""
    driver = soaking._Driver(soaking.engines()["qwen35, mtp"], 1, [int(token) for token in models.successor(0)])
    try:
        while not any(isinstance(each, Checkpoint) and each.marks for each in driver.aside):
            driver.cycle()
        held = [each for each in [*driver.aside, *driver.paused] if isinstance(each, Checkpoint)]
        states = {id(state): state for each in held for state in (each.state, *each.marks)}
        shared = {id(mark): mark.size for slot in driver.scheduler.pool.slots for mark in slot.marks if id(mark) in states}
        assert shared
        assert driver.kept() == sum(state.size for state in states.values()) - sum(shared.values())
        driver.aside.clear()
        driver.paused.clear()
        assert driver.kept() == 0
    finally:
        driver.close()


def test_a_lost_request_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scheduler, "leave", lambda self, request: (self.pool.release(request.slot), self.running.remove(request)))
    monkeypatch.setattr("pyllm.engine.request.Request.emit", lambda *_: None)
    with pytest.raises(InternalError, match=r"seed 1: \d+ requests never ended"):
        soaking.soak(soaking.engines()["qwen35, mtp"], 100, 1)


def test_suspended_requests_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their checkpoints are the caller's memory: it would look like the engine's that grows."""
    held = []
    cycle = soaking._Driver.cycle

    def watched(driver) -> None:
        cycle(driver)
        held.append(len(driver.paused))

    monkeypatch.setattr(soaking._Driver, "cycle", watched)
    monkeypatch.setattr(soaking, "EVENTS", soaking.EVENTS | {"arrive": 0.5, "suspend": 0.3, "resume": 0.01})
    soaking.soak(soaking.engines()["falcon-h1, ngram"], 300, 1)
    assert max(held) == soaking.MOST_KEPT


def test_its_report_is_json() -> None:
    done = CliRunner().invoke(app, ["soak", "--cycles", "400", "--jobs", "2", "--json"])
    assert done.exit_code == 0, done.output
    results = json.loads(done.stdout)["results"]
    assert list(results) == list(soaking.SHARES)
    for result in results.values():
        assert result["cycles"] >= 60
        assert result["events"]["arrive"] > 0
        assert sum(result["ends"].values()) > 0
        assert len(result["digest"]) == 64
        assert result["growth"] == (result["resident"][3] - result["kept"][3]) / (result["resident"][1] - result["kept"][1]) - 1
