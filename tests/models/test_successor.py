from __future__ import annotations

import itertools

import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm import models
from pyllm.errors import ConfigError, InvalidArgumentError
from pyllm.models.successor import LIMITS, code
from pyllm.models.vocabulary import BOS_ID, FIRST_PIECE_ID, MASK_ID, N_PIECES, N_VOCAB, STALE_ID, piece_id

PRINTABLE = np.arange(FIRST_PIECE_ID, FIRST_PIECE_ID + N_PIECES)


def naive(first, n_tokens, depth, seed, error_rate, *, replays=False):
    """The server's loop, token by token, on whole sequences."""
    follow = models.successor(seed)
    guesses = [models.drafter_table(seed, error_rate, place) for place in range(1, depth + 1)]
    text = [first]
    drafted = accepted = 0
    while len(text) < n_tokens:
        draft = []
        last = text[-1]
        for place in range(min(depth, n_tokens - len(text) - 1)):
            # what a drafter proposes after a mistake is of no consequence: the mistake ends the step
            last = int(guesses[place][last])
            draft.append(last)
        drafted += len(draft)
        rejected = False
        for token in draft:
            rejected = token != follow[text[-1]]
            if rejected:
                break
            text.append(token)
            accepted += 1
        text.append(int(follow[text[-1]]))
        if replays and rejected:
            text.append(int(follow[text[-1]]))
    assert len(text) == n_tokens
    return drafted, accepted


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from([*PRINTABLE.tolist(), BOS_ID, 40]),
    st.integers(1, 200),
    st.integers(0, 12),
    st.integers(0, 50),
    st.floats(0.0, 1.0),
    st.sampled_from(sorted(LIMITS)),
    st.booleans(),
)
def test_arithmetic_agrees_with_a_simulation(first, n_tokens, depth, seed, error_rate, kind, replays):  # noqa: PLR0917
    limit = LIMITS[kind]
    bounded = depth if limit is None else min(depth, limit)
    expected = naive(first, n_tokens, bounded, seed, error_rate, replays=replays)
    assert models.expected_acceptance(first, n_tokens, depth, seed, error_rate, kind, replays=replays) == expected


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from([*PRINTABLE.tolist(), BOS_ID, 40]),
    st.integers(1, 200),
    st.integers(0, 12),
    st.integers(0, 50),
    st.lists(st.floats(0.0, 1.0), min_size=1, max_size=9),
    st.sampled_from(["dflash", "chained"]),
)
def test_arithmetic_of_a_rate_for_each_place(first, n_tokens, depth, seed, error_rates, kind):  # noqa: PLR0917
    expected = naive(first, n_tokens, min(depth, LIMITS[kind]), seed, error_rates)
    assert models.expected_acceptance(first, n_tokens, depth, seed, error_rates, kind) == expected


@given(st.integers(0, 1000), st.lists(st.floats(0.0, 1.0), min_size=2, max_size=7))
def test_each_place_errs_at_its_own_rate(seed, error_rates):
    for place in range(1, 10):
        wrong = models.drafter_table(seed, error_rates, place) != models.successor(seed)
        assert wrong[PRINTABLE].sum() == round(error_rates[min(place, len(error_rates)) - 1] * N_PIECES)


def test_places_err_after_different_pieces():
    wrong = [models.drafter_table(0, [0.5, 0.5], place) != models.successor(0) for place in (1, 2, 3)]
    for first, second in itertools.combinations(wrong, 2):
        assert (first[PRINTABLE] != second[PRINTABLE]).any()
    one = [models.drafter_table(0, 0.5, place) for place in (1, 2, 3)]
    assert (one[0] == one[1]).all()
    assert (one[0] == one[2]).all()


def test_a_wrong_second_place_bounds_every_draft():
    drafted, accepted = models.expected_acceptance(piece_id("a"), 81, 4, 0, [0.0, 1.0, 0.0], "dflash")
    # each step accepts the first token, rejects the second, and adds one
    assert accepted == 40
    assert drafted == 4 * 38 + 3 + 1


@given(st.integers(0, 1000))
def test_successor_is_one_cycle_through_the_printable_pieces(seed):
    follow = models.successor(seed)
    assert follow.shape == (N_VOCAB,)
    token, seen = int(PRINTABLE[0]), set()
    while token not in seen:
        seen.add(token)
        token = int(follow[token])
    assert seen == set(PRINTABLE.tolist())
    others = np.setdiff1d(np.arange(N_VOCAB), [*PRINTABLE, MASK_ID])
    assert np.isin(follow[others], PRINTABLE).all()
    assert follow[MASK_ID] == STALE_ID


@given(st.integers(0, 1000), st.floats(0.0, 1.0))
def test_drafter_errs_after_exactly_the_asked_share(seed, error_rate):
    wrong = models.drafter_table(seed, error_rate) != models.successor(seed)
    assert wrong[PRINTABLE].sum() == round(error_rate * N_PIECES)
    assert np.isin(models.drafter_table(seed, error_rate)[PRINTABLE], PRINTABLE).all()


