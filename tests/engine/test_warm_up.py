"""The warm-up: what it learns, and that nothing of it is left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pyllm import models
from pyllm.config import EngineConfig
from pyllm.engine.core import Core
from pyllm.engine.scheduler import Scheduler
from pyllm.engine.warm_up import kinds, warm_up

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def scheduler(request: pytest.FixtureRequest) -> Iterator[Scheduler]:
    settings: dict[str, Any] = {"slots": 4, "ctx": 2048} | getattr(request, "param", {})
    target, draft = models.make("llama", family="successor"), models.make("llama-dflash", family="successor")
    config = EngineConfig(**({"model": target, "draft": draft, "spec": "dflash"} | settings))
    core = Core(config)
    yield Scheduler(core, config)
    core.close()


def test_kinds() -> None:
    assert kinds(1, 3) == [(1, 0), (1, 1), (1, 3)]
    assert kinds(3, 2) == [(1, 0), (1, 1), (2, 0), (1, 2), (3, 0), (2, 1), (2, 2), (3, 1), (3, 2)]
    assert all(left[0] * (1 + left[1]) <= right[0] * (1 + right[1]) for left, right in zip(kinds(16, 7), kinds(16, 7)[1:], strict=False))


@pytest.mark.parametrize("scheduler", [{}, {"unified": True}, {"draft": None, "spec": "ngram"}], indirect=True)
def test_costs_are_known_before_a_request_comes(scheduler: Scheduler) -> None:
    warm_up(scheduler, seconds=60.0)
    assert scheduler.drafting.control is not None
    costs = scheduler.drafting.control.costs
    depth = min(scheduler.core.depth, 64)
    assert {1, 2, 4, 4 * (1 + depth)} <= set(costs.decode)
    assert {(depth, 1), (depth, 4)} <= set(costs.draft)
    assert costs.n_steps == 0
    assert costs.seconds == 0


def test_nothing_of_it_is_left(scheduler: Scheduler) -> None:
    warm_up(scheduler)
    scheduler.check_integrity()
    assert scheduler.pool.counts() == {"free": 4, "held": 0, "cached": 0, "total": 4}
    assert not scheduler.busy
    assert {slot.last_used for slot in scheduler.pool.slots} == {0}
    assert (scheduler.n_steps, scheduler.n_prompt_tokens, scheduler.n_generated_tokens) == (0, 0, 0)
    assert (scheduler.drafting.n_drafted, scheduler.drafting.n_accepted) == (0, 0)


def test_it_ends_when_its_time_is_over(scheduler: Scheduler) -> None:
    warm_up(scheduler, seconds=0.0)
    assert scheduler.drafting.control is not None
    assert set(scheduler.drafting.control.costs.decode) == {1}


@pytest.mark.parametrize("scheduler", [{"spec": {"types": "dflash", "depth_control": False}}], indirect=True)
def test_without_depth_control_there_is_none(scheduler: Scheduler) -> None:
    warm_up(scheduler)
    assert scheduler.core.drafter is not None
    assert scheduler.core.drafter.stats.n_decodes == 0


@pytest.mark.parametrize("scheduler", [{"slots": 2, "ctx": 96, "unified": True}], indirect=True)
def test_slots_too_short_for_some_kinds(scheduler: Scheduler) -> None:
    warm_up(scheduler, seconds=60.0)
    scheduler.check_integrity()
    assert scheduler.drafting.control is not None
    assert 1 in scheduler.drafting.control.costs.decode
