"""Drafters at the C ABI: what fits, what is refused, and how a chain works together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pyllm import models
from pyllm._ffi import Batch, Context, Drafter, DrafterStats, DraftRequest, Model, Sampler
from pyllm.errors import IncompatibleError, InvalidArgumentError, PyllmError, UnsupportedError
from tests._ffi.rounds import DEPTH, KINDS, Link, Rounds
from tests.conftest import prompt_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence


def make(target: str, types: Sequence[str], draft: str | None = None, **settings: object) -> tuple[Model, Context, Drafter]:
    model = Model(models.make(target))
    context = Context(model, n_ctx=512, n_seq_max=2, n_rs_seq=3)
    drafter = Drafter(context)
    for kind in types:
        drafter.add(kind, Model(models.make(draft)) if draft else None, **settings)
    return model, context, drafter


@pytest.mark.parametrize(
    ("target", "draft", "kind", "shares", "chained", "n_max"),
    [
        ("gemma4", "gemma4-assistant", "draft-mtp", True, False, 3),
        ("qwen35", None, "draft-mtp", False, False, 3),
        ("step35", None, "draft-mtp", False, True, 3),
        ("llama", "llama-dflash", "draft-dflash", False, False, 7),
        ("llama", "llama-dflash2", "draft-dflash", False, False, 7),
        ("llama", "llama-draft", "draft-simple", False, False, 3),
        ("llama", None, "ngram-map-k", False, False, 48),
    ],
)
def test_what_a_drafter_turned_out_to_be(  # noqa: PLR0917 - a row of the table
    target: str, draft: str | None, kind: str, shares: bool, chained: bool, n_max: int
) -> None:
    drafter = make(target, [kind], draft)[2]
    [link] = drafter.links
    assert (link.type, link.shares_memory, link.chained_heads, link.n_max) == (kind, shares, chained, n_max)
    assert link.has_context == kind.startswith("draft")
    assert link.stats == DrafterStats()
    info = drafter.info
    assert (info.n_max, info.n_seq, info.n_links, info.needs_rows) == (n_max, 2, 1, kind.startswith("draft"))


def test_depth_is_cut_to_block_and_heads() -> None:
    assert make("llama", ["draft-dflash"], "llama-dflash", n_max=100)[2].info.n_max == 7
    assert make("step35", ["draft-mtp"], n_max=100)[2].info.n_max == 3
    assert make("llama", ["ngram-map-k"], n_max=5)[2].info.n_max == 5


def test_a_block_drafter_holds_all_slots_in_one_graph() -> None:
    model = Model(models.make("llama"))
    context = Context(model, n_ctx=2048, n_seq_max=8, n_batch=256, n_ubatch=16)
    drafter = Drafter(context)
    drafter.add("draft-dflash", Model(models.make("llama-dflash")), n_max=7)
    assert drafter.links[0].n_ubatch >= 8 * (7 + 1)
    assert drafter.links[0].block_size == 8


@pytest.mark.parametrize(
    ("target", "draft", "kind", "error", "message"),
    [
        ("llama", None, "draft-mtp", UnsupportedError, "has no prediction heads"),
        ("llama", "llama-dflash", "draft-mtp", UnsupportedError, "`dflash`\\) has no prediction heads"),
        ("llama", "qwen35", "draft-dflash", UnsupportedError, "architecture `qwen35` is no `draft-dflash` drafter"),
        ("llama", None, "draft-dflash", UnsupportedError, "needs a draft model"),
        ("llama", None, "draft-simple", UnsupportedError, "needs a draft model"),
        ("llama", "llama-dflash", "draft-simple", UnsupportedError, "architecture `dflash` cannot draft by itself"),
        ("llama", "llama-other-vocab", "draft-simple", IncompatibleError, "512: more than 128 apart"),
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


def test_a_refused_link_leaves_the_chain_as_it_was() -> None:
    drafter = make("llama", ["ngram-map-k"])[2]
    with pytest.raises(UnsupportedError):
        drafter.add("draft-mtp")
    assert [link.type for link in drafter.links] == ["ngram-map-k"]


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


@pytest.mark.parametrize("settings", [{"n_max": 5000}, {"p_min": 1.5}, {"n_threads": -1}, {"ngram_size_n": 2000}, {"p_min": float("nan")}])
def test_sizes_out_of_range(settings: dict[str, int]) -> None:
    with pytest.raises(InvalidArgumentError):
        make("llama", ["ngram-map-k"], **settings)


@pytest.mark.parametrize(("kind", "draft", "n_max"), [("draft-dflash", "llama-dflash", 7), ("draft-simple", "llama-draft", 20)])
def test_a_draft_memory_below_one_draft(kind: str, draft: str, n_max: int) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"n_ctx 30 of the drafter leaves 15 cells for one sequence; drafts of {n_max} tokens need"):
        make("llama", [kind], draft, n_ctx=30, n_max=n_max)


def test_requests_are_checked() -> None:
    _, context, drafter = make("qwen35", ["draft-mtp"])
    for request, message in (
        (DraftRequest(5, 270, 0, 3), r"sequence 5 is not in \[0, 2\)"),
        (DraftRequest(0, 999, 0, 3), "token 999"),
        (DraftRequest(0, 270, -1, 3), "position -1 is negative"),
        (DraftRequest(0, 270, 2**31 - 2, 3), r"over 2\^31"),
        (DraftRequest(0, 270, 0, 3, temperature=float("nan")), "temperature nan is not a number"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            drafter.draft([request])
    with pytest.raises(InvalidArgumentError, match="sequence 0 is asked for twice"):
        drafter.draft([DraftRequest(0, 270, 0, 1)] * 2)
    with pytest.raises(InvalidArgumentError, match=r"n_accepted 2 is not in \[0, 0\]"):
        drafter.accept(0, 2, [])
    with pytest.raises(InvalidArgumentError, match="over the 0 tokens"):
        drafter.shift(0, 3, 4)
    with pytest.raises(InvalidArgumentError, match="copied to itself"):
        drafter.copy(1, 1, 0)
    for call in (lambda: drafter.truncate(0, -1), lambda: drafter.reusable(2, 0), lambda: drafter.why(9), lambda: drafter.state(-1)):
        with pytest.raises(InvalidArgumentError):
            call()
    with Batch(context) as batch:
        batch.add(0, 0, [1])
        with pytest.raises(InvalidArgumentError, match="the target's last decode had 0"):
            drafter.process(batch)


def test_a_draft_for_a_sequence_that_holds_nothing() -> None:
    """Impossible positions give drafts of whatever worth, or none; never an error."""
    for target, link in KINDS.values():
        rounds = Rounds(target, link, n_seq=2)
        for pos in (0, 7, 511, 100_000):
            drafts = rounds.drafter.draft([DraftRequest(0, 270, pos, DEPTH), DraftRequest(1, 271, 0, DEPTH)])
            assert all(len(draft.tokens) <= DEPTH for draft in drafts)
        rounds.drafter.truncate(0, 0)
        rounds.drafter.truncate(1, 0)
        for seq in range(2):
            rounds.prompt(seq, prompt_tokens(seq, 9))
        assert [draft.tokens for draft in rounds.step(0, 1)] == [link.draft_after(last, DEPTH) for last in map(_last_before, rounds.tokens)]


def _last_before(tokens: list[int]) -> int:
    return tokens[9]


class TestChain:
    """Two drafters with a context each, and an n-gram index."""

    def test_the_next_link_drafts_where_the_first_does_not(self) -> None:
        """A head that is never sure enough, and a block drafter of another file: each has a context of its own (B19)."""
        sure = Link("draft-mtp", settings={"p_min": 1.0})
        block = KINDS["dflash-mrope"][1]
        rounds = Rounds("qwen35", sure, block, n_seq=2)
        for seq in range(2):
            rounds.prompt(seq, prompt_tokens(seq, 9 + seq))
        for _ in range(5):
            last = list(rounds.last)
            drafts = rounds.step(0, 1)
            assert [draft.link for draft in drafts] == [1, 1]
            assert [draft.tokens for draft in drafts] == [block.draft_after(token, DEPTH) for token in last]
        head, second = (link.stats for link in rounds.drafter.links)
        assert (head.n_drafts, second.n_drafts) == (0, 10)
        assert rounds.drafter.stats.n_accepted == second.n_accepted

    def test_who_did_not_draft_keeps_up(self) -> None:
        """The n-gram index drafts most tokens once the text repeats; what it drafted wrong is never injected into the head's memory."""
        head = Link("draft-mtp")
        rounds = Rounds("qwen35", Link("ngram-map-k", settings={"ngram_size_n": 2, "ngram_size_m": 3, "n_max": DEPTH}), head)
        text = prompt_tokens(0, 12)
        rounds.prompt(0, [*text, *text[1:], *text[1:6]])
        seen = set()
        for _ in range(40):
            last = rounds.last[0]
            [draft] = rounds.step(0)
            seen.add(draft.link)
            if draft.link == 1:
                assert draft.tokens == head.draft_after(last, DEPTH)
        assert seen == {0, 1}

    def test_an_empty_chain_drafts_nothing(self) -> None:
        rounds = Rounds("llama")
        rounds.prompt(0, prompt_tokens(0, 9))
        [draft] = rounds.step(0)
        assert (draft.tokens, draft.link) == ([], -1)
        assert rounds.drafter.info.n_max == 0


def test_short_drafts_are_dropped() -> None:
    target, link = KINDS["model"]
    rounds = Rounds(target, Link(link.type, link.recipe, settings={"n_min": 3}))
    rounds.prompt(0, prompt_tokens(0, 9))
    assert rounds.drafter.draft([DraftRequest(0, rounds.last[0], 9, 2)])[0].tokens == []
    assert len(rounds.drafter.draft([DraftRequest(0, rounds.last[0], 9, 3)])[0].tokens) == 3
