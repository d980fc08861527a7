"""What the models compute when they run: drafts that err as predicted, NaN where it was asked for, targets that stay sound."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import pyllm
from pyllm import models
from pyllm._ffi import Batch, Context, Model
from pyllm.models.vocabulary import piece_id
from tests.conftest import prompt_tokens

PROMPTS = [prompt_tokens(salt, 5 + 14 * salt) for salt in range(4)]
SIZES = ("llama", "llama-dflash", "dflash"), ("step35", None, "chained"), ("qwen35", None, "mtp")


def generate(target, draft, kind, *, depth, n_tokens, slots=2):
    """Results for the prompts; ``kind`` is a key of the predictions."""
    spec = {"types": "mtp" if kind == "chained" else kind, "n_max": depth, "depth_control": False}
    with pyllm.LLM(target, draft=draft, spec=spec, slots=slots, ctx=512 * slots) as llm:
        results = llm.generate(PROMPTS, max_tokens=n_tokens, temperature=0)
        llm.check_integrity()
    follow = models.successor(0)
    for result in results:
        assert all(follow[left] == right for left, right in itertools.pairwise(result.tokens))
    return results


def counts(results):
    return [(result.draft.drafted, result.draft.accepted) for result in results]


def predicted(results, n_tokens, depth, error_rate, kind, *, replays=False):
    return [models.expected_acceptance(result.tokens[0], n_tokens, depth, 0, error_rate, kind, replays=replays) for result in results]


@pytest.mark.parametrize("error_rate", [[0.1, 0.5, 0.9, 0.0, 0.3, 1.0, 0.2], [0.0, 0.5], [0.0, 0.0, 1.0]])
@pytest.mark.parametrize(
    ("target", "draft", "kind", "depth"),
    [
        ("llama", "llama-dflash", "dflash", 7),
        ("llama", "llama-dflash2", "dflash", 7),
        ("gemma4", "gemma4-dflash", "dflash", 4),
        ("step35", None, "chained", 3),
    ],
)
def test_each_place_of_a_draft_errs_as_predicted(target, draft, kind, depth, error_rate):
    error_rate = error_rate[:3] if kind == "chained" else error_rate
    family = {"family": "successor", "error_rate": error_rate}
    results = generate(models.make(target, **family), models.make(draft, **family) if draft else None, kind, depth=depth, n_tokens=80)
    assert counts(results) == predicted(results, 80, depth, error_rate, kind)


@pytest.mark.parametrize("error_rate", [0.0, 0.25, 1.0])
def test_acceptance_beyond_a_drafters_window(error_rate):
    draft = models.make("llama-dflash-swa", family="successor", error_rate=error_rate)
    results = generate(models.make("llama", family="successor"), draft, "dflash", depth=5, n_tokens=200)
    assert counts(results) == predicted(results, 200, 5, error_rate, "dflash")


@pytest.mark.parametrize("target", ["llama", "qwen35"])
@pytest.mark.parametrize("error_rate", [0.0, 0.25, 1.0])
def test_a_selector_drafts_as_predicted(target, error_rate):
    draft = models.make(f"{target}-dflash2", family="successor", error_rate=error_rate)
    results = generate(models.make(target, family="successor"), draft, "dflash", depth=5, n_tokens=80)
    assert counts(results) == predicted(results, 80, 5, error_rate, "dflash")


@pytest.mark.parametrize("target", ["llama", "falcon-h1"])
@pytest.mark.parametrize("error_rate", [0.0, 0.25, 1.0])
def test_a_model_of_its_own_drafts_as_predicted(target, error_rate):
    draft = models.make("llama-draft", family="successor", error_rate=error_rate)
    results = generate(models.make(target, family="successor"), draft, "draft", depth=3, n_tokens=60)
    assert counts(results) == predicted(results, 60, 3, error_rate, "draft", replays=target == "falcon-h1")


@pytest.mark.parametrize("slots", [1, 4])
def test_a_hybrid_without_rollback(slots):
    path = models.make("falcon-h1")
    with pyllm.LLM(path, ctx=512) as llm:
        plain = [llm.generate(prompt, max_tokens=32, temperature=0, cache_prompt=False).tokens for prompt in PROMPTS]
        other = [llm.generate([1, prompt[1] + 1, *prompt[2:]], max_tokens=32, temperature=0, cache_prompt=False).tokens for prompt in PROMPTS]
        # greedy text depends on the whole context
        assert plain != other
    spec = {"types": "ngram", "ngram_size_n": 2, "ngram_size_m": 4}
    with pyllm.LLM(path, ctx=512 * slots, slots=slots, spec=spec, batch=64, ubatch=32) as llm:
        assert llm._core.info.rollback == "checkpoint"
        assert [result.tokens for result in llm.generate(PROMPTS, max_tokens=32, temperature=0)] == plain
        llm.check_integrity()


NAN_PAIRS = [
    ("llama", "llama-dflash", "dflash"),
    ("llama", "llama-dflash-swa", "dflash"),
    ("llama", "llama-dflash2", "dflash"),
    ("llama", "llama-draft", "draft"),
    ("gemma4", "gemma4-assistant", "mtp"),
    ("qwen35", None, "mtp"),
    ("nemotron-h-moe", None, "mtp"),
    ("step35", None, "chained"),
]


@pytest.mark.parametrize(("target", "draft", "kind"), NAN_PAIRS)
def test_a_target_stays_sound_beside_nan_drafts(target, draft, kind):
    family = {"family": "successor", "nan_after": "always"}
    results = generate(models.make(target, **family), models.make(draft, **family) if draft else None, kind, depth=3, n_tokens=40)
    assert all(result.draft.accepted == 0 for result in results)


def rows(path, tokens):
    """Logits after each token, shape ``(tokens, 512)``."""
    with Model(path) as model, Context(model, n_ctx=256, n_batch=128, n_ubatch=128) as context, Batch(context) as batch:
        batch.add(0, 0, tokens, "all")
        context.decode(batch)
        return np.array([context.logits(row) for row in range(len(tokens))])


def test_nan_after_one_token_only():
    tokens = [1, piece_id("a")]
    while len(tokens) < 100:
        tokens.append(int(models.successor(0)[tokens[-1]]))
    bad = piece_id("e")
    found = rows(models.make("llama-draft", family="successor", nan_after=bad), tokens)
    sound = rows(models.make("llama-draft", family="successor"), tokens)
    assert np.isfinite(sound).all()
    for token, row, other in zip(tokens, found, sound, strict=True):
        assert np.isnan(row).all() == (token == bad)
        assert np.isnan(row).any() == (token == bad)
        if token != bad:
            assert row.argmax() == other.argmax()


@pytest.mark.parametrize("family", ["random", "successor"])
def test_nan_always(family):
    assert np.isnan(rows(models.make("llama-draft", family=family, nan_after="always"), prompt_tokens(0, 20))).all()


def test_a_draft_model_says_stale_when_a_row_in_front_is_missing():
    path = models.make("llama-draft", family="successor")
    start = piece_id("a")
    tokens = [start, int(models.successor(0)[start])]
    whole = rows(path, [1, *tokens])
    assert whole[-1].argmax() == models.successor(0)[tokens[-1]]
    assert rows(path, [1, piece_id("~"), tokens[-1]])[-1].argmax() == models.vocabulary.STALE_ID


@pytest.mark.parametrize(("target", "draft", "kind"), SIZES)
@pytest.mark.parametrize(("tensor_type", "error_rate"), [("f16", 0.25), ("q8_0", 0.25), ("q4_0", 0.0), ("q4_0", 0.25), ("q4_0", 1.0)])
def test_noise_of_the_larger_sizes_changes_nothing(target, draft, kind, tensor_type, error_rate):
    choice = {"family": "successor", "error_rate": error_rate, "size": "60m", "tensor_type": tensor_type}
    results = generate(models.make(target, **choice), models.make(draft, **choice) if draft else None, kind, depth=3, n_tokens=24)
    assert counts(results) == predicted(results, 24, 3, error_rate, kind)
