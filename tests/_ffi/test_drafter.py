"""Drafters at the C ABI: what fits, what is refused, and losslessness of one hand-driven round."""

from __future__ import annotations

import pytest

from pyllm import models
from pyllm._ffi import Batch, Context, Drafter, DraftRequest, Model, Sampler
from pyllm.errors import IncompatibleError, InvalidArgumentError, PyllmError, UnsupportedError
from tests.conftest import prompt_tokens

PAIRS = [
    ("gemma4", "gemma4-assistant", "draft-mtp"),
    ("qwen35", None, "draft-mtp"),
    ("step35", None, "draft-mtp"),
    ("llama", "llama-dflash", "draft-dflash"),
]


def make(target: str, types: list[str], draft: str | None = None, **settings: object) -> tuple[Model, Context, Drafter]:
    model = Model(models.make(target))
    context = Context(model, n_ctx=512, n_seq_max=2, n_rs_seq=3)
    draft_model = Model(models.make(draft)) if draft else None
    return model, context, Drafter(context, types, draft_model, **settings)


@pytest.mark.parametrize(
    ("target", "draft", "kind", "shares", "chained", "n_max"),
    [
        ("gemma4", "gemma4-assistant", "draft-mtp", True, False, 3),
        ("qwen35", None, "draft-mtp", False, False, 3),
        ("step35", None, "draft-mtp", False, True, 3),
        ("llama", "llama-dflash", "draft-dflash", False, False, 7),
        ("llama", None, "ngram-map-k", False, False, 48),
    ],
)
def test_what_a_drafter_turned_out_to_be(  # noqa: PLR0917 - a row of the table
    target: str, draft: str | None, kind: str, shares: bool, chained: bool, n_max: int
) -> None:
    info = make(target, [kind], draft)[2].info
    assert (info.shares_memory, info.chained_heads, info.n_max, info.n_seq) == (shares, chained, n_max, 2)
    assert info.has_context == kind.startswith("draft")


def test_depth_is_cut_to_block_and_heads() -> None:
    assert make("llama", ["draft-dflash"], "llama-dflash", n_max=100)[2].info.n_max == 7
    assert make("step35", ["draft-mtp"], n_max=100)[2].info.n_max == 3


def test_a_block_drafter_holds_all_slots_in_one_graph() -> None:
    model = Model(models.make("llama"))
    context = Context(model, n_ctx=2048, n_seq_max=8, n_batch=256, n_ubatch=16)
    drafter = Drafter(context, ["draft-dflash"], Model(models.make("llama-dflash")), n_max=7)
    assert drafter.info.n_ubatch >= 8 * (7 + 1)


@pytest.mark.parametrize(
    ("target", "draft", "kind", "error", "message"),
    [
        ("llama", None, "draft-mtp", UnsupportedError, "has no prediction heads"),
        ("llama", "llama-dflash", "draft-mtp", UnsupportedError, "`dflash`\\) has no prediction heads"),
        ("llama", "qwen35", "draft-dflash", UnsupportedError, "architecture `qwen35` is no `draft-dflash` drafter"),
        ("llama", None, "draft-dflash", UnsupportedError, "needs a draft model"),
        ("llama", "gemma4-assistant", "draft-mtp", IncompatibleError, "reads the KV cache of a `gemma4` target"),
        ("llama-other-vocab", "llama-dflash", "draft-dflash", IncompatibleError, "the drafter's vocabulary has 512 tokens, the target's 768"),
        ("llama", "llama-dflash", "ngram-map-k", InvalidArgumentError, "uses no draft model"),
        ("llama", None, "draft-eagle9", InvalidArgumentError, "no drafter type is named `draft-eagle9`"),
        ("llama", None, "ngram-mod,ngram-mod", InvalidArgumentError, "given twice"),
    ],
)
def test_what_does_not_belong_together(target: str, draft: str | None, kind: str, error: type[PyllmError], message: str) -> None:
    with pytest.raises(error, match=message):
        make(target, kind.split(","), draft)


def test_two_draft_contexts_at_once() -> None:
    with pytest.raises(UnsupportedError, match="together need two draft contexts"):
        make("qwen35", ["draft-mtp", "draft-dflash"], "qwen35-dflash")


def test_a_target_without_layer_inputs() -> None:
    """Patch 0010: without it the process dies here. The context goes on without the tap."""
    model = Model(models.make("step35"))
    context = Context(model, n_ctx=256)
    with pytest.raises(UnsupportedError, match="architecture `step35` cannot hand out its layer inputs"):
        context.enable_layer_input(1)
    with Batch(context) as batch, Sampler(model, temperature=0.0) as sampler:
        batch.add(0, 0, prompt_tokens(0, 5), "last")
        context.decode(batch)
        assert len(sampler.verify(context, 4)) == 1


@pytest.mark.parametrize("settings", [{"n_max": 5000}, {"p_min": 1.5}, {"n_threads": -1}, {"ngram_size_n": 2000}])
def test_sizes_out_of_range(settings: dict[str, int]) -> None:
    with pytest.raises(InvalidArgumentError):
        make("llama", ["ngram-map-k"], **settings)


def test_requests_are_checked() -> None:
    _, context, drafter = make("qwen35", ["draft-mtp"])
    for request, message in (
        (DraftRequest(5, 270, 0, 3), r"sequence 5 is not in \[0, 2\)"),
        (DraftRequest(0, 999, 0, 3), "token 999"),
        (DraftRequest(0, 270, -1, 3), "position -1 is negative"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            drafter.draft([request])
    with pytest.raises(InvalidArgumentError, match="sequence 0 is asked for twice"):
        drafter.draft([DraftRequest(0, 270, 0, 1)] * 2)
    with pytest.raises(InvalidArgumentError, match=r"n_accepted 2 is not in \[0, 0\]"):
        drafter.accept(0, 2, [])
    with pytest.raises(InvalidArgumentError, match="over the 0 tokens"):
        drafter.shift(0, 3, 4)
    with Batch(context) as batch:
        batch.add(0, 0, [1])
        with pytest.raises(InvalidArgumentError, match="the target's last decode had 0"):
            drafter.process(batch)


@pytest.mark.parametrize(("target", "draft", "kind"), PAIRS)
def test_a_round_by_hand(target: str, draft: str | None, kind: str) -> None:
    """Successor drafters that never err: every draft is accepted whole, so rows and positions are handed over right."""
    model = Model(models.make(target, family="successor"))
    context = Context(model, n_ctx=512, n_rs_seq=3)
    drafter = Drafter(context, [kind], Model(models.make(draft, family="successor")) if draft else None, n_max=3)
    tokens = prompt_tokens(0, 12)
    with Batch(context) as batch, Sampler(model, temperature=0.0) as sampler:
        batch.add(0, 0, tokens, "last")
        context.decode(batch)
        drafter.process(batch)
        drafter.begin(0, tokens)
        last = sampler.verify(context, len(tokens) - 1)[0]
        for _ in range(5):
            pos = len(tokens)
            [drafted] = drafter.draft([DraftRequest(0, last, pos, 3)])
            assert len(drafted) == 3
            batch.clear()
            first = batch.add(0, pos, [last, *drafted], "all")
            context.decode(batch)
            drafter.process(batch)
            ids = sampler.verify(context, first, drafted)
            assert ids[:-1] == drafted
            tokens += [last, *ids[:-1]]
            drafter.accept(0, len(ids) - 1, [last, *ids[:-1]])
            drafter.truncate(0, len(tokens))
            last = ids[-1]
    assert drafter.stats.n_drafted == drafter.stats.n_accepted == 15
    assert drafter.stats.n_failures == 0
