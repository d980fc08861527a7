"""The engine's faces, and everything that can be asked of it wrongly."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import pyllm
from pyllm import models
from pyllm.errors import (
    ClosedError,
    ConfigError,
    IncompatibleError,
    InvalidArgumentError,
    LimitError,
    ModelFormatError,
    NotFoundError,
    PyllmError,
    UnsupportedError,
)
from tests.conftest import prompt_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def llm(llama_path: Path) -> Iterator[pyllm.LLM]:
    with pyllm.LLM(llama_path, slots=2, ctx=1024) as engine:
        yield engine


def test_generate_text(llm: pyllm.LLM) -> None:
    result = llm.generate("Hello there", max_tokens=16, temperature=0)
    assert result.finish_reason == "length"
    assert len(result.tokens) == 16
    assert result.text == llm.detokenize(result.tokens)
    assert result.usage.prompt_tokens == len(llm.tokenize("Hello there"))
    assert result.usage.completion_tokens == 16


def test_more_requests_than_slots(llm: pyllm.LLM) -> None:
    results = llm.generate([prompt_tokens(salt, 10) for salt in range(7)], max_tokens=8, temperature=0)
    assert [len(result.tokens) for result in results] == [8] * 7
    assert {result.slot for result in results} == {0, 1}
    assert llm.stats()["slots"] == {"free": 0, "held": 0, "cached": 2, "total": 2}
    llm.check_integrity()


def test_stream_is_generate_in_pieces(llm: pyllm.LLM) -> None:
    whole = llm.generate("Hello", max_tokens=20, temperature=0, cache_prompt=False)
    chunks = list(llm.stream("Hello", max_tokens=20, temperature=0, cache_prompt=False))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert tuple(itertools.chain.from_iterable(chunk.tokens for chunk in chunks)) == whole.tokens
    assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]


def test_stop_strings(llm: pyllm.LLM) -> None:
    text = llm.generate("Hello", max_tokens=40, temperature=0).text
    word = text[10:13]
    cut = text.index(word)
    result = llm.generate("Hello", max_tokens=40, temperature=0, stop=word)
    assert (result.text, result.finish_reason) == (text[:cut], "stop")
    assert "".join(chunk.text for chunk in llm.stream("Hello", max_tokens=40, temperature=0, stop=[word, "never"])) == text[:cut]


def test_seeds(llm: pyllm.LLM) -> None:
    draws = [llm.generate("Hello", max_tokens=30, temperature=1.5, top_k=0, min_p=0, seed=seed).tokens for seed in (1, 1, 2)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


def test_seeds_hold_with_speculation(llama_path: Path) -> None:
    """At a temperature verification is exact match: the same draws in the same order as without drafts."""
    sampling = {"max_tokens": 30, "temperature": 1.0, "top_k": 40, "top_p": 0.9, "seed": 5}
    with pyllm.LLM(llama_path, ctx=512) as plain, pyllm.LLM(llama_path, draft=models.make("llama-dflash"), spec="dflash", ctx=512) as drafting:
        for salt in range(5):
            assert drafting.generate(prompt_tokens(salt, 9), **sampling).tokens == plain.generate(prompt_tokens(salt, 9), **sampling).tokens


def test_chat(llm: pyllm.LLM) -> None:
    result = llm.chat([{"role": "user", "content": "Hi"}], max_tokens=8, temperature=0)
    assert len(result.tokens) == 8
    answer = result.to_openai(chat=True)
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": result.text}
    assert answer["usage"]["total_tokens"] == result.usage.prompt_tokens + 8


def test_messages_are_a_prompt() -> None:
    """With the checkpoint before the last turn, in every face."""
    messages = [{"role": role, "content": text * 20} for role, text in (("user", "Hi "), ("assistant", "Yes "), ("user", "No "))]
    with pyllm.LLM(models.make("gemma4"), slots=2, ctx=4096, threads=1) as llm:

        def marks(slot: int) -> tuple[int, ...]:
            found = llm.slots()[slot].marks
            llm.erase(slot)
            return found

        params: dict[str, Any] = {"max_tokens": 6, "temperature": 0}
        result = llm.chat(messages, **params)
        expected = result.tokens, marks(result.slot)
        assert expected[1]
        result = llm.submit(messages, **params).result()
        assert (result.tokens, marks(result.slot)) == expected
        result, other = llm.generate([messages, messages[:1]], **params)
        assert (result.tokens, marks(result.slot)) == expected
        assert other.usage.prompt_tokens < result.usage.prompt_tokens
        assert [token for chunk in llm.stream(messages, **params) for token in chunk.tokens] == list(expected[0])
        # Turns that the caller names are the caller's.
        llm.erase(0)
        assert marks(llm.chat(messages, turns=(64,), slot=0, cache_prompt=False, **params).slot) == (64,)
        mine = pyllm.SamplingParams(turns=(64,), slot=0, cache_prompt=False, **params)
        assert marks(llm.submit(messages, mine).result().slot) == marks(llm.chat(messages, mine).slot) == (64,)


@pytest.mark.parametrize(("messages", "match"), [([], "no messages"), ([{"content": "x"}], "message 0"), (["hi"], "message 0")])
def test_malformed_messages(llm: pyllm.LLM, messages: list[object], match: str) -> None:
    with pytest.raises(InvalidArgumentError, match=match):
        llm.chat(messages)


def test_openai_shape(llama_path: Path) -> None:
    family = {"family": "successor"}
    spec = {"types": "dflash", "depth_control": False}
    with pyllm.LLM(models.make("llama", **family), draft=models.make("llama-dflash", **family), spec=spec, ctx=512) as llm:
        answer = llm.generate("Hello", max_tokens=8, temperature=0).to_openai()
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["timings"]["draft_n"] >= answer["timings"]["draft_n_accepted"] > 0


def test_numbers_of_numpy_are_tokens(llm: pyllm.LLM) -> None:
    prompt = prompt_tokens(0, 20)
    expected = llm.generate(prompt, max_tokens=4, temperature=0).tokens
    for tokens in (list(np.array(prompt)), np.array(prompt)):
        assert llm.generate(tokens, max_tokens=4, temperature=0).tokens == llm.submit(tokens, max_tokens=4, temperature=0).result().tokens == expected
    for wrong in (np.int64(512), np.float32(3), 3.0, None):
        with pytest.raises(InvalidArgumentError, match="at place 1 is not in"):
            llm.generate([1, wrong], max_tokens=4)


def test_a_prefix_is_not_computed_again(llm: pyllm.LLM) -> None:
    prompt = prompt_tokens(0, 100)
    assert llm.generate(prompt, max_tokens=4, temperature=0).usage.cached_tokens == 0
    again = llm.generate(prompt, max_tokens=4, temperature=0)
    assert again.usage.cached_tokens == 99
    assert llm.generate(prompt[:50], max_tokens=4, temperature=0).usage.cached_tokens == 49
    assert llm.generate(prompt, max_tokens=4, temperature=0, cache_prompt=False).usage.cached_tokens == 0


def test_speculation_can_be_left_out_of_one_request(llama_path: Path) -> None:
    family = {"family": "successor"}
    spec = {"types": "dflash", "depth_control": False}
    with pyllm.LLM(models.make("llama", **family), draft=models.make("llama-dflash", **family), spec=spec, slots=2, ctx=1024) as llm:
        requests = [llm.submit("Hello", max_tokens=16, temperature=0, speculate=speculate) for speculate in (True, False)]
        with_drafts, without = [request.result() for request in requests]
    assert with_drafts.tokens == without.tokens
    assert (with_drafts.draft.accepted > 0, without.draft.drafted) == (True, 0)


def test_the_context_ends_a_generation(llama_path: Path) -> None:
    with pyllm.LLM(llama_path, draft=models.make("llama-dflash"), spec="dflash", ctx=256) as llm:
        result = llm.generate(prompt_tokens(0, 200), max_tokens=1000, temperature=0)
        assert result.finish_reason == "length"
        assert 256 - 200 - 1 <= len(result.tokens) <= 256 - 200 + 1
        llm.check_integrity()


def test_a_full_shared_cache_costs_one_request(llama_path: Path) -> None:
    prompts = [prompt_tokens(salt, 60) for salt in range(4)]
    with pyllm.LLM(llama_path, draft=models.make("llama-dflash"), spec="dflash", slots=4, ctx=512, unified=True, batch=64, ubatch=64) as llm:
        requests = [llm.submit(prompt, max_tokens=120, temperature=0) for prompt in prompts]
        outcomes = []
        for request in requests:
            try:
                outcomes.append(request.result().tokens)
            except pyllm.errors.ContextFullError as failure:  # noqa: PERF203 - each outcome counts
                outcomes.append(str(failure))
        llm.check_integrity()
        refused = [outcome for outcome in outcomes if isinstance(outcome, str)]
        assert 1 <= len(refused) <= 2
        assert "KV cache of 512 cells" in refused[0]
        for prompt, outcome in zip(prompts, outcomes, strict=True):
            if not isinstance(outcome, str):
                assert llm.generate(prompt, max_tokens=120, temperature=0, cache_prompt=False).tokens == outcome


def test_cancel(llm: pyllm.LLM) -> None:
    neighbour = llm.submit(prompt_tokens(1, 10), max_tokens=200, temperature=0)
    request = llm.submit(prompt_tokens(2, 10), max_tokens=400, temperature=0)
    next(iter(request))
    request.cancel()
    result = request.result(timeout=30)
    assert result.finish_reason == "cancelled"
    assert 0 < len(result.tokens) < 400
    assert len(neighbour.result(timeout=60).tokens) == 200
    llm.check_integrity()


def test_leaving_a_stream_early_frees_the_slot(llm: pyllm.LLM) -> None:
    for chunk in llm.stream("Hello", max_tokens=400, temperature=0):
        if chunk.tokens:
            break
    deadline = time.monotonic() + 10
    while llm.stats()["running"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert llm.stats()["slots"]["held"] == 0
    llm.check_integrity()


def test_result_can_time_out(llm: pyllm.LLM) -> None:
    request = llm.submit("Hello", max_tokens=400, temperature=0)
    with pytest.raises(TimeoutError):
        request.result(timeout=0.0)
    request.cancel()
    request.result(timeout=30)


def test_threads_share_an_engine(llm: pyllm.LLM) -> None:
    expected = [llm.generate(prompt_tokens(salt, 12), max_tokens=16, temperature=0, cache_prompt=False).tokens for salt in range(6)]
    got: dict[int, tuple[int, ...]] = {}
    threads = [
        threading.Thread(target=lambda salt=salt: got.update({salt: llm.generate(prompt_tokens(salt, 12), max_tokens=16, temperature=0).tokens}))
        for salt in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[salt] for salt in range(6)] == expected


def test_two_requests_on_a_closed_engine(llama_path: Path) -> None:
    llm = pyllm.LLM(llama_path, ctx=256)
    running = llm.submit("Hello", max_tokens=200)
    llm.close()
    llm.close()
    for _ in range(2):
        with pytest.raises(ClosedError, match="this engine is closed"):
            llm.generate("Hello")
    with pytest.raises(ClosedError):
        llm.stats()
    try:
        running.result(timeout=10)
    except ClosedError as failure:
        assert "while the request ran" in str(failure)  # noqa: PT017 - it may also have finished in time


INTERRUPTED = """
import os, signal, sys, threading, time
import pyllm
from pyllm import models
with pyllm.LLM(models.make("llama"), ctx=4096) as llm:
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        llm.generate("Hello", max_tokens=4000, temperature=0, ignore_eos=True)
        sys.exit("not interrupted")
    except KeyboardInterrupt:
        pass
    while llm.stats()["running"]:
        time.sleep(0.01)
    llm.check_integrity()
    assert len(llm.generate("Hello", max_tokens=8).tokens) == 8
