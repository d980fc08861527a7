"""Suspended generations in engines that are smaller, full, or not theirs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import pyllm
from pyllm import models
from pyllm.engine import conversations
from pyllm.errors import ContextFullError, LimitError, StateError
from tests.conftest import prompt_tokens

if TYPE_CHECKING:
    from pyllm.checkpoints import Checkpoint
    from pyllm.engine.request import Request
    from pyllm.engine.scheduler import Scheduler

LONG: dict[str, Any] = {"max_tokens": 100, "temperature": 0, "ignore_eos": True}


def engine(slots: int = 2, seed: int = 0, **settings: Any) -> pyllm.LLM:
    spec = {"types": "dflash", "depth_control": False}
    sizes = {"slots": slots, "ctx": 512 * slots, "threads": 1}
    return pyllm.LLM(models.make("llama", seed=seed), draft=models.make("llama-dflash", seed=seed), spec=spec, **(sizes | settings))


def suspended(llm: pyllm.LLM, prompt: list[int], after: int = 20, **params: Any) -> Checkpoint:
    """Between two steps: who waits for chunks may come when all is over."""
    request = llm._request(prompt, None, LONG | params)

    def run(scheduler: Scheduler) -> Checkpoint:
        scheduler.add(request)
        while len(request.tokens) < after:
            scheduler.step()
        return conversations.suspend(scheduler, request)

    return llm._call(run)


def test_a_slot_that_this_engine_lacks_is_not_waited_for() -> None:
    with engine(slots=4) as llm:
        whole = llm.generate(prompt_tokens(0, 30), **LONG)
        kept = suspended(llm, prompt_tokens(0, 30), slot=3)
        # Here it is, and is taken.
        assert llm.resume(kept).result(timeout=30).slot == 3
    with engine(slots=2) as llm:
        assert llm.resume(kept).result(timeout=30).tokens == whole.tokens


def beside(llm: pyllm.LLM, kept: Checkpoint, *, cancelled: bool = False) -> tuple[Request, Request]:
    """A generation that waits while another request fills the cache; both."""
    other = llm._request(prompt_tokens(1, 150), None, LONG | {"max_tokens": 60})

    def run(scheduler: Scheduler) -> Request:
        scheduler.add(other)
        scheduler.step()
        with pytest.raises(ContextFullError, match=r"of 256 cells holds \d+ tokens and has no room for the checkpoint's \d+") as full:
            conversations.restore(scheduler, kept, None)
        assert full.value.hint
        request = conversations.resumed(scheduler, kept, "")
        scheduler.add(request)
        scheduler.step()
        assert (list(scheduler.waiting), scheduler.running) == ([request], [other])
        request.cancelled = cancelled
        return request

    return llm._call(run), other


def test_it_waits_for_room_in_a_shared_cache() -> None:
    """Others fill it: nobody ends, and the text is what it would have been."""
    with engine(ctx=256, unified=True) as llm:
        whole = llm.generate(prompt_tokens(0, 60), **LONG)
        request, other = beside(llm, suspended(llm, prompt_tokens(0, 60), after=60))
        assert request.result(timeout=60).tokens == whole.tokens
        assert len(other.result().tokens) == 60
        llm.check_integrity()


@pytest.mark.parametrize("total", range(250, 259))
def test_nobody_ends_where_it_just_fits(total: int) -> None:
    """Cells that the next tokens need count, too, and those that a prompt will take."""
    with engine(ctx=256, unified=True) as llm:
        kept = suspended(llm, prompt_tokens(0, 80), after=40)
        other = llm.submit(prompt_tokens(1, total - len(kept.tokens)), **(LONG | {"max_tokens": 8}))
        request = llm.resume(kept)
        assert len(other.result(timeout=60).tokens) == 8
        assert len(request.result(timeout=60).tokens) == 100
        llm.check_integrity()


def test_those_behind_do_not_take_its_room() -> None:
    """What is more urgent does."""
    with engine(slots=3, ctx=512, unified=True) as llm:
        kept = suspended(llm, prompt_tokens(0, 120), priority=1)

        def ask(salt: int, priority: int, n: int = 40) -> Request:
            return llm._request(prompt_tokens(salt, 100), None, LONG | {"max_tokens": n, "priority": priority})

        def run(scheduler: Scheduler) -> list[str]:
            """In the order in which they got a slot: all wait while three others run, which end one after the other."""
            for salt in (1, 2, 3):
                scheduler.add(ask(salt, 0, 30 * salt - 20))
            scheduler.step()
            assert len(scheduler.running) == 3
            waiting = {"resumed": conversations.resumed(scheduler, kept, ""), "urgent": ask(4, 2)} | {f"behind {salt}": ask(salt, 1) for salt in range(5, 12)}
            for request in waiting.values():
                scheduler.add(request)
            while scheduler.busy:
                scheduler.step()
            assert all(isinstance(request.poll(), pyllm.engine.Completion) for request in waiting.values())
            return sorted(waiting, key=lambda name: waiting[name].started)

        assert llm._call(run)[:2] == ["urgent", "resumed"]
        llm.check_integrity()


def test_another_reason_is_not_taken_for_a_lack_of_room() -> None:
    """Idle conversations stay where they are."""
    with engine(unified=True, flash_attn="on") as llm:
        kept = llm.checkpoint(llm.generate(prompt_tokens(0, 150), max_tokens=4).slot)
    with engine(unified=True, flash_attn="off") as llm:
        llm.generate([prompt_tokens(salt, 40) for salt in (1, 2)], max_tokens=4)
        before = [info.n_tokens for info in llm.slots()]
        with pytest.raises(StateError, match="transpos"):
            llm.restore(kept, 0)
        assert [info.n_tokens for info in llm.slots()][1] == before[1] > 0


def test_one_that_waits_can_be_cancelled() -> None:
    with engine(ctx=256, unified=True) as llm:
        request, other = beside(llm, suspended(llm, prompt_tokens(0, 60), after=60), cancelled=True)
        assert request.result(timeout=30).finish_reason == "cancelled"
        assert len(other.result().tokens) == 60


def test_log_probabilities_stay_with_their_tokens() -> None:
    with engine() as llm:
        whole = llm.generate(prompt_tokens(0, 30), logprobs=3, **LONG)
        kept = suspended(llm, prompt_tokens(0, 30), logprobs=3)
        request = llm.resume(kept)
        chunks = list(request)
        again = request.result()
    assert [one.token for one in again.logprobs] == list(again.tokens) == list(whole.tokens)
    for one, other in zip(again.logprobs, whole.logprobs, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=2e-2)  # a GPU's kernels differ with the rows of a decode
        assert len(one.top) == 3
    # A chunk has those of its own tokens, none of what was handed out before.
    for chunk in chunks:
        assert [one.token for one in chunk.logprobs] == list(chunk.tokens)


def test_a_longer_one_than_a_slot_is_refused() -> None:
    with engine() as llm:
        kept = suspended(llm, prompt_tokens(0, 300))
    with engine(ctx=512) as llm:
        with pytest.raises(LimitError, match=r"holds 3\d\d tokens, a slot holds 256"):
            llm.resume(kept)
        assert llm.generate(prompt_tokens(0, 30), **LONG).tokens


def test_one_that_is_not_ours_is_refused() -> None:
    with engine() as llm:
        kept = suspended(llm, prompt_tokens(0, 30))
        for wrong in (b"{", b"[]", b'{"params": {}}', b'{"params": {"top_k": -1}}'):
            with pytest.raises((StateError, ValueError)) as caught:
                llm.resume(replace(kept, generation=wrong))
            assert isinstance(caught.value, pyllm.errors.PyllmError)
        with pytest.raises(StateError, match="model is `not said`"):
            llm.resume(replace(kept, facts={}))
        assert llm.resume(kept).result(timeout=30).tokens
    with engine(seed=3) as other, pytest.raises(StateError, match="the checkpoint does not belong to this engine: model is"):
        other.resume(kept)
