"""The soak is what it says: checked, complete, and the same from the same seed."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from pyllm.bench import soak as soaking
from pyllm.bench.command import app
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


def test_memory_that_grows_is_seen() -> None:
    grown = soaking.Soak(seed=3, cycles=soaking.LEAST_CYCLES, resident=(90 << 20, 100 << 20, 101 << 20, 103 << 20))
    with pytest.raises(InternalError, match=r"memory grows: 100 MiB in the second quarter of 10000 cycles, 103 MiB in the last"):
        grown.check_memory()
    soaking.Soak(seed=3, cycles=soaking.LEAST_CYCLES, resident=(90 << 20, 100 << 20, 101 << 20, 101 << 20)).check_memory()


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
        assert result["growth"] == result["resident"][3] / result["resident"][1] - 1
