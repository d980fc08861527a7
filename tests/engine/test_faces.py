"""The ways to ask: async, cancellation, timeouts, priorities, grammars, log-probabilities, hidden states, per-request speculation."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import pyllm
from pyllm import models
from pyllm._ffi import Batch, Context, Model
from pyllm.errors import ConfigError, InvalidArgumentError, LimitError, PyllmError, UnsupportedError
from tests.conftest import prompt_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

GREEDY: dict[str, Any] = {"max_tokens": 24, "temperature": 0}
FAMILY = {"family": "successor"}


@pytest.fixture(scope="module")
def llm() -> Iterator[pyllm.LLM]:
    with pyllm.LLM(
        models.make("llama"), draft=models.make("llama-dflash"), spec={"types": "dflash", "depth_control": False}, slots=2, ctx=2048, threads=1
    ) as engine:
        yield engine


# async


def test_await_is_result(llm: pyllm.LLM) -> None:
    prompts = [prompt_tokens(salt, 20) for salt in range(5)]

    async def ask() -> list[pyllm.Completion]:
        return await asyncio.gather(*[llm.submit(prompt, **GREEDY) for prompt in prompts])

    assert [result.tokens for result in asyncio.run(ask())] == [result.tokens for result in llm.generate(prompts, **GREEDY)]


def test_async_chunks_leave_the_loop_free(llm: pyllm.LLM) -> None:
    async def ask() -> tuple[list[int], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        tokens = [token async for chunk in llm.submit(prompt_tokens(0, 20), max_tokens=200, temperature=0) for token in chunk.tokens]
        ticking.cancel()
        return tokens, ticks

    tokens, ticks = asyncio.run(ask())
    assert tuple(tokens) == llm.generate(prompt_tokens(0, 20), max_tokens=200, temperature=0).tokens
    assert ticks > 10


def test_cancelling_a_task_cancels_its_request(llm: pyllm.LLM) -> None:
    request = llm.submit(prompt_tokens(0, 20), max_tokens=900, temperature=0, ignore_eos=True)

    async def ask() -> None:
        await asyncio.wait_for(request, 0.05)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(ask())
    assert request.result().finish_reason == "cancelled"
    assert llm.generate(prompt_tokens(0, 20), **GREEDY).tokens
    llm.check_integrity()


def test_an_error_is_raised_where_it_is_awaited(llm: pyllm.LLM) -> None:
    async def ask() -> None:
        await llm.submit(prompt_tokens(0, 20), slot=1, **GREEDY)
        request = llm.submit(prompt_tokens(0, 20), max_tokens=900, temperature=0, ignore_eos=True)
        request.fail(LimitError("made up"))
        await request

    with pytest.raises(LimitError, match="made up"):
        asyncio.run(ask())


# timeouts and priorities


def test_a_timeout_ends_with_what_there_is(llm: pyllm.LLM) -> None:
    begin = time.monotonic()
    result = llm.generate(prompt_tokens(0, 20), max_tokens=100_000, temperature=0, ignore_eos=True, timeout=0.05, cache_prompt=False)
    assert result.finish_reason in {"timeout", "length"}
    assert result.finish_reason == "timeout" or len(result.tokens) > 900
    assert time.monotonic() - begin < 30


def test_a_request_that_waits_too_long(llm: pyllm.LLM) -> None:
    gate = threading.Event()
    holder = threading.Thread(target=lambda: llm._call(lambda _: gate.wait()))
    holder.start()
    request = llm.submit(prompt_tokens(0, 20), timeout=0.01, **GREEDY)
    time.sleep(0.05)
    gate.set()
    holder.join()
    assert (request.result().finish_reason, request.result().tokens) == ("timeout", ())
    llm.check_integrity()


def test_priority_goes_first() -> None:
    with pyllm.LLM(models.make("llama"), ctx=1024) as one:
        gate = threading.Event()
        holder = threading.Thread(target=lambda: one._call(lambda _: gate.wait()))
        holder.start()
        order: list[int] = []
        requests = {priority: one.submit(prompt_tokens(priority, 20), priority=priority, **GREEDY) for priority in (0, 2, 1, -1)}
        watchers = [threading.Thread(target=lambda p=priority, r=request: (r.result(), order.append(p))) for priority, request in requests.items()]
        for watcher in watchers:
            watcher.start()
        gate.set()
        for thread in (holder, *watchers):
            thread.join()
        started = sorted(requests, key=lambda priority: requests[priority].started)
        assert started == [2, 1, 0, -1]
        assert sorted(order) == [-1, 0, 1, 2]


# speculation of one request


def test_depth_of_one_request() -> None:
    """The first wrong draft comes after more than 12 tokens: a depth k accepts k tokens per step."""
    spec = {"types": "dflash", "depth_control": False}
    with pyllm.LLM(models.make("llama", **FAMILY), draft=models.make("llama-dflash", **FAMILY), spec=spec, slots=4, ctx=2048) as llm:
        requests = [llm.submit("Hello", max_tokens=25, temperature=0, draft_depth=depth) for depth in (0, 1, 2, 5)]
        results = [request.result() for request in requests]
        assert len({result.tokens for result in results}) == 1
        assert results[0].draft.drafted == 0
        assert [result.draft.steps for result in results] == [0, 12, 8, 4]
        assert all(result.draft.drafted == result.draft.accepted for result in results)
        with pytest.raises(LimitError, match="draft_depth 99 is over 7"):
            llm.submit("Hello", draft_depth=99)
        with pytest.raises(ConfigError, match="draft_depth"):
            llm.submit("Hello", draft_depth=-1)


def test_p_min_of_one_request(llm: pyllm.LLM) -> None:
    """How sure a random drafter is differs from token to token: with a limit it drafts less, and without it as ever."""
    prompt = prompt_tokens(3, 30)
    usual = llm.generate(prompt, cache_prompt=False, max_tokens=60, temperature=0)
    limits = (None, 0.0, 0.5, 0.9, 1.0)
    results = [llm.generate(prompt, cache_prompt=False, max_tokens=60, temperature=0, draft_p_min=limit) for limit in limits]
    assert {result.tokens for result in results} == {usual.tokens}
    drafted = [result.draft.drafted for result in results]
    assert drafted[:2] == [usual.draft.drafted] * 2
    assert drafted[1] > drafted[2] >= drafted[3] >= drafted[4]
    together = [llm.submit(prompt, cache_prompt=False, max_tokens=60, temperature=0, draft_p_min=limit) for limit in (1.0, None)]
    assert [request.result().draft.drafted for request in together] == [drafted[4], drafted[0]]
    with pytest.raises(ConfigError, match="draft_p_min"):
        llm.submit(prompt, draft_p_min=1.5)


# grammars


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_json_schema_is_met_with_and_without_speculation(llm: pyllm.LLM, temperature: float) -> None:
    properties = {"name": {"type": "string", "maxLength": 6}, "n": {"type": "integer", "minimum": 0, "maximum": 99}}
    schema = {"type": "object", "properties": properties, "required": ["name", "n"]}
    sampling = {"max_tokens": 120, "temperature": temperature, "seed": 3, "json_schema": schema, "top_k": 0}
    drafted = llm.generate("Hello", **sampling)
    plain = llm.generate("Hello", speculate=False, **sampling)
    assert drafted.tokens == plain.tokens
    assert drafted.finish_reason == "stop"
    value = json.loads(drafted.text)
    assert set(value) == {"name", "n"}
    assert isinstance(value["n"], int)


def test_a_grammar(llm: pyllm.LLM) -> None:
    result = llm.generate("Hello", max_tokens=20, temperature=1.0, grammar='root ::= ("yes" | "no") " " [0-9] [0-9]')
    assert result.finish_reason == "stop"
    assert result.text[:2] in {"ye", "no"}
    assert result.text[-2:].isdigit()


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"grammar": 'root ::= "a'}, InvalidArgumentError, None),
        ({"grammar": 'start ::= "a"'}, InvalidArgumentError, "root"),
        ({"json_schema": "{"}, InvalidArgumentError, None),
        ({"json_schema": {"type": "no such type"}}, InvalidArgumentError, None),
        ({"json_schema": {"type": "object", "required": ["a"], "properties": {"a": False}}}, InvalidArgumentError, None),
        ({"json_schema": {"enum": []}}, InvalidArgumentError, None),
        ({"grammar": "root ::= [0-9]", "json_schema": {"type": "integer"}}, ConfigError, "both"),
        ({"logprobs": 1000}, ConfigError, "logprobs"),
        ({"timeout": 0}, ConfigError, "timeout"),
        ({"slot": 2}, LimitError, "slot 2"),
        ({"logit_bias": {10**6: 1.0}}, PyllmError, None),
        ({"temperature": float("nan")}, PyllmError, None),
    ],
)
def test_impossible_requests_are_refused(llm: pyllm.LLM, wrong: dict[str, Any], error: type[PyllmError], says: str | None) -> None:
    with pytest.raises(error, match=says) as caught:
        llm.generate("Hello", **({"max_tokens": 4} | wrong))
    assert caught.value.hint
    assert llm.generate("Hello", **GREEDY).tokens


@pytest.mark.parametrize(
    ("wrong", "value", "way_out"),
    [
        ({"spec": "mtp"}, "`spec` is 'mtp'", "drafts with `draft-dflash`"),
        ({"drafter": "no-such"}, "`drafter` is 'no-such'", "`draft_depth`"),
        ({"speculative_config": {"method": "mtp"}}, "'method': 'mtp'", "`speculate`"),
        ({"draft_depth": 99}, "draft_depth 99 is over 7", "raise n_max"),
        ({"draft_p_min": 1.5}, "`draft_p_min` is 1.5", "SamplingParams"),
        ({"json_schema": {"enum": []}}, "enum", ""),
    ],
)
def test_a_refusal_leaves_those_in_flight_alone(llm: pyllm.LLM, wrong: dict[str, Any], value: str, way_out: str) -> None:
    """A drafter that the engine does not have, among others: drafters are the engine's, a request says how much it wants of them."""
    prompts = [prompt_tokens(salt, 20) for salt in (3, 4)]
    long: dict[str, Any] = GREEDY | {"max_tokens": 80, "ignore_eos": True}
    expected = [llm.generate(prompt, **long).tokens for prompt in prompts]
    running = [llm.submit(prompt, **long) for prompt in prompts]
    pieces = [iter(request) for request in running]
    for chunks in pieces:
        next(chunks)
    for _ in range(3):
        with pytest.raises(PyllmError) as caught:
            llm.submit("Hello", **(GREEDY | wrong))
        assert value in caught.value.message
        assert way_out in caught.value.hint
        assert caught.value.hint
    assert [request.result().tokens for request in running] == expected
    llm.check_integrity()


