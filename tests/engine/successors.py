"""Answers of successor models: the text is known, and so is how much of it is drafted and accepted, to the token."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from pyllm import models
from tests.conftest import prompt_tokens
from tests.engine.combinations import CTX, KEEP, Case, drafting, groups, rejects

if TYPE_CHECKING:
    import pyllm

FAMILY: dict[str, Any] = {"family": "successor"}
DEPTH = 3
FOLLOWS = models.successor(0)

#: A drafter that knows which place of a draft it is at errs at each in its own way.
RATES: dict[str, float | tuple[float, ...]] = {"dflash": (0.1, 0.3, 0.6), "chained": (0.1, 0.3, 0.6), "mtp": 0.25, "draft": 0.25}


def walk(salt: int, length: int) -> list[int]:
    """A prompt whose second half is what successors say, each seventh token aside, then its start: n-grams draft from it, at times wrongly."""
    known = prompt_tokens(salt, length - length // 2)
    start = len(known) - 1
    while len(known) < length - 1:
        place = len(known) - start
        known.append(int(FOLLOWS[known[-1]]) if place % 7 else 270 + (salt * 31 + place * 11) % 200)
    return [*known, known[start]]


def text(prompt: list[int], length: int) -> tuple[int, ...]:
    """The answer to a prompt, whatever the context does."""
    tokens = [prompt[-1]]
    for _ in range(length):
        tokens.append(int(FOLLOWS[tokens[-1]]))
    return tuple(tokens[1:])


def drafter(case: Case) -> str | None:
    """What :func:`models.expected_acceptance` calls the drafter; None: what n-grams find depends on the prompt, and it does not say."""
    (target, kind, _), *_ = case
    # Heads propose something after every token: the link after them in a chain is never asked.
    name = "chained" if target == "step35" else kind.split(",")[0]
    return name if name in RATES else None


def engine(case: Case) -> pyllm.LLM:
    """The engine of a case, with a drafter that is wrong at times."""
    name = drafter(case)
    return drafting(case, FAMILY, RATES[name] if name else None)


def right(case: Case, token: int) -> bool:
    """Whether a draft after ``token`` begins rightly: a drafter that lacks what it has to know shows then."""
    name = drafter(case)
    return name is None or models.drafter_table(0, RATES[name])[token] == FOLLOWS[token]


def sampling(case: Case) -> dict[str, Any]:
    """Greedy; rejection sampling is at a temperature, so that it does something, at which one token is left to draw: text and counts are the same."""
    return {"temperature": 0.25, "seed": 3} if rejects(case) else {"temperature": 0}


def counts(case: Case, prompt: list[int], length: int) -> tuple[int, int]:
    """Drafted and accepted tokens of an answer, wherever its slot has been before.

    A draft ends where the slot does, as it ends with the answer, and a context shift then makes room: between two shifts is an answer of its own, whose
    first token is the last one before. N-grams draft what they draft in a fresh slot.
    """
    name = drafter(case)
    if name is None:
        return _fresh(case[0], case[4], tuple(prompt), length)
    drafted = accepted = 0
    answer = text(prompt, length)
    held, begun = len(prompt), 0
    while True:
        n_tokens = min(length - begun, CTX - held) if case[4] else length
        more = models.expected_acceptance(answer[begun], n_tokens, DEPTH, 0, RATES[name], name, replays=case[0][0] == "falcon-h1")
        drafted, accepted = drafted + more[0], accepted + more[1]
        begun += n_tokens - 1
        if begun == length - 1:
            return drafted, accepted
        held += n_tokens - 1
        held -= (held - KEEP) // 2


@functools.cache
def _fresh(pair: tuple[str, str, str | None], shift: bool, prompt: tuple[int, ...], length: int) -> tuple[int, int]:
    draft = _alone(pair, shift).generate(list(prompt), max_tokens=length, temperature=0, ignore_eos=True, cache_prompt=False, keep=KEEP).draft
    return draft.drafted, draft.accepted


@functools.cache
def _alone(pair: tuple[str, str, str | None], shift: bool) -> pyllm.LLM:
    return engine((pair, 1, "f16", False, shift, "cold"))


class Known:
    """Answers that were compared with what is known of them, and what was drafted and accepted for them, and for those that had left and come back."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.count = self.drafted = self.accepted = self.restored_drafted = self.restored_accepted = 0

    def generate(self, llm: pyllm.LLM, tokens: list[list[int]], length: int) -> list[pyllm.Completion]:
        """Answers to prompts of one moment, each checked."""
        params = {"max_tokens": length, "ignore_eos": True, "keep": KEEP} | sampling(self.case)
        results = [result for group in groups(self.case, tokens) for result in llm.generate(group, **params)]
        for prompt, result in zip(tokens, results, strict=True):
            self.check(llm, prompt, result, length)
        return results

    def check(self, llm: pyllm.LLM, prompt: list[int], result: pyllm.Completion, length: int) -> None:
        """An answer is the text that it has to be, with the drafts that it has to have."""
        assert result.tokens == text(prompt, length)
        assert (result.draft.drafted, result.draft.accepted) == counts(self.case, prompt, length)
        self.count += 1
        self.drafted += result.draft.drafted
        self.accepted += result.draft.accepted
        llm.check_integrity()
