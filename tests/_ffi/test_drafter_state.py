"""A drafter's sequence as bytes: elsewhere and later it drafts as if it had never left."""

from __future__ import annotations

import pytest

from pyllm.errors import StateError
from tests._ffi.rounds import KINDS, Link, Rounds
from tests.conftest import prompt_tokens


def make(kind: str, **settings: object) -> Rounds:
    target, link = KINDS[kind]
    return Rounds(target, link, **settings)


def settle(rounds: Rounds, seq: int, tokens: list[int], last: int) -> None:
    """The harness takes over what was restored."""
    rounds.tokens[seq], rounds.last[seq] = list(tokens), last
    rounds.drafter.begin(seq, tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_into_another_sequence(kind: str) -> None:
    rounds = make(kind, n_seq=3)
    rounds.prompt(0, prompt_tokens(0, 30))
    rounds.prompt(2, prompt_tokens(2, 12))
    rounds.check(0, 2)
    rounds.context.set_state(1, rounds.context.state(0))
    rounds.drafter.set_state(1, rounds.drafter.state(0))
    settle(rounds, 1, rounds.tokens[0], rounds.last[0])
    rounds.check(0, 1, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_into_another_chain(kind: str) -> None:
    """Random weights: not one row or cell may be another."""
    rounds, other = make(kind, family="random"), make(kind, family="random")
    rounds.prompt(0, prompt_tokens(0, 40))
    rounds.step(0)
    rounds.step(0, depth=0)  # rows that wait for a draft belong to the state
    other.prompt(0, prompt_tokens(3, 20))
    other.step(0)
    other.context.set_state(0, rounds.context.state(0))
    other.drafter.set_state(0, rounds.drafter.state(0))
    settle(other, 0, rounds.tokens[0], rounds.last[0])
    for _ in range(6):
        assert rounds.step(0)[0].tokens == other.step(0)[0].tokens


@pytest.mark.parametrize("kind", KINDS)
def test_a_partial_state_brings_back_what_cannot_be_cut(kind: str) -> None:
    """Back to a checkpoint, after more tokens: those before it are there still."""
    rounds = make(kind)
    rounds.prompt(0, prompt_tokens(0, 30))
    rounds.check(0, steps=2)
    rounds.step(0, depth=0)
    tokens, last = list(rounds.tokens[0]), rounds.last[0]
    target, drafter = rounds.context.state(0, partial=True), rounds.drafter.state(0, partial=True)
    assert len(drafter) < len(rounds.drafter.state(0)) or kind == "shared"
    rounds.check(0, steps=3)
    rounds.context.set_state(0, target, partial=True)
    rounds.context.remove(0, len(tokens))
    rounds.drafter.set_state(0, drafter, partial=True)
    rounds.drafter.truncate(0, len(tokens))
    assert rounds.drafter.reusable(0, len(tokens)) == len(tokens)
    settle(rounds, 0, tokens, last)
    rounds.check(0)


def test_of_an_empty_sequence() -> None:
    for kind in KINDS:
        rounds = make(kind, n_seq=2)
        rounds.prompt(1, prompt_tokens(0, 9))
        for partial in (False, True):
            rounds.drafter.set_state(1, rounds.drafter.state(0, partial=partial), partial=partial)
        rounds.context.remove(1)
        rounds.tokens[1] = []
        rounds.prompt(1, prompt_tokens(4, 9))
        rounds.check(1, steps=2)


@pytest.mark.parametrize("kind", KINDS)
def test_cut_short_or_changed(kind: str) -> None:
    """Every length below the whole is refused, and so is every changed byte of the frames; the sequence works afterwards."""
    rounds = make(kind)
    rounds.prompt(0, prompt_tokens(0, 9))
    state = rounds.drafter.state(0)
    lengths = [*range(min(len(state), 90)), len(state) // 2, len(state) - 1]
    for length in lengths:
        with pytest.raises(StateError):
            rounds.drafter.set_state(0, state[:length])
    for place in [*range(16), *range(24, 29)]:
        changed = bytearray(state)
        changed[place] ^= 0x40
        with pytest.raises(StateError):
            rounds.drafter.set_state(0, bytes(changed))
    with pytest.raises(StateError):
        rounds.drafter.set_state(0, bytes(state) + b"\0")
    with pytest.raises(StateError, match="whole, a partial one was expected"):
        rounds.drafter.set_state(0, state, partial=True)
    rounds.context.remove(0)
    rounds.tokens[0] = []
    rounds.prompt(0, prompt_tokens(1, 9))
    rounds.check(0, steps=2)


def test_of_other_drafters() -> None:
    states = {}
    for kind in ("shared", "single", "dflash", "model"):
        rounds = make(kind)
        rounds.prompt(0, prompt_tokens(0, 9))
        states[kind] = rounds.drafter.state(0)
    for kind in states:
        rounds = make(kind)
        for other, state in states.items():
            if other != kind:
                with pytest.raises(StateError, match=r"is that of drafter `.+`, this one is"):
                    rounds.drafter.set_state(0, state)
    longer = Rounds("llama", KINDS["dflash"][1], Link("ngram-map-k"))
    with pytest.raises(StateError, match="that of 1 drafters, there are 2"):
        longer.drafter.set_state(0, states["dflash"])


def test_another_kv_type() -> None:
    rounds = make("model")
    rounds.prompt(0, prompt_tokens(0, 9))
    target, link = KINDS["model"]
    other = Rounds(target, Link(link.type, link.recipe, settings={"type_k": "q8_0"}))
    with pytest.raises(StateError, match="another KV type"):
        other.drafter.set_state(0, rounds.drafter.state(0))
