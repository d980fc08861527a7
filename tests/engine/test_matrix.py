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
    from collections.abc import Callable
    from pathlib import Path

#: Tokens of a slot, and of an answer without and with a context shift.
CTX = 256
LENGTH = 16
LONGER = 32
BASE = prompt_tokens(0, 240)
CUTS = {False: (150, 60, 120, 150), True: (240, 120, 200, 240)}
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
    ("llama", "dflash", "llama-dflash2"),
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


def alone(case: Case) -> bool:
    """Whether prompts come one after the other: a slot of a unified cache is shifted when it has all cells, and then there are none for others."""
    return case[1] > 1 and case[3] and case[4]


def groups(case: Case, tokens: list[list[int]]) -> list[list[list[int]]]:
    """Prompts that are asked at once."""
    return [[prompt] for prompt in tokens] if alone(case) else [tokens]


def settings(case: Case) -> dict[str, Any]:
    """The engine of a case. With ``shift`` the answers run past the end of their slots."""
    _, slots, kv_type, unified, shift, _ = case
    sizes = {"slots": slots, "ctx": CTX if alone(case) else CTX * slots, "batch": 64, "ubatch": 32, "checkpoint_every": 48, "threads": 1}
    return sizes | {"kv_types": kv_type, "unified": unified, "context_shift": shift}


def drafting(case: Case, family: dict[str, Any]) -> pyllm.LLM:
    (target, kind, draft), *_ = case
    spec = {"types": kind, "n_max": 3, "depth_control": False, "ngram_size_n": 2, "ngram_size_m": 4}
    return pyllm.LLM(models.make(target, **family), draft=models.make(draft, **family) if draft else None, spec=spec, **settings(case))


def prompts(case: Case) -> list[list[int]]:
    """One for each slot and one more. With a context shift the last two fill their slots."""
    lengths = [20 + 13 * salt for salt in range(case[1] + 1)]
    if case[4]:
        lengths[-2:] = [240, 245]
    return [prompt_tokens(salt, length) for salt, length in enumerate(lengths)]


@functools.cache
def plain(target: str, kv_type: str, shift: bool, prompt: tuple[int, ...], length: int) -> pyllm.Completion:
    """A prompt alone, without speculation, in a fresh slot."""
    llm = _plain_engine(target, kv_type, shift)
    return llm.generate(list(prompt), max_tokens=length, temperature=0, ignore_eos=True, cache_prompt=False, keep=4, **MARGINS)


@functools.cache
def _plain_engine(target: str, kv_type: str, shift: bool) -> pyllm.LLM:
    return pyllm.LLM(models.make(target), ctx=CTX, kv_types=kv_type, context_shift=shift, cache_bytes=0, threads=1)


class Answers:
    """What was compared with plain runs: answers, those of them that left theirs at a near tie, and what was drafted and accepted for them."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.count = self.near_ties = self.drafted = self.accepted = 0

    def generate(self, llm: pyllm.LLM, tokens: list[list[int]], length: int) -> list[pyllm.Completion]:
        """Answers to prompts of one moment, each checked against the plain run."""
        (target, *_), _, kv_type, _, shift, _ = self.case
        results = [result for group in groups(self.case, tokens) for result in llm.generate(group, max_tokens=length, temperature=0, ignore_eos=True, keep=4)]
        for prompt, result in zip(tokens, results, strict=True):
            self.near_ties += not assert_same(plain(target, kv_type, shift, tuple(prompt), length), result.tokens, TOLERANCES[kv_type])
            self.count += 1
            self.drafted += result.draft.drafted
            self.accepted += result.draft.accepted
        llm.check_integrity()
        return results


def play(case: Case, folder: Path) -> Answers:
    """One combination, with the random family: its text depends on all of its context."""
    answers = Answers(case)
    shift, program = case[4], case[5]
    length = LONGER if shift else LENGTH
    begin = BASE[: 200 if shift else 90]
    family: dict[str, Any] = {}
    file = folder / "slot"
    llm = drafting(case, family)
    try:
        if program == "cold":
            answers.generate(llm, prompts(case), length)
        elif program == "reuse":
            for cut in CUTS[shift]:
                answers.generate(llm, [BASE[:cut]], length)
        else:
            first = answers.generate(llm, [begin], LENGTH)[0]
            llm.save(first.slot, file)
            if program == "restart":
                llm.close()
                llm = drafting(case, family)
            answers.generate(llm, prompts(case), length)
            llm.restore(file)
            again = [*begin, *first.tokens, *prompt_tokens(9, 20)[1:]]
            result = answers.generate(llm, [again], length)[0]
            assert result.usage.cached_tokens >= len(begin)
        stats = llm.stats()
        assert stats["draft"]["failures"] == 0
        assert (stats["shifts"] > 0) == shift
    finally:
        llm.close()
    return answers


def play_successor(case: Case, folder: Path) -> pyllm.Completion:
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
        for group in groups(case, prompts(case)):
            llm.generate(group, max_tokens=LENGTH, temperature=0, ignore_eos=True)
        for info in llm.slots():
            llm.erase(info.seq)
        llm.restore(file)
        result = ask(llm, again)
        assert (result.tokens, result.draft) == (stayed.tokens, stayed.draft)
        # What was evicted may be found in the store, and is longer.
        assert result.usage.cached_tokens >= stayed.usage.cached_tokens
    finally:
        llm.close()
    return result


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
def test_everything(case: Case, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """What it has compared goes into ``--junit-xml``, and from there into a record."""
    answers = play(case, tmp_path)
    for name in ("count", "near_ties", "drafted", "accepted"):
        record_property(name, getattr(answers, name))
    if case[5] in {"restore", "restart"}:
        restored = play_successor(case, tmp_path)
        record_property("restored_drafted", restored.draft.drafted)
        record_property("restored_accepted", restored.draft.accepted)