def test_an_engine_without_a_drafter_says_so() -> None:
    with pyllm.LLM(models.make("llama"), ctx=256, threads=1) as plain:
        with pytest.raises(ConfigError, match="cannot choose its drafter") as caught:
            plain.submit("Hello", spec="mtp")
        assert "has none" in caught.value.hint
        assert plain.generate("Hello", **GREEDY).tokens


# log-probabilities


def test_logprobs_are_those_of_the_model(llm: pyllm.LLM) -> None:
    prompt = prompt_tokens(2, 30)
    result = llm.generate(prompt, logprobs=5, **GREEDY)
    assert [row.token for row in result.logprobs] == list(result.tokens)
    with Model(models.make("llama")) as model, Context(model, n_ctx=512, n_batch=512) as context, Batch(context) as batch:
        tokens = [*prompt, *result.tokens]
        batch.add(0, 0, tokens, "all")
        context.decode(batch)
        for place, row in enumerate(result.logprobs):
            logits = context.logits(len(prompt) - 1 + place).astype(np.float64)
            logprobs = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
            assert row.logprob == pytest.approx(logprobs[row.token], abs=1e-2)
            assert [token for token, _ in row.top] == list(np.argsort(-logprobs)[:5]) or np.diff(np.sort(-logprobs)[:6]).min() < 1e-2
            assert [value for _, value in row.top] == pytest.approx(sorted(logprobs)[:-6:-1], abs=1e-2)
    chunks = list(llm.stream(prompt, logprobs=0, **GREEDY))
    assert [row.token for chunk in chunks for row in chunk.logprobs] == list(result.tokens)
    assert not any(row.top for chunk in chunks for row in chunk.logprobs)


