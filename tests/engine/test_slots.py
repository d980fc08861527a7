"""Slots of a running engine: shared prefixes, forks, checkpoints, shifts; whatever is reused, the text is that of a fresh computation."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest

import pyllm
from pyllm import models
from pyllm.errors import InvalidArgumentError, LimitError
from tests.conftest import prompt_tokens
from tests.engine.oracle import MARGINS, assert_same

if TYPE_CHECKING:
    from collections.abc import Sequence

GREEDY: dict[str, Any] = {"max_tokens": 12, "temperature": 0}

#: Every kind of memory: plain, sliding window, recurrent with rollback; each with a drafter of another kind.
KINDS = [
    ("llama", "llama-dflash", "dflash"),
    ("gemma4", "gemma4-assistant", "mtp"),
    ("qwen35", None, "mtp"),
    ("step35", None, "mtp"),
    ("qwen35", "qwen35-dflash", "dflash"),
]


def engine(target: str, draft: str | None, kind: str | None, **settings: Any) -> pyllm.LLM:
    spec = None if kind is None else {"types": kind, "n_max": 3, "depth_control": False}
    return pyllm.LLM(models.make(target), draft=models.make(draft) if draft else None, spec=spec, **({"slots": 4, "ctx": 2048} | settings))


@functools.cache
def fresh(target: str, prompt: tuple[int, ...], max_tokens: int = 12) -> tuple[int, ...]:
    with pyllm.LLM(models.make(target), ctx=1024) as llm:
        return llm.generate(list(prompt), max_tokens=max_tokens, temperature=0).tokens


def wants(target: str, prompts: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    return [fresh(target, tuple(prompt)) for prompt in prompts]


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize(("target", "draft", "kind"), KINDS)
def test_a_prefix_is_shared_across_slots(target: str, draft: str | None, kind: str, unified: bool) -> None:
    system = prompt_tokens(0, 130)
    prompts = [[*system, *prompt_tokens(salt, 20)[1:]] for salt in range(1, 6)]
    with engine(target, draft, kind, unified=unified, checkpoint_every=130) as llm:
        first = llm.generate(prompts[0], **GREEDY)
        results = [first, *llm.generate(prompts[1:], **GREEDY)]
        assert [result.tokens for result in results] == wants(target, prompts)
        # The first computes the prefix, the others copy it: one token less where a drafter needs the row before.
        assert [result.usage.cached_tokens >= 129 for result in results] == [False, True, True, True, True]
        assert len({result.slot for result in results}) > 1
        assert llm.stats()["checkpoints"]["copied"] > 0
        llm.check_integrity()


def test_requests_of_one_moment_compute_their_prefix_once() -> None:
    system = prompt_tokens(0, 200)
    prompts = [[*system, *prompt_tokens(salt, 20)[1:]] for salt in range(1, 5)]
    with engine("llama", "llama-dflash", "dflash", batch=64) as llm:
        results = llm.generate(prompts, **GREEDY)
        assert [result.tokens for result in results] == wants("llama", prompts)
        # They wait until all but a few tokens of it are there.
        assert sum(result.usage.cached_tokens >= 200 - 32 for result in results) == 3
        assert llm.stats()["prompt_tokens"] <= 200 + 4 * 20 + 3 * 32


@pytest.mark.parametrize(("target", "draft", "kind"), KINDS)
def test_a_fork_goes_on_from_the_same_memory(target: str, draft: str | None, kind: str) -> None:
    prompt = prompt_tokens(0, 60)
    with engine(target, draft, kind) as llm:
        first = llm.generate(prompt, **GREEDY)
        other = llm.fork(first.slot)
        assert other != first.slot
        known = [*prompt, *first.tokens]
        turns = [[*known, *prompt_tokens(salt, 12)[1:]] for salt in (1, 2)]
        request = llm.submit(turns[0], slot=first.slot, **GREEDY)
        pieces = iter(request)
        next(pieces)
        results = [llm.submit(turns[1], slot=other, **GREEDY).result(), request.result()][::-1]
        assert [result.tokens for result in results] == wants(target, turns)
        # All but the last token of the answer, which was never decoded; the other slot knows it by now, and nobody copies a conversation for one token.
        assert [result.usage.cached_tokens for result in results] == [len(known) - 1] * 2
        llm.check_integrity()


def test_forks_that_cannot_be() -> None:
    with engine("llama", None, None, slots=2) as llm:
        with pytest.raises(InvalidArgumentError, match="slot 7 is not in"):
            llm.fork(7)
        slot = llm.generate(prompt_tokens(0, 20), **GREEDY).slot
        with pytest.raises(InvalidArgumentError, match="onto itself"):
            llm.fork(slot, slot)
        request = llm.submit(prompt_tokens(1, 20), max_tokens=400, temperature=0, ignore_eos=True, slot=1 - slot)
        pieces = iter(request)
        next(pieces)
        with pytest.raises(InvalidArgumentError, match="runs a request"):
            llm.fork(1 - slot)
        with pytest.raises(LimitError, match="all 2 slots"):
            llm.fork(slot)
        request.cancel()
        llm.check_integrity()


@pytest.mark.parametrize(("target", "draft", "kind"), KINDS)
def test_a_prompt_that_is_cut_back_restores_a_checkpoint(target: str, draft: str | None, kind: str) -> None:
    base = prompt_tokens(0, 300)
    lengths = [300, 130, 250, 64, 299]
    with engine(target, draft, kind, slots=1, checkpoint_every=64, cache_bytes=2**28) as llm:
        for length in lengths:
            result = llm.generate(base[:length], **GREEDY)
            assert result.tokens == fresh(target, tuple(base[:length]))
            if length != 300:
                # At worst back to the checkpoint before: multiples of 64.
                assert result.usage.cached_tokens >= (length - 1) // 64 * 64 - 1
            llm.check_integrity()


@pytest.mark.parametrize(("target", "draft", "kind"), KINDS)
def test_an_evicted_conversation_comes_back(target: str, draft: str | None, kind: str) -> None:
    """One slot and three conversations: each finds itself again in the store."""
    talks = {salt: prompt_tokens(salt, 80) for salt in range(3)}
    with engine(target, draft, kind, slots=1) as llm:
        for turn in range(3):
            for salt, talk in talks.items():
                result = llm.generate(talk, **GREEDY)
                assert result.tokens == fresh(target, tuple(talk))
                assert (result.usage.cached_tokens > 70) == (turn > 0)
                talks[salt] = [*talk, *result.tokens, *prompt_tokens(salt + 10 * turn, 8)[1:]]
                llm.check_integrity()
        assert llm.stats()["checkpoints"]["restored"] == 6


def test_without_a_budget_nothing_is_kept() -> None:
    with engine("qwen35", None, "mtp", slots=1, cache_bytes=0) as llm:
        for salt in (0, 1, 0):
            assert llm.generate(prompt_tokens(salt, 80), **GREEDY).usage.cached_tokens == 0
        assert llm.stats()["checkpoints"]["bytes"] == 0
        assert not llm.slots()[0].marks


@pytest.mark.parametrize("budget", [2**12, 2**16, 2**18])
def test_the_budget_holds(budget: int) -> None:
    with engine("qwen35", None, "mtp", slots=2, cache_bytes=budget, checkpoint_every=16) as llm:
        for salt in range(8):
            llm.generate(prompt_tokens(salt % 5, 90 + salt), **GREEDY)
            assert llm.stats()["checkpoints"]["bytes"] <= budget
            llm.check_integrity()


@pytest.mark.parametrize(("target", "draft", "kind"), [*KINDS[:2], ("llama", None, "ngram"), ("gemma4", "gemma4-dflash", "dflash")])
@pytest.mark.parametrize("slots", [1, 3])
def test_a_full_context_is_shifted(target: str, draft: str | None, kind: str, slots: int) -> None:
    prompts = [prompt_tokens(salt, 90 + 10 * salt) for salt in range(slots)]
    sampling = {"max_tokens": 600, "temperature": 0, "ignore_eos": True, "keep": 8}
    sizes = {"slots": slots, "ctx": 256 * slots, "context_shift": True}
    with engine(target, None, None, **sizes) as llm:
        expected = llm.generate(prompts, **sampling, **MARGINS)
        assert llm.stats()["shifts"] >= 3 * slots
    with engine(target, draft, kind, **sizes) as llm:
        results = llm.generate(prompts, **sampling)
        for plain, result in zip(expected, results, strict=True):
            assert_same(plain, result.tokens)
        assert {result.finish_reason for result in results} == {"length"}
        assert {len(result.tokens) for result in results} == {600}
        llm.check_integrity()
        # What was shifted is not what a fresh computation gives: beyond the kept tokens it is not shared.
        again = llm.generate(prompts[0], **GREEDY)
        assert again.usage.cached_tokens <= 8
        assert again.tokens == fresh(target, tuple(prompts[0]))


def test_context_shift_has_to_be_possible() -> None:
    with pytest.raises(pyllm.PyllmError, match="cannot be shifted"):
        engine("qwen35", None, None, context_shift=True)


def test_erase_and_the_list_of_slots() -> None:
    with engine("llama", None, None, slots=2) as llm:
        slot = llm.generate(prompt_tokens(0, 40), **GREEDY).slot
        assert {(info.seq, info.state, info.n_tokens) for info in llm.slots()} == {(slot, "cached", 51), (1 - slot, "free", 0)}
        llm.erase(slot)
        assert {info.state for info in llm.slots()} == {"free"}
        llm.check_integrity()
