"""Drafters that fail in the middle of requests: the text is that without them, no request ends, and later ones draft as ever."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

import pyllm
from pyllm import models
from pyllm._ffi import Drafter
from pyllm.errors import DecodeError
from tests.conftest import prompt_tokens

if TYPE_CHECKING:
    from collections.abc import Callable

FAMILY: dict[str, Any] = {"family": "successor", "error_rate": 0.25}
GREEDY: dict[str, Any] = {"max_tokens": 60, "temperature": 0, "ignore_eos": True}
KINDS = [
    ("llama", "llama-dflash", "dflash"),
    ("llama", "llama-dflash2", "dflash"),
    ("llama", "llama-draft", "draft"),
    ("gemma4", "gemma4-assistant", "mtp"),
    ("qwen35", None, "mtp"),
    ("step35", None, "mtp"),
]
PROMPTS = [prompt_tokens(salt, 20 + 9 * salt) for salt in range(3)]


def engine(target: str, draft: str | None, kind: str) -> pyllm.LLM:
    spec = {"types": kind, "n_max": 3, "depth_control": False}
    return pyllm.LLM(models.make(target, **FAMILY), draft=models.make(draft, **FAMILY) if draft else None, spec=spec, slots=3, ctx=3 * 512, threads=1)


def all_right(results: list[pyllm.Completion]) -> bool:
    successor = models.successor(0)
    return all(len(result.tokens) == 60 and all(successor[left] == right for left, right in itertools.pairwise(result.tokens)) for result in results)


def ask(llm: pyllm.LLM, meanwhile: Callable[[], None] | None = None) -> list[pyllm.Completion]:
    """Three requests at once; ``meanwhile`` happens when each has a few tokens."""
    requests = [llm.submit(prompt, cache_prompt=False, **GREEDY) for prompt in PROMPTS]
    pieces = [iter(request) for request in requests]
    if meanwhile is not None:
        for chunks in pieces:
            next(chunks)
        meanwhile()
    results = [request.result() for request in requests]
    llm.check_integrity()
    return results


@pytest.mark.parametrize(("target", "draft", "kind"), KINDS)
def test_decodes_of_the_drafter_that_fail(target: str, draft: str | None, kind: str) -> None:
    """One decode is tried again slot by slot; more of them cost a slot its drafts, in the end until its request ends."""
    with engine(target, draft, kind) as llm:
        usual = ask(llm)
        for n in (1, 2, 5, 40):
            failures = llm.stats()["draft"]["failures"]
            results = ask(llm, lambda n=n: llm._call(lambda scheduler: scheduler.core.drafter.fail(n)))
            assert all_right(results)
            assert n < 5 or llm.stats()["draft"]["failures"] > failures
            llm._call(lambda scheduler: scheduler.core.drafter.fail(0))
        again = ask(llm)
        assert [(result.tokens, result.draft) for result in again] == [(result.tokens, result.draft) for result in usual]


@pytest.mark.parametrize("method", ["draft", "process"])
@pytest.mark.parametrize("n", [1, 2, 50])
@pytest.mark.parametrize(("target", "draft", "kind"), [KINDS[0], KINDS[3], KINDS[4], ("llama", None, "ngram")])
def test_calls_of_the_drafter_that_fail(  # noqa: PLR0917 - a row of the table
    target: str, draft: str | None, kind: str, n: int, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine(target, draft, kind) as llm:
        usual = ask(llm)
        sound, left = getattr(Drafter, method), n

        def failing(self: Drafter, *rest: Any) -> Any:
            nonlocal left
            if left > 0:
                left -= 1
                raise DecodeError("made up")
            return sound(self, *rest)

        def begin() -> None:
            llm._call(lambda _: monkeypatch.setattr(Drafter, method, failing))

        results = ask(llm, begin)
        assert all_right(results)
        assert left < n
        assert llm.stats()["draft"]["failures"] >= n - left
        monkeypatch.setattr(Drafter, method, sound)
        again = ask(llm)
        assert [(result.tokens, result.draft) for result in again] == [(result.tokens, result.draft) for result in usual]


def test_taps_that_were_switched_off() -> None:
    """Somebody reads the target by hand and leaves its taps off."""
    with engine("llama", "llama-dflash", "dflash") as llm:
        results = ask(llm, lambda: llm._call(lambda scheduler: scheduler.core.context.enable_layer_input(2, enable=False)))
        assert all_right(results)
        assert llm.stats()["draft"]["failures"] > 0
