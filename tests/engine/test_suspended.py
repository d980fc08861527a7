"""Suspended generations in engines that are smaller, full, or not theirs."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import pyllm
from pyllm import models
from pyllm.errors import ContextFullError, LimitError, StateError
from tests.conftest import prompt_tokens

if TYPE_CHECKING:
    from pyllm.checkpoints import Checkpoint
    from pyllm.engine.request import Request

LONG: dict[str, Any] = {"max_tokens": 100, "temperature": 0, "ignore_eos": True}


def engine(slots: int = 2, seed: int = 0, **settings: Any) -> pyllm.LLM:
    spec = {"types": "dflash", "depth_control": False}
    sizes = {"slots": slots, "ctx": 512 * slots, "threads": 1}
    return pyllm.LLM(models.make("llama", seed=seed), draft=models.make("llama-dflash", seed=seed), spec=spec, **(sizes | settings))


def suspended(llm: pyllm.LLM, prompt: list[int], after: int = 20, **params: Any) -> Checkpoint:
    request = llm.submit(prompt, **(LONG | params))
    pieces, seen = iter(request), 0
    while seen < after:
        seen += len(next(pieces).tokens)
    return llm.suspend(request)


def test_a_slot_that_this_engine_lacks_is_not_waited_for() -> None:
    with engine(slots=4) as llm:
        whole = llm.generate(prompt_tokens(0, 30), **LONG)
        kept = suspended(llm, prompt_tokens(0, 30), slot=3)
        # Here it is, and is taken.
        assert llm.resume(kept).result(timeout=30).slot == 3
    with engine(slots=2) as llm:
        assert llm.resume(kept).result(timeout=30).tokens == whole.tokens


def test_it_waits_for_room_in_a_shared_cache() -> None:
    """Others fill it: nobody ends, and the text is what it would have been."""
    with engine(ctx=256, unified=True) as llm:
        whole = llm.generate(prompt_tokens(0, 60), **LONG)
        kept = suspended(llm, prompt_tokens(0, 60), after=60)
        other = llm.submit(prompt_tokens(1, 150), **(LONG | {"max_tokens": 60}))
        pieces = iter(other)
        next(pieces)
        with pytest.raises(ContextFullError, match=r"of 256 cells holds \d+ tokens and has no room for the checkpoint's \d+") as full:
            llm.restore(kept)
        assert full.value.hint
        request = llm.resume(kept)
        assert llm.stats()["waiting"] == 1
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
    ended: list[str] = []
    with engine(slots=3, ctx=512, unified=True) as llm:
        kept = suspended(llm, prompt_tokens(0, 120), priority=1, max_tokens=60)

        def follow(name: str, request: Request) -> threading.Thread:
            thread = threading.Thread(target=lambda: (request.result(timeout=120), ended.append(name)))
            thread.start()
            return thread

        def ask(salt: int, priority: int) -> Request:
            return llm.submit(prompt_tokens(salt, 100), **(LONG | {"max_tokens": 40, "priority": priority}))

        first = [follow("running", ask(salt, 0)) for salt in (1, 2, 3)]
        rest = [follow("resumed", llm.resume(kept)), follow("urgent", ask(4, 2)), *(follow("behind", ask(salt, 1)) for salt in range(5, 12))]
        for thread in (*first, *rest):
            thread.join()
        llm.check_integrity()
    assert len(ended) == 12
    assert ended.index("urgent") < ended.index("resumed") < ended.index("behind")


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
        kept = suspended(llm, prompt_tokens(0, 60), after=60)
        other = llm.submit(prompt_tokens(1, 150), **(LONG | {"max_tokens": 60}))
        pieces = iter(other)
        next(pieces)
        request = llm.resume(kept)
        request.cancel()
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
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
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
