"""The oracles over the whole product of targets, drafters, slots, KV types, unified or not, context shift or not, each played as four programs.

``cold``: all prompts at once. ``reuse``: prompts that are cut back and grow again. ``restore``: a slot saved, used by others, restored, continued.
``restart``: saved, the engine closed, another one opened, restored, continued. A sample of them runs with the other tests.
"""

from __future__ import annotations

import functools
import itertools
import random
from typing import TYPE_CHECKING, Any

import pytest

import pyllm
from pyllm import models
from tests.conftest import prompt_tokens
from tests.engine.oracle import MARGINS, TOLERANCES, assert_same

if TYPE_CHECKING:
    from pathlib import Path

LENGTH = 16
BASE = prompt_tokens(0, 150)
CUTS = (150, 60, 120, 150)
PROGRAMS = ("cold", "reuse", "restore", "restart")

#: Target, drafter's type, drafter's recipe.
PAIRS: list[tuple[str, str, str | None]] = [
    ("llama", "dflash", "llama-dflash"),
    ("llama", "draft", "llama-draft"),
    ("llama", "ngram", None),
    ("gemma4", "mtp", "gemma4-assistant"),
    ("gemma4", "dflash", "gemma4-dflash"),
    ("gemma4-31b", "mtp", "gemma4-31b-assistant"),
    ("llama", "dflash", "llama-dflash-swa"),
    ("qwen35", "mtp", None),
    ("qwen35", "dflash", "qwen35-dflash"),
    ("qwen35", "ngram", None),
    ("nemotron-h-moe", "mtp", None),
    ("step35", "mtp", None),
    ("falcon-h1", "draft", "llama-draft"),
    ("falcon-h1", "ngram", None),
    ("qwen35", "mtp,ngram", None),
]
SLOTS = (1, 2, 8)
KV_TYPES = ("f16", "q8_0", "q4_0")

Case = tuple[tuple[str, str, "str | None"], int, str, bool, bool, str]


def shifts(target: str, slots: int, unified: bool) -> bool:
    """Whether the target's memory can be shifted: neither recurrent state nor rotations per layer can, and windowed caches where both have one size."""
    return target == "llama" or (target.startswith("gemma4") and (slots == 1 or not unified))


def cases() -> list[Case]:
    """Every combination there is."""
    product = itertools.product(PAIRS, SLOTS, KV_TYPES, (False, True), (False, True), PROGRAMS)
    return [case for case in product if not case[4] or shifts(case[0][0], case[1], case[3])]


def settings(case: Case) -> dict[str, Any]:
    """The engine of a case. Slots are 256 tokens: with ``shift`` the answers run past their end."""
    _, slots, kv_type, unified, shift, _ = case
    sizes = {"slots": slots, "ctx": 256 * slots, "batch": 64, "ubatch": 32, "checkpoint_every": 48}
    return sizes | {"kv_types": kv_type, "unified": unified, "context_shift": shift}


def drafting(case: Case, family: dict[str, Any]) -> pyllm.LLM:
    (target, kind, draft), *_ = case
    spec = {"types": kind, "n_max": 3, "depth_control": False, "ngram_size_n": 2, "ngram_size_m": 4}
    return pyllm.LLM(models.make(target, **family), draft=models.make(draft, **family) if draft else None, spec=spec, **settings(case))


def prompts(case: Case) -> list[list[int]]:
    """One for each slot and one more."""
    return [prompt_tokens(salt, 20 + 13 * salt) for salt in range(case[1] + 1)]


@functools.cache
def plain(target: str, kv_type: str, shift: bool, prompt: tuple[int, ...], length: int) -> pyllm.Completion:
    """A prompt alone, without speculation, in a fresh slot."""
    llm = _plain_engine(target, kv_type, shift)
    return llm.generate(list(prompt), max_tokens=length, temperature=0, ignore_eos=True, cache_prompt=False, keep=4, **MARGINS)


@functools.cache
def _plain_engine(target: str, kv_type: str, shift: bool) -> pyllm.LLM:
    return pyllm.LLM(models.make(target), ctx=256, kv_types=kv_type, context_shift=shift, cache_bytes=0)


def generate(llm: pyllm.LLM, case: Case, tokens: list[list[int]], length: int) -> list[pyllm.Completion]:
    """Answers to prompts of one moment, each checked against the plain run."""
    results = llm.generate(tokens, max_tokens=length, temperature=0, ignore_eos=True, keep=4)
    for prompt, result in zip(tokens, results, strict=True):
        assert_same(plain(case[0][0], case[2], case[4], tuple(prompt), length), result.tokens, TOLERANCES[case[2]])
    llm.check_integrity()
    return results


def play(case: Case, folder: Path) -> None:
    """One combination, with the random family: its text depends on all of its context."""
    shift, program = case[4], case[5]
    length = 150 if shift else LENGTH
    family: dict[str, Any] = {}
    file = folder / "slot"
    llm = drafting(case, family)
    try:
        if program == "cold":
            generate(llm, case, prompts(case), length)
        elif program == "reuse":
            for cut in CUTS:
                generate(llm, case, [BASE[:cut]], length)
        else:
            first = generate(llm, case, [BASE[:90]], LENGTH)[0]
            llm.save(first.slot, file)
            if program == "restart":
                llm.close()
                llm = drafting(case, family)
            generate(llm, case, prompts(case), length)
            llm.restore(file)
            again = [*BASE[:90], *first.tokens, *prompt_tokens(9, 20)[1:]]
            result = generate(llm, case, [again], length)[0]
            assert result.usage.cached_tokens >= 90
        assert llm.stats()["draft"]["failures"] == 0
    finally:
        llm.close()


def play_successor(case: Case, folder: Path) -> None:
    """The same on a successor model: the counts of drafted and accepted tokens after a restore are those of a conversation that stayed."""
    family = {"family": "successor", "error_rate": 0.25}
    file = folder / "slot"
    turn = prompt_tokens(9, 20)[1:]

    def ask(llm: pyllm.LLM, tokens: list[int]) -> pyllm.Completion:
        result = llm.generate(tokens, max_tokens=LENGTH, temperature=0, ignore_eos=True)
        llm.check_integrity()
        return result

    llm = drafting(case, family)
    try:
        first = ask(llm, BASE[:90])
        again = [*BASE[:90], *first.tokens, *turn]
        llm.save(first.slot, file)
        stayed = ask(llm, again)
        if case[5] == "restart":
            llm.close()
            llm = drafting(case, family)
        llm.generate(prompts(case), max_tokens=LENGTH, temperature=0, ignore_eos=True)
        for info in llm.slots():
            llm.erase(info.seq)
        llm.restore(file)
        result = ask(llm, again)
        assert (result.tokens, result.draft) == (stayed.tokens, stayed.draft)
        # What was evicted may be found in the store, and is longer.
        assert result.usage.cached_tokens >= stayed.usage.cached_tokens
    finally:
        llm.close()


ALL = cases()


def test_there_are_enough() -> None:
    assert len(ALL) >= 1500


@pytest.mark.parametrize("case", random.Random(4).sample(ALL, 24), ids=str)
def test_a_sample(case: Case, tmp_path: Path) -> None:
    play(case, tmp_path)
    if case[5] in {"restore", "restart"}:
        play_successor(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL, ids=str)
def test_everything(case: Case, tmp_path: Path) -> None:
    play(case, tmp_path)
    if case[5] in {"restore", "restart"}:
        play_successor(case, tmp_path)
