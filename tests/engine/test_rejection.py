"""Rejection sampling in an engine: with drafts of real drafters, tokens are distributed as without; the text is another."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

import pyllm
from pyllm import models
from tests.conftest import prompt_tokens

if TYPE_CHECKING:
    from pathlib import Path

KINDS = [("llama", "llama-dflash", "dflash"), ("qwen35", None, "mtp")]
ERRORS: dict[str, Any] = {"family": "successor", "error_rate": 0.25}
VERIFIED = 4  # tokens of a text that are looked at: the first is drawn from the prompt's row, and nothing is drafted for the last
SIGMAS = 4.9  # 1 in 2,000,000; the seeds are fixed


def chain(first: int, length: int) -> list[int]:
    """What the successor models say after ``first`` when they are sure."""
    successor = models.successor(0)
    tokens = [first]
    while len(tokens) <= length:
        tokens.append(int(successor[tokens[-1]]))
    return tokens[1:]


LIKELY = chain(300, 8)
#: What follows is in the prompt already, so that penalties change what is drawn.
PROMPT = [1, *LIKELY[:3], 300]
#: The best token gets two thirds, three others share the rest: both drafts that are right and drafts that are not are taken and refused.
SAMPLING: dict[str, Any] = {"temperature": 12.0, "top_k": 4, "top_p": 1.0, "min_p": 0.0, "max_tokens": VERIFIED + 2, "ignore_eos": True}
CASES: dict[str, dict[str, Any]] = {
    "top-k": {},
    "penalties": {"repeat_penalty": 1.5, "presence_penalty": 2.0},
    "grammar": {"grammar": f"root ::= ({' | '.join(f'<[{token}]>' for token in LIKELY)})+"},
}


@dataclass(frozen=True)
class Models:
    """A target, what drafts for it, and what both are made as."""

    target: str
    draft: str | None
    kind: str
    family: dict[str, Any]

    def engine(self, verification: str | None, slots: int = 8) -> pyllm.LLM:
        """``verification`` None: without drafts."""
        drafting: dict[str, Any] = {}
        if verification is not None:
            drafting["spec"] = {"types": self.kind, "n_max": 3, "depth_control": False, "verification": verification}
            drafting["draft"] = models.make(self.draft, **self.family) if self.draft else None
        return pyllm.LLM(models.make(self.target, **self.family), slots=slots, ctx=256 * slots, threads=1, **drafting)


DENSE, HYBRID = (Models(*kind, ERRORS) for kind in KINDS)


@dataclass
class Draws:
    """Texts of many requests, and what became of their drafts."""

    texts: list[tuple[int, ...]]
    drafted: int
    accepted: int


def draw(llm: pyllm.LLM, n: int, seed: int, **sampling: Any) -> Draws:
    """``n`` requests with seeds one after the other, hundreds of them there before a first step: the same steps in every run."""
    results: list[pyllm.Completion] = []
    while len(results) < n:
        seeds = range(seed + len(results), seed + min(n, len(results) + 400))
        requests = [llm._request(PROMPT, None, SAMPLING | sampling | {"seed": one}) for one in seeds]
        llm._worker.submit(*requests)
        results += [request.result() for request in requests]
    return Draws([result.tokens for result in results], sum(result.draft.drafted for result in results), sum(result.draft.accepted for result in results))


def chi_square(left: Counter[tuple[int, ...]], right: Counter[tuple[int, ...]]) -> float:
    """How far two samples of one size are apart, in standard deviations of a normal variable (Wilson and Hilferty)."""
    assert sum(left.values()) == sum(right.values())
    cells = [(left[key], right[key]) for key in left | right]
    rare = [cell for cell in cells if sum(cell) < 16]
    kept = [cell for cell in cells if sum(cell) >= 16] + [(sum(a for a, _ in rare), sum(b for _, b in rare))]
    kept = [(a, b) for a, b in kept if a + b >= 16]
    freedom = max(len(kept) - 1, 1)
    statistic = sum((a - b) ** 2 / (a + b) for a, b in kept)
    return float(((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / (2 / (9 * freedom)) ** 0.5)


def n_sure(text: tuple[int, ...]) -> int:
    """Tokens that are the likeliest after the one before: what a wrong acceptance or a wrong residual changes everywhere in the same direction."""
    successor = models.successor(0)
    return sum(int(successor[text[place - 1]]) == text[place] for place in range(1, 1 + VERIFIED))


def distance(left: Draws, right: Draws) -> float:
    """The most that two samples of texts are apart: at each place, at each two that follow each other, at all together, in sure tokens."""
    spans = [(begin, begin + length) for length in (1, 2, VERIFIED) for begin in range(1, 2 + VERIFIED - length)]
    counts = [[Counter(text[begin:end] for text in draws.texts) for draws in (left, right)] for begin, end in spans]
    counts.append([Counter((n_sure(text),) for text in draws.texts) for draws in (left, right)])
    return max(chi_square(*pair) for pair in counts)


def samples(files: Models, n: int, case: str, slots: int = 8) -> tuple[Draws, Draws]:
    """``n`` texts by rejection and as many without drafts, of other seeds."""
    with files.engine("rejection", slots) as llm:
        drafted = draw(llm, n, 0, **CASES[case])
        assert llm.stats()["draft"]["failures"] == 0
        llm.check_integrity()
    with files.engine(None, slots) as llm:
        return drafted, draw(llm, n, 1_000_000, **CASES[case])


def check_distribution(files: Models, case: str, n: int, slots: int = 8) -> None:
    rejection, plain = samples(files, n, case, slots)
    assert n // 3 < rejection.accepted < rejection.drafted - n, "or the test is not about what it says"
    assert distance(rejection, plain) < SIGMAS


@pytest.mark.parametrize(
    ("files", "case", "n"),
    [(DENSE, "top-k", 400), (DENSE, "penalties", 250), (DENSE, "grammar", 250), (HYBRID, "top-k", 120)],
    ids=lambda value: getattr(value, "kind", value),
)
def test_the_distribution_is_that_of_plain_sampling(files: Models, case: str, n: int) -> None:
    check_distribution(files, case, n)


@pytest.mark.slow
@pytest.mark.parametrize(("files", "case", "n"), [(DENSE, "top-k", 25_000), (DENSE, "penalties", 5_000), (DENSE, "grammar", 5_000), (HYBRID, "top-k", 5_000)])
def test_the_distribution_of_many_tokens(files: Models, case: str, n: int) -> None:
    """100,000 tokens of the first, 20,000 of each other."""
    check_distribution(files, case, n, slots=16)


def test_the_statistic_tells_distributions_apart() -> None:
    """Where nothing else differs than what each case is about."""
    with DENSE.engine(None) as llm:
        plain = draw(llm, 250, 0)
        assert distance(plain, draw(llm, 250, 1_000_000)) < SIGMAS
        for other in ({"temperature": 6.0}, {"top_k": 3}, CASES["penalties"], CASES["grammar"]):
            assert distance(plain, draw(llm, 250, 1_000_000, **other)) > SIGMAS


@pytest.mark.slow
def test_many_tokens_tell_near_temperatures_apart() -> None:
    with DENSE.engine(None, 16) as llm:
        plain = draw(llm, 4_000, 0)
        assert distance(plain, draw(llm, 4_000, 1_000_000)) < SIGMAS
        assert distance(plain, draw(llm, 4_000, 1_000_000, temperature=10.5)) > SIGMAS


@pytest.mark.parametrize("files", [DENSE, HYBRID], ids=["dflash", "mtp"])
def test_a_seed_gives_one_text(files: Models) -> None:
    """Which is not that of plain sampling, as exact match has it."""
    runs = []
    for verification in ("rejection", "rejection", "exact", None):
        with files.engine(verification) as llm:
            runs.append(draw(llm, 32, 7))
    first, second, exact, plain = runs
    assert first == second
    assert exact.texts == plain.texts != first.texts


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("files", [DENSE, HYBRID], ids=["dflash", "mtp"])
def test_a_suspended_request_goes_on(files: Models, case: str, tmp_path: Path) -> None:
    """From a file in another engine: the same tokens, drafted and accepted as had it stayed."""
    params = SAMPLING | CASES[case] | {"max_tokens": 60, "seed": 5}
    file = tmp_path / "running.pyllm"
    with files.engine("rejection", 2) as llm:
        whole = llm.generate(PROMPT, **params)
        assert 0 < whole.draft.accepted < whole.draft.drafted
    with files.engine("rejection", 2) as llm:
        request = llm.submit(PROMPT, **params)
        pieces = iter(request)
        text, n_tokens = "", 0
        while n_tokens < 20:
            chunk = next(pieces)
            text, n_tokens = text + chunk.text, n_tokens + len(chunk.tokens)
        llm.save(llm.suspend(request), file)
        text += "".join(chunk.text for chunk in pieces)
        assert request.result().finish_reason == "suspended"
    with files.engine("rejection", 2) as llm:
        llm.generate([prompt_tokens(5, 80), prompt_tokens(6, 90)], max_tokens=10, temperature=1.0, seed=1)
        request = llm.resume(file)
        text += "".join(chunk.text for chunk in request)
        result = request.result()
        assert (result.tokens, result.draft, text) == (whole.tokens, whole.draft, whole.text)
        llm.check_integrity()


@pytest.mark.parametrize("family", [{}, ERRORS], ids=["random", "successor"])
@pytest.mark.parametrize(("target", "draft", "kind"), KINDS)
def test_greedy_text_is_that_without_drafts(target: str, draft: str | None, kind: str, family: dict[str, Any]) -> None:
    prompts = [prompt_tokens(salt, 5 + 14 * salt) for salt in range(4)]
    greedy: dict[str, Any] = {"max_tokens": 24, "temperature": 0}
    with Models(target, draft, kind, family).engine(None) as llm:
        expected = [llm.generate(prompt, **greedy).tokens for prompt in prompts]
    with Models(target, draft, kind, family).engine("rejection") as llm:
        results = llm.generate(prompts, **greedy)
    assert [result.tokens for result in results] == expected
    assert all(result.draft.drafted for result in results)
    if family:
        assert all(0 < result.draft.accepted < result.draft.drafted for result in results)