print("alive")
"""


def test_ctrl_c_in_the_middle_of_a_generation() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"slots": 0}, ConfigError, "`slots` is 0"),
        ({"slots": -3}, ConfigError, "`slots` is -3"),
        ({"ctx": -1}, ConfigError, "`ctx` is -1"),
        ({"batch": 0}, ConfigError, "`batch` is 0"),
        ({"ubatch": 0}, ConfigError, "`ubatch` is 0"),
        ({"kv_types": "q7_0"}, ConfigError, "kv_types"),
        ({"slot": 3}, ConfigError, "setting `slot` is not known"),
        ({"spec": "mpt"}, ConfigError, "drafter type `mpt` is not known"),
        ({"spec": "dflash"}, ConfigError, "needs a draft model"),
        ({"spec": "mtp"}, UnsupportedError, "no prediction heads"),
        ({"slots": 4, "batch": 16, "ctx": 1024, "spec": {"types": "ngram", "n_max": 8}}, ConfigError, "\\(1 \\+ 8 draft tokens\\) = 36"),
        ({"slots": 8, "batch": 4}, ConfigError, "a batch of 4 tokens cannot hold one token for each of 8 slots"),
        ({"spec": {"method": "ngram", "num_speculative_tokens": 0}}, ConfigError, "n_max"),
    ],
)
def test_settings_that_cannot_work(llama_path: Path, settings: dict[str, object], error: type[PyllmError], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        pyllm.LLM(llama_path, **({"ctx": 256} | settings))
    assert caught.value.hint


def test_files_that_are_no_models(tmp_path: Path, llama_path: Path) -> None:
    with pytest.raises(NotFoundError):
        pyllm.LLM(tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(ModelFormatError):
        pyllm.LLM(tmp_path / "text.gguf")
    with pytest.raises(NotFoundError):
        pyllm.LLM(llama_path, draft=tmp_path / "none.gguf", spec="dflash")
    with pytest.raises(IncompatibleError, match="vocabulary"):
        pyllm.LLM(models.make("llama-other-vocab"), draft=models.make("llama-dflash"), spec="dflash", ctx=256)


@pytest.mark.parametrize(
    ("sampling", "match"),
    [
        ({"max_tokens": 0}, "`max_tokens` is 0"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"stop": ""}, "a stop string is empty"),
        ({"temprature": 1}, "setting `temprature` is not known"),
    ],
)
def test_sampling_that_cannot_work(llm: pyllm.LLM, sampling: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        llm.generate("Hello", **sampling)
    assert len(llm.generate("Hello", max_tokens=2).tokens) == 2


def test_prompts_that_cannot_work(llm: pyllm.LLM) -> None:
    for prompt, error, match in (
        ([], InvalidArgumentError, "no tokens"),
        ([1, 512], InvalidArgumentError, r"prompt token 512 at place 1 is not in \[0, 512\)"),
        ([1, -1], InvalidArgumentError, "prompt token -1"),
        ([270] * 512, LimitError, "the prompt has 512 tokens, a slot holds 512"),
    ):
        with pytest.raises(error, match=match):
            llm.submit(prompt)
    with pytest.raises(LimitError) as caught:
        llm.generate([270] * 600)
    assert "ctx 1202 or more" in caught.value.hint
    with pytest.raises(LimitError):
        llm.generate([[270] * 5, [270] * 600], max_tokens=300)
    assert len(llm.generate([270] * 500, max_tokens=5, temperature=0).tokens) == 5
    llm.check_integrity()


def test_the_way_out_of_a_refusal_works(llama_path: Path) -> None:
    spec = {"types": "ngram", "n_max": 8}
    with pytest.raises(ConfigError) as caught:
        pyllm.LLM(llama_path, slots=4, batch=16, ubatch=16, ctx=1024, spec=spec)
    assert caught.value.hint == "use batch 36 or more, draft depth 3 or less, or 1 slot"
    for change in ({"batch": 36}, {"spec": {"types": "ngram", "n_max": 3}}, {"slots": 1}):
        pyllm.LLM(llama_path, **({"slots": 4, "batch": 16, "ubatch": 16, "ctx": 1024, "spec": spec} | change)).close()


def test_importing_pyllm_loads_nothing_native() -> None:
    code = "import sys, pyllm; sys.exit('pyllm._ffi' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False, env=dict(os.environ)).returncode == 0