def test_a_perfect_drafter_and_a_useless_one():
    first = piece_id("a")
    assert models.expected_acceptance(first, 81, 4, 0, 0.0) == (64, 64)
    assert models.expected_acceptance(first, 5, 2, 0, 1.0) == (2 + 2 + 1, 0)
    assert models.expected_acceptance(first, 100, 0, 0, 0.0) == (0, 0)
    assert models.expected_acceptance(first, 1, 4, 0, 0.0) == (0, 0)


@pytest.mark.parametrize(
    "arguments",
    [
        (-1, 10, 3, 0, 0.0),
        (N_VOCAB, 10, 3, 0, 0.0),
        (5, 0, 3, 0, 0.0),
        (5, 10, -1, 0, 0.0),
        (5, 10, 3, 0, 0.0, "eagle"),
        (5, 10, 3, 0, 0.0, ""),
    ],
)
def test_arguments_outside_their_limits(arguments):
    with pytest.raises(InvalidArgumentError):
        models.expected_acceptance(*arguments)


def test_error_rate_outside_its_limits():
    with pytest.raises(ConfigError):
        models.drafter_table(0, -0.1)
    with pytest.raises(ConfigError, match="empty"):
        models.drafter_table(0, [])


@pytest.mark.parametrize("kind", ["mtp", "draft"])
def test_a_single_head_does_not_know_the_place(kind):
    with pytest.raises(ConfigError, match="2 values, but"):
        models.expected_acceptance(300, 10, 3, 0, [0.1, 0.2], kind)


def test_places_count_from_one():
    with pytest.raises(InvalidArgumentError, match="position is 0"):
        models.drafter_table(0, 0.0, 0)


def matrices(path):
    return {tensor.name: np.asarray(tensor.data, np.float64).reshape(tuple(int(n) for n in tensor.shape[::-1])) for tensor in GGUFReader(path).tensors}


def rms(rows):
    return rows / np.sqrt((rows**2).mean(-1, keepdims=True) + 1e-6)


def silu(x):
    return x / (1.0 + np.exp(-x))


def test_target_computes_the_successor_whatever_its_layers_add(tmp_path):
    weights = matrices(models.make("llama", tmp_path / "m.gguf", family="successor", seed=2))
    rows = weights["token_embd.weight"]
    rows = rows + np.random.default_rng(0).standard_normal(rows.shape) * 0.02
    logits = rms(rows) @ weights["output.weight"].T
    assert (logits.argmax(1) == models.successor(2)).all()
    printable = np.sort(logits[PRINTABLE], axis=1)
    assert (printable[:, -1] - printable[:, -2]).min() > 10.0


@pytest.fixture(scope="module")
def nextn(tmp_path_factory):
    path = models.make("qwen35", tmp_path_factory.mktemp("m") / "m.gguf", family="successor", error_rate=0.25, seed=1)
    weights = matrices(path)
    return {name.removeprefix("blk.4."): value for name, value in weights.items()}


def drafts(weights, token, before):
    """What the nextn block drafts, and its hidden rows, for tokens and those before them; without its attention."""
    hidden = rms(weights["token_embd.weight"][before])
    fused = np.concatenate([rms(weights["token_embd.weight"][token]), rms(hidden)], 1) @ weights["nextn.eh_proj.weight"].T
    normed = rms(fused)
    units = silu(normed @ weights["ffn_gate.weight"].T) * (normed @ weights["ffn_up.weight"].T)
    result = rms(fused + units @ weights["ffn_down.weight"].T) * weights["nextn.shared_head_norm.weight"]
    return (result @ weights["output.weight"].T).argmax(1), result


def test_nextn_block_drafts_its_table_when_hidden_row_and_token_belong_together(nextn):
    follow, table = models.successor(1), models.drafter_table(1, 0.25)
    token, hidden = drafts(nextn, follow[PRINTABLE], PRINTABLE)
    assert (token == table[follow[PRINTABLE]]).all()
    # the row handed on serves the next step as the target's would
    right = token == follow[follow[PRINTABLE]]
    again, _ = drafts({**nextn, "token_embd.weight": nextn["token_embd.weight"]}, token[right], follow[PRINTABLE][right])
    assert (again == table[token[right]]).all()
    assert np.isfinite(hidden).all()


def test_nextn_block_drafts_stale_when_they_do_not(nextn):
    follow = models.successor(1)
    for shift in (1, 7, 50):
        foreign = np.roll(PRINTABLE, shift)
        token, _ = drafts(nextn, follow[PRINTABLE], foreign)
        assert (token == STALE_ID).all()


def test_codes_of_printable_pieces_are_their_own():
    assert (code(PRINTABLE) == np.arange(N_PIECES)).all()
    assert (code(np.arange(N_VOCAB)) < N_PIECES).all()
