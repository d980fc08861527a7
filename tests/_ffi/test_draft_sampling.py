"""Drawn drafts and what they were drawn from; drafters that fail; draft memories smaller than the conversation."""

from __future__ import annotations

import numpy as np
import pytest

from pyllm._ffi import DraftRequest
from pyllm._ffi.door import ffi
from pyllm._ffi.drafter import CANDIDATES
from tests._ffi.rounds import DEPTH, KINDS, Link, Rounds
from tests.conftest import prompt_tokens

POISONED = {
    "single": ("qwen35", Link("draft-mtp", nan_after="always")),
    "shared": ("gemma4", Link("draft-mtp", "gemma4-assistant", nan_after="always")),
    "dflash": ("llama", Link("draft-dflash", "llama-dflash", nan_after="always")),
    "model": ("llama", Link("draft-simple", "llama-draft", nan_after="always")),
}


def make(kind: str, **settings: object) -> Rounds:
    target, link = KINDS[kind]
    return Rounds(target, link, **settings)


def distribution(rounds: Rounds, seed: int, temperature: float) -> tuple[list[int], np.ndarray, np.ndarray]:
    """One draft with its ids and probabilities, both [n, 10]."""
    [draft] = rounds.drafter.draft([DraftRequest(0, rounds.last[0], len(rounds.tokens[0]), DEPTH, temperature, seed)])
    assert draft.q is not None
    rows = (np.frombuffer(ffi.buffer(part), kind).reshape(-1, CANDIDATES) for part, kind in zip(draft.q, (np.int32, np.float32), strict=True))
    ids, probs = (row[: len(draft.tokens)].copy() for row in rows)
    return draft.tokens, ids, probs


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_draft_was_drawn_from(kind: str) -> None:
    rounds = make(kind, family="random")
    rounds.prompt(0, prompt_tokens(0, 20))
    n_candidates = 8 if kind == "dflash2" else CANDIDATES  # what its selector leaves of each position
    for seed in range(5):
        tokens, ids, probs = distribution(rounds, seed, 1.5)
        ids, left = ids[:, :n_candidates], probs[:, n_candidates:]
        assert (left == 0).all()
        assert tokens == distribution(rounds, seed, 1.5)[0]
        assert np.allclose(probs.sum(axis=1), 1.0, atol=1e-6)
        assert (np.diff(probs, axis=1) <= 0).all()
        assert all(token in row for token, row in zip(tokens, ids, strict=True))
        assert all(len(set(row)) == n_candidates for row in ids)
    assert len({tuple(distribution(rounds, seed, 50.0)[0]) for seed in range(20)}) > 10


def test_draws_follow_the_distribution() -> None:
    """4000 seeds: every token as often as it should be, within five standard deviations."""
    rounds = make("dflash", family="random")
    rounds.prompt(0, prompt_tokens(0, 20))
    n = 4000
    drawn = [distribution(rounds, seed, 2.0) for seed in range(n)]
    _, ids, probs = drawn[0]
    for place in range(DEPTH):
        counts = np.array([sum(tokens[place] == token for tokens, _, _ in drawn) for token in ids[place]])
        expected = probs[place] * n
        assert counts.sum() == n
        assert (np.abs(counts - expected) <= 5 * np.sqrt(expected * (1 - probs[place])) + 1).all()


def test_without_temperature_there_is_no_distribution() -> None:
    rounds = make("model")
    rounds.prompt(0, prompt_tokens(0, 20))
    assert rounds.step(0)[0].q is None


def test_found_tokens_are_certain() -> None:
    """An n-gram was not drawn: its distribution is the token."""
    rounds = Rounds("llama", Link("ngram-map-k", settings={"ngram_size_n": 2, "ngram_size_m": 3}))
    text = prompt_tokens(0, 12)
    rounds.prompt(0, [*text, *text[1:], *text[1:6]])
    rounds.last[0] = text[6]
    tokens, ids, probs = distribution(rounds, 1, 1.0)
    assert tokens
    assert (ids[:, 0] == tokens).all()
    assert (probs[:, 0] == 1.0).all()
    assert (ids[:, 1:] == -1).all()
    assert (probs[:, 1:] == 0.0).all()


def test_an_uncertain_token_ends_the_draft() -> None:
    target, link = KINDS["dflash"]
    rounds = Rounds(target, Link(link.type, link.recipe, settings={"p_min": 0.9999}), family="random")
    rounds.prompt(0, prompt_tokens(0, 20))
    assert rounds.step(0)[0].tokens == []
    assert rounds.drafter.stats.n_failures == 0


@pytest.mark.parametrize("kind", POISONED)
def test_a_drafter_of_nan(kind: str) -> None:
    """S-12, B23: no draft, the reason, and no second try before the next request; the target goes on."""
    target, link = POISONED[kind]
    rounds = Rounds(target, link, n_seq=2)
    for seq in range(2):
        rounds.prompt(seq, prompt_tokens(seq, 9))
    for _ in range(4):
        assert [draft.tokens for draft in rounds.step(0, 1)] == [[], []]
    assert rounds.drafter.stats.n_failures == 2
    assert "the drafter's output is not finite" in rounds.drafter.why(0)
    n_decodes = rounds.drafter.stats.n_decodes
    rounds.step(0, 1)
    assert rounds.drafter.stats.n_decodes == n_decodes
    rounds.drafter.truncate(0, 0)
    assert not rounds.drafter.why(0)
    rounds.context.remove(0)
    rounds.tokens[0] = []
    rounds.prompt(0, prompt_tokens(0, 9))
    rounds.step(0)
    assert rounds.drafter.stats.n_failures == 3


def test_one_sequence_of_nan_among_others() -> None:
    """NaN after one token: the others draft what they should."""
    target, link = KINDS["single"]
    last = Rounds(target, link)
    last.prompt(0, prompt_tokens(0, 9))
    poisoned = Link("draft-mtp", nan_after=last.last[0])
    rounds = Rounds(target, poisoned, n_seq=2)
    for seq in range(2):
        rounds.prompt(seq, prompt_tokens(seq, 9))
    token = rounds.last[1]
    first, second = rounds.step(0, 1)
    assert first.tokens == []
    assert second.tokens == poisoned.draft_after(token, DEPTH)
    assert rounds.drafter.why(0)
    assert not rounds.drafter.why(1)


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("kind", ["single", "chained", "dflash", "dflash-mrope", "model", "model-recurrent"])
def test_a_draft_memory_smaller_than_the_conversation(kind: str, unified: bool) -> None:
    """Older cells are given up; drafts need the last ones."""
    target, link = KINDS[kind]
    small = Link(link.type, link.recipe, settings={"n_ctx": 256 if unified else 512})
    rounds = Rounds(target, small, n_seq=2, n_ctx=2048, kv_unified=unified)
    rounds.prompt(0, prompt_tokens(0, 700))
    rounds.prompt(1, prompt_tokens(1, 240))
    rounds.check(0, 1, steps=25)
    assert rounds.drafter.links[0].n_ctx < rounds.context.info.n_ctx


def test_a_request_out_of_step_is_told_why() -> None:
    """A drafter on the target's cells can only draft behind them."""
    rounds = make("shared")
    rounds.prompt(0, prompt_tokens(0, 9))
    [draft] = rounds.drafter.draft([DraftRequest(0, 270, 5, DEPTH)])
    assert draft.tokens == []
    assert rounds.drafter.why(0) == "draft-mtp: the target holds 9 positions, the draft starts at 5"
