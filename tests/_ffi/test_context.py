"""Decoding, memory and state at the C ABI."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pyllm import models
from pyllm._ffi import Batch, Context, Model, Sampler
from pyllm.errors import (
    CancelledError,
    ContextFullError,
    InvalidArgumentError,
    LimitError,
    StateError,
    UnsupportedError,
)
from tests.conftest import prompt_tokens

if TYPE_CHECKING:
    from collections.abc import Callable


def decode(context: Context, seq: int, pos: int, tokens: list[int]) -> np.ndarray:
    """Logits of the last of ``tokens``."""
    with Batch(context) as batch:
        first = batch.add(seq, pos, tokens, "last")
        context.decode(batch)
        return context.logits(first + len(tokens) - 1)


def test_facts(make_context: Callable[..., Context]) -> None:
    # Upstream rounds the cells of a sequence up to a multiple of 256.
    info = make_context(n_ctx=600, n_seq_max=2).info
    assert (info.n_ctx, info.n_ctx_seq, info.n_batch, info.n_ubatch, info.n_seq_max) == (1024, 512, 64, 64, 2)
    assert (info.rollback, info.can_shift, info.causal, info.kv_unified) == ("any", True, True, False)


@pytest.mark.parametrize(
    ("recipe", "rollback", "n_rs_seq"),
    [("llama", "any", 0), ("gemma4", "any", 0), ("qwen35", "checkpoint", 0), ("qwen35", "bounded", 3), ("nemotron-h", "bounded", 3)],
)
def test_how_a_model_can_be_cut_back(recipe: str, rollback: str, n_rs_seq: int) -> None:
    with Model(models.make(recipe)) as model, Context(model, n_ctx=256, n_rs_seq=n_rs_seq) as context:
        assert context.info.rollback == rollback


def test_logits_only_where_asked(make_context: Callable[..., Context]) -> None:
    context = make_context()
    with Batch(context) as batch:
        assert batch.add(0, 0, [1, 270, 271], "last") == 0
        context.decode(batch)
        assert context.logits(2).shape == (512,)
        with pytest.raises(InvalidArgumentError, match="batch entry 1 was decoded without logits"):
            context.logits(1)
        for index in (-1, 3):
            with pytest.raises(InvalidArgumentError, match=rf"batch index {index} is not in \[0, 3\)"):
                context.logits(index)


def test_a_batch_refuses_what_it_cannot_hold(make_context: Callable[..., Context]) -> None:
    context = make_context()
    with Batch(context) as batch:
        for seq, pos, tokens, message in (
            (1, 0, [1], r"sequence 1 is not in \[0, 1\)"),
            (-1, 0, [1], "sequence -1"),
            (0, -1, [1], "position -1"),
            (0, 0, [512], r"token 512 at place 0 is not in \[0, 512\)"),
            (0, 0, [1, -1], "token -1 at place 1"),
            (0, 0, [], "n_tokens 0 is not positive"),
        ):
            with pytest.raises(InvalidArgumentError, match=message):
                batch.add(seq, pos, tokens)
        assert len(batch) == 0
        with pytest.raises(LimitError, match="65 more are over n_batch 64"):
            batch.add(0, 0, [1] * 65)
        with pytest.raises(InvalidArgumentError, match="the batch is empty"):
            context.decode(batch)


def test_positions_have_to_follow(make_context: Callable[..., Context]) -> None:
    context = make_context()
    decode(context, 0, 0, [1, 270])
    with pytest.raises(InvalidArgumentError, match="upstream refused the batch"):
        decode(context, 0, 7, [271])
    decode(context, 0, 2, [271])


def test_a_full_cache_changes_nothing(make_context: Callable[..., Context]) -> None:
    context = make_context(n_ctx=256, n_seq_max=2, kv_unified=True)
    for begin in range(0, 256, 64):
        decode(context, 0, begin, [270] * 64)
    with pytest.raises(ContextFullError, match="no free cells in the KV cache for 1 more tokens"):
        decode(context, 1, 0, [270])
    assert context.range(0) == (0, 255)
    assert context.range(1) == (-1, -1)
    context.remove(0)
    decode(context, 1, 0, [270])


def test_a_batch_of_another_context(make_context: Callable[..., Context]) -> None:
    context, other = make_context(), make_context()
    with Batch(other) as batch:
        batch.add(0, 0, [1])
        with pytest.raises(InvalidArgumentError, match="belongs to another context"):
            context.decode(batch)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_seq_max": 0}, "n_seq_max 0"),
        ({"n_batch": 0}, "n_batch 0"),
        ({"n_ubatch": 0}, "n_ubatch 0"),
        ({"n_ctx": -5}, "n_ctx -5"),
        ({"n_threads": 100000}, "n_threads 100000"),
        ({"n_seq_max": 256, "n_ctx": 300}, "leaves 1 cells for each of 256 sequences"),
        ({"flash_attn": "maybe"}, "flash_attn `maybe`"),
        ({"type_k": "q3_0"}, "`q3_0` is not a KV cache type"),
    ],
)
def test_impossible_sizes(llama: Model, settings: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Context(llama, **({"n_ctx": 256} | settings))


def test_a_quantised_v_needs_flash_attention(llama: Model) -> None:
    with pytest.raises(UnsupportedError, match="flash_attn"):
        Context(llama, n_ctx=256, type_v="q8_0", flash_attn="off")


def test_cut_copy_and_shift(make_context: Callable[..., Context]) -> None:
    context = make_context(n_seq_max=2, kv_unified=True)
    tokens = prompt_tokens(0, 20)
    whole = decode(context, 0, 0, tokens)
    context.remove(0, 15)
    np.testing.assert_allclose(decode(context, 0, 15, tokens[15:]), whole, atol=0.02)
    context.copy(0, 1, 0, 15)
    assert context.range(1) == (0, 14)
    np.testing.assert_allclose(decode(context, 1, 15, tokens[15:]), whole, atol=0.02)
    context.remove(0, 5, 10)
    context.shift(0, 10, -1, -5)
    assert context.range(0) == (0, 14)
    context.keep(1)
    assert context.range(0) == (-1, -1)
    context.clear()
    assert context.range(1) == (-1, -1)
    with pytest.raises(InvalidArgumentError, match=r"\[5, 3\) is not a range"):
        context.remove(0, 5, 3)
    with pytest.raises(InvalidArgumentError, match="makes it negative"):
        context.shift(0, 2, -1, -5)


def test_a_part_can_only_be_copied_in_a_unified_cache(make_context: Callable[..., Context]) -> None:
    context = make_context(n_seq_max=2)
    decode(context, 0, 0, [1, 270, 271])
    with pytest.raises(UnsupportedError, match="the cache is not unified"):
        context.copy(0, 1, 0, 2)
    context.copy(0, 1)
    assert context.range(1) == (0, 2)


def test_recurrent_state_says_how_far_it_goes_back() -> None:
    with Model(models.make("qwen35")) as model, Context(model, n_ctx=256, n_rs_seq=2) as context:
        decode(context, 0, 0, prompt_tokens(0, 20))
        with pytest.raises(UnsupportedError, match="can be cut back by 2 tokens"):
            context.remove(0, 3)
        context.remove(0)


@pytest.mark.parametrize("recipe", ["llama", "gemma4", "qwen35", "nemotron-h"])
def test_state_bytes_restore_what_was_left(recipe: str) -> None:
    tokens = prompt_tokens(3, 40)
    with Model(models.make(recipe)) as model, Context(model, n_ctx=512, n_seq_max=2) as context:
        decode(context, 0, 0, tokens)
        saved = context.state(0)
        straight = decode(context, 0, 40, [300])
        context.remove(1)
        context.set_state(1, saved)
        np.testing.assert_allclose(decode(context, 1, 40, [300]), straight, atol=0.02)


def test_damaged_state_is_refused(make_context: Callable[..., Context]) -> None:
    context = make_context()
    decode(context, 0, 0, prompt_tokens(0, 10))
    saved = context.state(0)
    for damaged in (saved[: len(saved) // 2], saved[:8], saved + b"more"):
        with pytest.raises(StateError):
            context.set_state(0, damaged)
        assert context.range(0) == (-1, -1)
    with pytest.raises(StateError, match="the state is empty"):
        context.set_state(0, b"")
    context.set_state(0, saved)
    assert context.range(0) == (0, 9)


def test_cancel_from_another_thread(llama: Model) -> None:
    with Context(llama, n_ctx=2048, n_batch=2048, n_ubatch=16) as context, Batch(context) as batch:
        batch.add(0, 0, [270] * 2000)
        timer = threading.Timer(0.01, context.cancel)
        timer.start()
        with pytest.raises(CancelledError):
            context.decode(batch)
        timer.join()
        context.remove(0)
        decode(context, 0, 0, [1])


def test_trace_records_each_attention_node(llama: Model) -> None:
    with Context(llama, n_ctx=256, trace=True, flash_attn="on", type_k="q8_0", type_v="q8_0") as context:
        assert context.trace() == []
        decode(context, 0, 0, prompt_tokens(0, 10))
        nodes = context.trace()
        assert {node.op for node in nodes} == {"FLASH_ATTN_EXT"}
        assert {node.device for node in nodes} == {"CPU"}
        info = llama.info
        for node in nodes:
            assert node.q[1:3] == (10, info.n_head)
            assert node.k[2] == info.n_head_kv
            assert node.types[1:] == ("q8_0", "q8_0")
            assert node.mask[0] == node.k[1]
        assert sum(node.n_calls for node in nodes) == info.n_layer
        context.clear_trace()
        assert context.trace() == []


def test_trace_without_flash_attention(llama: Model) -> None:
    with Context(llama, n_ctx=256, trace=True, flash_attn="off") as context:
        decode(context, 0, 0, [1, 270])
        assert {node.op for node in context.trace()} == {"SOFT_MAX"}


def test_taps(llama: Model, make_context: Callable[..., Context]) -> None:
    context = make_context()
    with pytest.raises(InvalidArgumentError, match="the input of layer 1 is not extracted"):
        context.layer_input(1)
    context.enable_layer_input(1)
    with pytest.raises(InvalidArgumentError, match="nothing has been decoded"):
        context.layer_input(1)
    decode(context, 0, 0, [1, 270, 271])
    rows = context.layer_input(1)
    assert rows.shape == (3, llama.info.n_embd)
    assert np.isfinite(rows).all()
    assert np.abs(rows).max() > 0
    with pytest.raises(InvalidArgumentError, match=r"layer 99 is not in \[0, "):
        context.enable_layer_input(99)


def test_hidden_rows() -> None:
    with Model(models.make("qwen35")) as model, Context(model, n_ctx=256) as context:
        with pytest.raises(InvalidArgumentError, match="hidden rows are not extracted"):
            context.nextn(0)
        context.enable_nextn()
        decode(context, 0, 0, [1, 270])
        rows = [context.nextn(0), context.nextn(1)]
        assert rows[0].shape == (model.info.n_embd_out,)
        assert not np.array_equal(rows[0], rows[1])
        with pytest.raises(InvalidArgumentError, match=r"batch index 2 is not in \[0, 2\)"):
            context.nextn(2)


def test_a_sampler_of_another_model(llama: Model) -> None:
    with Model(models.make("gemma4")) as other, Context(other, n_ctx=64) as context, Sampler(llama) as sampler:
        decode(context, 0, 0, [1])
        with pytest.raises(InvalidArgumentError, match="made for another model"):
            sampler.verify(context, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_p": 1.5}, "top_p 1.5"),
        ({"min_p": -0.1}, "min_p -0.1"),
        ({"repeat_penalty": 0.0}, "repeat_penalty 0"),
        ({"grammar": "root ::= ["}, "the grammar does not parse: line 1, column 1"),
        ({"grammar": 'start ::= "a"'}, "the grammar has no rule `root`"),
    ],
)
def test_impossible_sampling(llama: Model, settings: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Sampler(llama, **settings)


def test_greedy_verification_is_the_arg_max(llama: Model, make_context: Callable[..., Context]) -> None:
    context = make_context()
    with Batch(context) as batch, Sampler(llama, temperature=0.0) as sampler:
        tokens = prompt_tokens(0, 8)
        batch.add(0, 0, tokens[:4])
        first = batch.add(0, 4, tokens[4:], "all")
        context.decode(batch)
        best = [int(context.logits(first + place).argmax()) for place in range(4)]
        assert sampler.verify(context, first + 3) == best[3:]
        assert sampler.verify(context, first, [best[0], best[1], 5]) == best[:3]
        assert sampler.verify(context, first, [5, 5, 5]) == best[:1]
        assert sampler.verify(context, first, best[:3]) == best
        with pytest.raises(InvalidArgumentError, match="batch index 8 is not in"):
            sampler.verify(context, first + 1, [1, 2, 3])


def test_a_seed_repeats(llama: Model, make_context: Callable[..., Context]) -> None:
    context = make_context()
    with Batch(context) as batch:
        batch.add(0, 0, prompt_tokens(1, 5), "last")
        context.decode(batch)
        draws = []
        for seed in (7, 7, 8):
            with Sampler(llama, seed=seed, temperature=2.0, top_k=0, top_p=1.0, min_p=0.0) as sampler:
                draws.append([sampler.verify(context, 4)[0] for _ in range(40)])
        assert draws[0] == draws[1]
        assert draws[0] != draws[2]


#: Decodes of a batch of 64 in micro-batches of 32: (sequence, first position, tokens, tokens that stay).
STEPS = [
    [(0, 0, 20, 20), (1, 0, 33, 33), (2, 0, 11, 11)],
    [(0, 20, 4, 1), (1, 33, 4, 1), (2, 11, 35, 35), (3, 0, 21, 21)],
    [(0, 21, 4, 1), (1, 34, 4, 1), (2, 46, 4, 1), (3, 21, 27, 27), (4, 0, 25, 25)],
    [(0, 22, 4, 1), (1, 35, 4, 1), (2, 47, 4, 1), (3, 48, 11, 11), (4, 25, 23, 23), (5, 0, 18, 18)],
    [(0, 23, 4, 1), (1, 36, 4, 1), (2, 48, 4, 1), (3, 59, 4, 1), (4, 48, 24, 24), (5, 18, 24, 24)],
]


def test_a_batch_of_micro_batches_keeps_the_window() -> None:
    """Patch 0033: a sliding window in a unified cache, prompts beside verify blocks, a batch longer than a micro-batch."""
    tokens = [prompt_tokens(seq, 100) for seq in range(6)]
    with Model(models.make("gemma4")) as model:
        with Context(model, n_ctx=512, n_batch=128) as alone, Batch(alone) as batch:
            batch.add(0, 0, tokens[4][:72], "all")
            alone.decode(batch)
            expected = [alone.logits(place) for place in range(48, 72)]
        with Context(model, n_ctx=2048, n_batch=64, n_ubatch=32, n_seq_max=8, kv_unified=True) as context, Batch(context) as batch:
            for step in STEPS:
                batch.clear()
                firsts = {seq: batch.add(seq, pos, tokens[seq][pos : pos + count], "all") for seq, pos, count, _ in step}
                context.decode(batch)
                got = [context.logits(firsts[4] + place) for place in range(24)] if step is STEPS[-1] else []
                for seq, pos, count, stay in step:
                    if stay < count:
                        context.remove(seq, pos + stay)
    assert max(float(np.abs(left - right).max()) for left, right in zip(got, expected, strict=True)) < 0.02


def test_shapes_that_take_turns(make_context: Callable[..., Context]) -> None:
    """Patch 0042: each shape has a graph of its own, and they do not disturb each other."""
    alone = {count: decode(make_context(n_seq_max=2), 0, 0, prompt_tokens(0, count)) for count in range(1, 40)}
    context = make_context(n_seq_max=2)
    for count in (*range(1, 40), 3, 7, 3, 39, 1, 1, 7):
        assert np.allclose(decode(context, 0, 0, prompt_tokens(0, count)), alone[count], atol=1e-3)
        decode(context, 1, 0, prompt_tokens(1, 2))
        context.remove(0)
        context.remove(1)


#: Tokens of a verify block behind the first, all rejected.
DEPTH = 15


def test_a_rejected_draft_leaves_the_window() -> None:
    """Patch 0034: a draft in the first micro-batch of a batch whose later ones need the cells that the window has passed."""
    tokens = [prompt_tokens(seq, 100) for seq in range(4)]
    with Model(models.make("gemma4")) as model:
        with Context(model, n_ctx=256, n_batch=128) as alone:
            expected = decode(alone, 0, 0, tokens[0][:82])
        sizes = {"n_ctx": 1024, "n_batch": 128, "n_ubatch": 32, "n_seq_max": 4, "n_outputs_max": 4 * (1 + DEPTH), "kv_unified": True}
        with Context(model, **sizes) as context, Batch(context) as batch:
            for seq in range(3):
                decode(context, seq, 0, tokens[seq][:80])
            # 16 cells of 256 are empty, the next ones hold the beginning of sequence 0.
            batch.add(0, 80, tokens[0][80 : 81 + DEPTH], "all")
            batch.add(3, 0, tokens[3][:70], "last")
            context.decode(batch)
            context.remove(0, 81)
            # The window is 32 tokens: the token at 81 sees those from 50 on.
            assert context.range(0)[0] <= 50
            got = decode(context, 0, 81, tokens[0][81:82])
    np.testing.assert_allclose(got, expected, atol=0.02)
