"""The oracles over the whole product of targets, drafters, slots, KV types, unified or not, context shift or not, each played as four programs.

``cold``: all prompts at once. ``reuse``: prompts that are cut back and grow again. ``restore``: a slot saved, used by others, restored, continued.
``restart``: saved, the engine closed, another one opened, restored, continued. A generation leaves in its midst and comes back, too;
with a context shift, after one.

Each is played with both families. The random one's text depends on all of its context, and is compared with that of a plain run. The successor one's drafts
are accepted: its text and its counts are known (``successors``). Every other combination (``rejects``: the parity of its places along the axes) verifies by
rejection sampling: at temperature 0 with the random family, where exact verification writes the same, at a temperature with the successor one.

Every recipe that drafts in the engine is in it. A sample runs with the other tests.
"""

from __future__ import annotations

import functools
import itertools
import random
from typing import TYPE_CHECKING, Any

import pytest

import pyllm
from pyllm import models
from pyllm.engine import conversations
from tests.conftest import prompt_tokens
from tests.engine.combinations import CTX, KEEP, Case, cases, drafting, groups, rejects
from tests.engine.oracle import MARGINS, TOLERANCES, assert_same
from tests.engine.successors import Known, drafter, engine, right, sampling, walk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pyllm.checkpoints import Checkpoint
    from pyllm.engine.request import Request
    from pyllm.engine.scheduler import Scheduler

#: Tokens of an answer without and with a context shift.
LENGTH = 16
LONGER = 32
BASE = prompt_tokens(0, 240)
CUTS = {False: (150, 60, 120, 150), True: (240, 120, 200, 240)}

#: Of successor models: a conversation, a prompt cut back, and one whose answer leaves when it has ``LEAVES`` tokens, shifted with a context shift.
BEGIN = walk(7, 40)
KNOWN_CUTS = {False: (70, 30, 50, 70), True: (246, 60, 110)}
TALK = {False: 60, True: 230}
LEAVES = {False: 6, True: 32}
WHOLE = {False: 20, True: 48}


def leave(llm: pyllm.LLM, prompt: list[int], ready: Callable[[Request], bool], **params: Any) -> Checkpoint:
    """A generation, suspended between two steps when it is ``ready``: who waits for its chunks may come when it has ended."""
    request = llm._request(prompt, None, {"ignore_eos": True, "keep": KEEP} | params)

    def run(scheduler: Scheduler) -> Checkpoint:
        scheduler.add(request)
        while scheduler.busy and not ready(request):
            scheduler.step()
        return conversations.suspend(scheduler, request)

    kept = llm._call(run)
    assert kept.exact == (KEEP if llm.config.context_shift else len(kept.tokens)), "with a context shift it was to leave after one"
    return kept


def prompts(case: Case) -> list[list[int]]:
    """One for each slot and one more. With a context shift the last two fill their slots."""
    lengths = [20 + 13 * salt for salt in range(case[1] + 1)]
    if case[4]:
        lengths[-2:] = [240, 245]
    return [prompt_tokens(salt, length) for salt, length in enumerate(lengths)]


def walks(case: Case) -> list[list[int]]:
    """Shorter ones for successor models. With a context shift the last fills its slot beside the others."""
    lengths = [12 + 6 * salt for salt in range(case[1] + 1)]
    if case[4]:
        lengths[-1] = 246
    return [walk(salt, length) for salt, length in enumerate(lengths)]


@functools.cache
def plain(target: str, kv_type: str, shift: bool, prompt: tuple[int, ...], length: int) -> pyllm.Completion:
    """A prompt alone, without speculation, in a fresh slot."""
    llm = _plain_engine(target, kv_type, shift)
    return llm.generate(list(prompt), max_tokens=length, temperature=0, ignore_eos=True, cache_prompt=False, keep=KEEP, **MARGINS)


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
        params: dict[str, Any] = {"max_tokens": length, "temperature": 0, "ignore_eos": True, "keep": KEEP}
        results = [result for group in groups(self.case, tokens) for result in llm.generate(group, **params)]
        for prompt, result in zip(tokens, results, strict=True):
            self.check(llm, prompt, result, length)
        return results

    def check(self, llm: pyllm.LLM, prompt: list[int], result: pyllm.Completion, length: int) -> None:
        """An answer is the plain run's."""
        (target, *_), _, kv_type, _, shift, _ = self.case
        self.near_ties += not assert_same(plain(target, kv_type, shift, tuple(prompt), length), result.tokens, TOLERANCES[kv_type])
        self.count += 1
        self.drafted += result.draft.drafted
        self.accepted += result.draft.accepted
        llm.check_integrity()