# hidden states


def test_hidden_states_are_the_taps(llm: pyllm.LLM) -> None:
    tokens = prompt_tokens(4, 50)
    states = llm.hidden_states(tokens, layers=[0, 1])
    assert states.tokens == tuple(tokens)
    with Model(models.make("llama")) as model, Context(model, n_ctx=512) as context, Batch(context) as batch:
        context.enable_layer_input(1)
        batch.add(0, 0, tokens, "last")
        context.decode(batch)
        assert np.allclose(states.layers[1], context.layer_input(1), atol=1e-3)
    assert states.layers[0].shape == (50, llm.model.info.n_embd)
    # The drafter's taps are as they were: it drafts what it drafted before.
    before = llm.generate(tokens, cache_prompt=False, **GREEDY)
    llm.hidden_states(tokens, layers=[0, 1, 2])
    assert llm.generate(tokens, cache_prompt=False, **GREEDY).draft == before.draft
    with pytest.raises(InvalidArgumentError, match="neither"):
        llm.hidden_states(tokens)
    with pytest.raises(PyllmError):
        llm.hidden_states(tokens, layers=[99])
    llm.check_integrity()


def test_rows_before_the_head() -> None:
    with pyllm.LLM(models.make("qwen35"), ctx=512) as llm:
        states = llm.hidden_states(prompt_tokens(0, 20), nextn=True)
        assert states.nextn is not None
        assert states.nextn.shape == (20, llm.model.info.n_embd_out)
        assert np.isfinite(states.nextn).all()
        assert llm.generate("Hello", **GREEDY).tokens


# a failure stays where it is


def test_one_failing_request_leaves_the_others_alone(llm: pyllm.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [prompt_tokens(salt, 30) for salt in range(2)]
    expected = [llm.generate(prompt, cache_prompt=False, **GREEDY).tokens for prompt in prompts]
    verify = pyllm.engine.admission.Sampler.verify
    calls = 0

    def failing(self: Any, context: Context, index: int, *rest: Any) -> list[int]:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise UnsupportedError("made up")
        return verify(self, context, index, *rest)

    monkeypatch.setattr(pyllm.engine.admission.Sampler, "verify", failing)
    requests = [llm.submit(prompt, cache_prompt=False, **GREEDY) for prompt in prompts]

    def outcome(request: pyllm.Request) -> tuple[int, ...] | None:
        try:
            return request.result().tokens
        except UnsupportedError:
            return None

    outcomes = [outcome(request) for request in requests]
    assert outcomes.count(None) == 1
    assert all(got is None or got == wanted for got, wanted in zip(outcomes, expected, strict=True))
    llm.check_integrity()


@pytest.mark.parametrize("target", ["llama", "qwen35"])
def test_a_failed_decode_is_tried_alone(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third decode of two slots fails: both go on, and say what they say alone."""
    prompts = [prompt_tokens(salt, 30) for salt in range(2)]
    with pyllm.LLM(models.make(target), slots=2, ctx=1024) as llm:
        expected = [llm.generate(prompt, cache_prompt=False, **GREEDY).tokens for prompt in prompts]
        decode = Context.decode
        calls = 0

        def failing(self: Context, batch: Batch) -> None:
            nonlocal calls
            calls += 1
            decode(self, batch)
            if calls == 3:
                raise pyllm.errors.DecodeError("made up")

        monkeypatch.setattr(Context, "decode", failing)
        results = llm.generate(prompts, cache_prompt=False, **GREEDY)
        assert [result.tokens for result in results] == expected
        llm.check_integrity()


def test_busy_without_a_token_goes_on_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drafter after whose drafts nothing moves: after a few steps the request drafts no more, and ends as it would without."""
    with pyllm.LLM(models.make("llama"), draft=models.make("llama-dflash"), spec={"types": "dflash", "depth_control": False}, ctx=1024) as llm:
        expected = llm.generate("Hello", speculate=False, **GREEDY).tokens
        decode = pyllm.engine.scheduler.Scheduler._verify

        def stuck(self: Any, blocks: Any) -> None:
            if any(block.draft for block in blocks):
                self._undo(blocks, InvalidArgumentError("made up"))
            else:
                decode(self, blocks)

        monkeypatch.setattr(pyllm.engine.scheduler.Scheduler, "_verify", stuck)
        assert llm.generate("Hello", **GREEDY).tokens == expected