def play(case: Case, folder: Path) -> Answers:
    """One combination, with the random family: its text depends on all of its context."""
    answers = Answers(case)
    shift, program = case[4], case[5]
    length = LONGER if shift else LENGTH
    begin = BASE[: 200 if shift else 90]
    file, shifted = folder / "slot", folder / "shifted"
    turn = prompt_tokens(9, 20)[1:]
    llm = drafting(case, {})
    try:
        if program == "cold":
            answers.generate(llm, prompts(case), length)
        elif program == "reuse":
            for cut in CUTS[shift]:
                answers.generate(llm, [BASE[:cut]], length)
        else:
            first = answers.generate(llm, [begin], LENGTH)[0]
            llm.save(first.slot, file)
            if shift:
                llm.save(leave(llm, BASE, lambda request: len(request.tokens) >= 20, max_tokens=LONGER, temperature=0), shifted)
            if program == "restart":
                llm.close()
                llm = drafting(case, {})
            answers.generate(llm, prompts(case), length)
            llm.restore(file)
            result = answers.generate(llm, [[*begin, *first.tokens, *turn]], length)[0]
            assert result.usage.cached_tokens >= len(begin)
            if shift:
                result = llm.resume(shifted).result()
                answers.check(llm, BASE, result, LONGER)
                # A restored conversation that was shifted still knows that what follows its first tokens is not what a fresh computation gives.
                held = llm.checkpoint(result.slot).tokens
                llm.save(result.slot, shifted)
                llm.erase(result.slot)
                llm.restore(shifted)
                result = answers.generate(llm, [[*held, *turn]], LENGTH)[0]
                assert result.usage.cached_tokens <= KEEP
        stats = llm.stats()
        assert stats["draft"]["failures"] == 0
        assert (stats["shifts"] > 0) == shift
    finally:
        llm.close()
    return answers


def play_known(case: Case, folder: Path) -> Known:
    """The same with the successor family: the counts of drafted and accepted tokens after a restore are those of a conversation that stayed."""
    answers = Known(case)
    shift, program = case[4], case[5]
    file, left = folder / "known", folder / "left"

    def ready(request: Request) -> bool:
        """The next step has a draft that begins rightly, if the drafter has all that it needs."""
        return len(request.tokens) >= LEAVES[shift] and len(request.pending) == 1 and right(case, request.tokens[-1])

    llm = engine(case)
    try:
        if program == "cold":
            answers.generate(llm, walks(case), LENGTH)
        elif program == "reuse":
            base = walk(0, max(KNOWN_CUTS[shift]))
            for cut in KNOWN_CUTS[shift]:
                answers.generate(llm, [base[:cut]], LENGTH)
        else:
            talk, whole = walk(0, TALK[shift]), WHOLE[shift]
            first = answers.generate(llm, [BEGIN], LENGTH)[0]
            again = [*BEGIN, *first.tokens, *walk(9, 20)[1:]]
            llm.save(first.slot, file)
            stayed = answers.generate(llm, [again], LENGTH)[0]
            llm.save(leave(llm, talk, ready, max_tokens=whole, **sampling(case)), left)
            if program == "restart":
                llm.close()
                llm = engine(case)
            answers.generate(llm, walks(case), LENGTH)
            for info in llm.slots():
                llm.erase(info.seq)
            llm.restore(file)
            result = answers.generate(llm, [again], LENGTH)[0]
            assert (result.tokens, result.draft) == (stayed.tokens, stayed.draft)
            # What was evicted may be found in the store, and is longer.
            assert result.usage.cached_tokens >= stayed.usage.cached_tokens
            request = llm.resume(left)
            chunks = list(request)
            result = request.result()
            answers.check(llm, talk, result, whole)
            # Later drafts can make up for a lost one: the sums may be the same.
            assert drafter(case) is None or len(chunks[0].tokens) > 1
            answers.restored_drafted, answers.restored_accepted = result.draft.drafted, result.draft.accepted
        stats = llm.stats()
        assert stats["draft"]["failures"] == 0
        assert (stats["shifts"] > 0) == shift
    finally:
        llm.close()
    return answers


ALL = cases()


def test_there_are_enough() -> None:
    assert len(ALL) >= 1500


def test_every_drafter_is_in_it() -> None:
    found = {(recipe.name, kind, draft) for recipe in models.recipes() for kind, draft in recipe.drafters if kind != "eagle3"}
    assert found <= {pair for pair, *_ in ALL}


def test_rejection_sampling_is_everywhere() -> None:
    """Each two values of two axes are verified in both ways."""
    for one, other in itertools.combinations(range(6), 2):
        values = {(case[one], case[other]) for case in ALL}
        assert {(case[one], case[other], rejects(case)) for case in ALL} == {(*pair, way) for pair in values for way in (False, True)}


@pytest.mark.parametrize("case", random.Random(4).sample(ALL, 24), ids=str)
def test_a_sample(case: Case, tmp_path: Path) -> None:
    play(case, tmp_path)
    play_known(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL, ids=str)
def test_everything(case: Case, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """What it has compared goes into ``--junit-xml``, and from there into a record."""
    answers = play(case, tmp_path)
    for name in ("count", "near_ties", "drafted", "accepted"):
        record_property(name, getattr(answers, name))
    known = play_known(case, tmp_path)
    for name in ("count", "drafted", "accepted"):
        record_property(f"known_{name}", getattr(known, name))
    for name in ("restored_drafted", "restored_accepted"):
        record_property(name, getattr(known, name))
    record_property("rejection", int(rejects(case)))
