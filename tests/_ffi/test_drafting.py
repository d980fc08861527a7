"""What drafters draft, token by token: their inputs are what they should be, whatever happened to a sequence before."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from pyllm._ffi import Batch, DrafterStats, DraftRequest
from pyllm.errors import InvalidArgumentError
from tests._ffi.rounds import DEPTH, KINDS, TRUE, Link, Rounds, follow
from tests.conftest import prompt_tokens

#: Kinds whose target can be cut anywhere.
CUTTING = ["shared", "chained", "dflash", "dflash2", "model", "model-recurrent"]


def make(kind: str, **settings: object) -> Rounds:
    target, link = KINDS[kind]
    return Rounds(target, link, **settings)


@pytest.mark.parametrize("n_seq", [1, 2, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_drafts_are_what_the_tables_say(kind: str, n_seq: int) -> None:
    """With rejected drafts in between, prompts of several lengths, and sequences that sit steps out."""
    rounds = make(kind, n_seq=n_seq)
    for seq in range(n_seq):
        rounds.prompt(seq, prompt_tokens(seq, 5 + 2 * seq))
    rounds.check(*range(n_seq))
    rounds.check(*range(0, n_seq, 2), steps=2)
    rounds.check(*range(n_seq), steps=2)
    for seq, tokens in enumerate(rounds.tokens):
        assert all(right == TRUE[left] for left, right in pairwise(tokens[4 + 2 * seq :]))


@pytest.mark.parametrize("n_seq", [1, 8])
@pytest.mark.parametrize(
    ("kind", "n_decodes", "n_inject_decodes"),
    [("shared", 3, 0), ("single", 3, 1), ("nemotron", 3, 1), ("chained", 3, 3), ("dflash", 2, 1), ("dflash2", 2, 1), ("dflash-mrope", 2, 1), ("model", 3, 1)],
)
def test_decodes_of_a_step(kind: str, n_decodes: int, n_inject_decodes: int, n_seq: int) -> None:
    """All slots come up to date in one decode, which for steps is that of the first token."""
    rounds = make(kind, n_seq=n_seq)
    for seq in range(n_seq):
        rounds.prompt(seq, prompt_tokens(seq, 9))
    for _ in range(4):
        before = rounds.drafter.stats
        rounds.step(*range(n_seq))
        after = rounds.drafter.stats
        assert (after.n_decodes - before.n_decodes, after.n_inject_decodes - before.n_inject_decodes) == (n_decodes, n_inject_decodes)


@pytest.mark.parametrize("kind", KINDS)
def test_without_drafts_nothing_is_injected(kind: str) -> None:
    rounds = make(kind)
    rounds.prompt(0, prompt_tokens(0, 300))
    for _ in range(12):
        rounds.step(0, depth=0)
    assert rounds.drafter.stats == DrafterStats()
    rounds.check(0)
    assert rounds.drafter.stats.n_injected <= len(rounds.tokens[0])


@pytest.mark.parametrize("kind", ["single", "chained", "dflash"])
def test_a_long_rest_leaves_the_newest_rows(kind: str) -> None:
    """Hundreds of plain steps cost a drafter nothing, and its next draft at most 64 rows; drafts are right again at once."""
    rounds = make(kind, n_seq=2)
    rounds.prompt(0, prompt_tokens(0, 90))
    rounds.check(0)
    before = rounds.drafter.stats
    for _ in range(150):
        rounds.step(0, depth=0)
    assert rounds.drafter.stats.n_decodes == before.n_decodes
    rounds.check(0, steps=1)
    assert 32 <= rounds.drafter.stats.n_injected - before.n_injected <= 64
    rounds.check(0, steps=3)


@pytest.mark.parametrize("kind", ["single", "dflash"])
def test_a_drafter_that_rests_reads_nothing(kind: str) -> None:
    """Patch 0043. What was decoded meanwhile is a gap, and drafts are right again with the rows that follow."""
    rounds = make(kind, n_seq=2)
    for seq in range(2):
        rounds.prompt(seq, prompt_tokens(seq, 40))
    rounds.check(0, 1)
    before = rounds.drafter.stats
    rounds.drafter.rest(rest=True)
    for _ in range(20):
        rounds.step(0, 1, depth=0)
    rounds.drafter.rest(rest=False)
    for _ in range(12):
        rounds.step(0, 1, depth=0)
    rounds.check(0, 1, steps=1)
    after = rounds.drafter.stats
    assert 24 <= after.n_injected - before.n_injected <= 30
    assert after.n_failures == before.n_failures


def test_a_drafter_that_rests_knows_what_is_said() -> None:
    """Tokens are taken over with their decode, those of rejected drafts aside, whether or not they are accepted one by one."""
    lookup = Link("ngram-simple", settings={"ngram_size_n": 8, "ngram_size_m": 8})
    rounds = Rounds("llama", lookup, Link("draft-dflash", "llama-dflash", errors=1.0), n_threads=1)
    rounds.prompt(0, prompt_tokens(0, 9))
    # The target says its 95 pieces over and over: from the second time on there is something to look up.
    for number in range(90):
        rounds.drafter.rest(rest=number >= 10)
        if number % 3:
            rounds.step(0, depth=0, accept=number < 10 or number % 3 == 1)
        else:
            rounds.step(0)
    for _ in range(24):
        rounds.step(0, depth=0, accept=False)
    assert len(rounds.tokens[0]) >= 9 + 95 + 16
    last = rounds.last[0]
    [draft] = rounds.step(0)
    assert (draft.link, draft.tokens) == (0, follow(last, DEPTH))


def test_what_a_draft_model_reads_stays() -> None:
    rounds = make("model")
    rounds.prompt(0, prompt_tokens(0, 90))
    for _ in range(150):
        rounds.step(0, depth=0)
    rounds.check(0, steps=1)
    assert rounds.drafter.stats.n_injected >= 240


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_stash_is_injected(kind: str) -> None:
    target, link = KINDS[kind]
    rounds = Rounds(target, Link(link.type, link.recipe, settings={"stash_bytes": 1}), n_seq=2)
    rounds.prompt(0, prompt_tokens(0, 300))
    rounds.prompt(1, prompt_tokens(1, 20))
    rounds.step(0, 1, depth=0)
    n_rows = sum(len(tokens) for tokens in rounds.tokens)
    assert rounds.drafter.stats.n_injected == (0 if kind == "shared" else n_rows)
    rounds.check(0, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_samplers_on_the_device(kind: str) -> None:
    """The backend looks for the best tokens. Patch 0041: slots by turns."""
    target, link = KINDS[kind]
    rounds = Rounds(target, Link(link.type, link.recipe, settings={"device_sampling": True}), n_seq=4)
    for seq in range(4):
        rounds.prompt(seq, prompt_tokens(seq, 9 + seq))
    for seqs in ((0, 1, 2, 3), (0, 2), (3,), (1, 3), (0,), (0, 3)):
        rounds.check(*seqs, steps=2)


def test_rejected_rows_are_never_injected() -> None:
    rounds = make("dflash")
    rounds.prompt(0, prompt_tokens(0, 9))
    for _ in range(10):
        rounds.step(0)
    stats = rounds.drafter.stats
    assert stats.n_accepted < stats.n_drafted
    held = len(rounds.tokens[0])
    rounds.step(0)
    assert rounds.drafter.stats.n_injected == held


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_depths_of_their_own(kind: str, unified: bool) -> None:
    """A slot's block and steps are as many as it asked for, whatever the others ask for. DFlash2's graph asserts on blocks of several lengths."""
    rounds = make(kind, n_seq=3, kv_unified=unified)
    for seq in range(3):
        rounds.prompt(seq, prompt_tokens(seq, 7))
    last = list(rounds.last)
    drafts = rounds.drafter.draft([DraftRequest(seq, last[seq], 7, seq + 1) for seq in range(3)])
    assert [draft.tokens for draft in drafts] == [rounds.links[0].draft_after(last[seq], seq + 1) for seq in range(3)]


@pytest.mark.parametrize("kind", CUTTING)
@pytest.mark.parametrize("back", [0, 1, 3, 12, 30])
def test_a_reused_prefix(kind: str, back: int) -> None:
    """Cut anywhere, in the last block, the generated text or the prompt; go on with other tokens; all tables hold."""
    rounds = make(kind, n_seq=2)
    rounds.prompt(0, prompt_tokens(0, 40))
    rounds.prompt(1, prompt_tokens(1, 10))
    rounds.check(0, 1)
    end = len(rounds.tokens[0]) - back
    shared = rounds.tokens[0][:end]
    assert rounds.reuse(0, end) >= end - (kind in {"shared", "chained"})
    rounds.prompt(0, [*shared, *prompt_tokens(5, 9)[1:]])
    rounds.check(0, 1)


@pytest.mark.parametrize("kind", ["shared", "chained"])
def test_the_row_before_a_cut_is_computed_again(kind: str) -> None:
    """Far back there is no hidden row: one token less may stay. In the last decode there is."""
    rounds = make(kind)
    rounds.prompt(0, prompt_tokens(0, 40))
    rounds.check(0)
    end = len(rounds.tokens[0])
    assert rounds.drafter.reusable(0, end) == end
    rounds.drafter.truncate(0, 20)
    assert rounds.drafter.reusable(0, 20) == 19


@pytest.mark.parametrize("kind", KINDS)
def test_a_used_drafter_drafts_like_a_fresh_one(kind: str) -> None:
    """Random weights: drafts depend on every row, and on the whole memory. The used one ends where the fresh one begins to draft (B13)."""
    prompt = prompt_tokens(3, 30)
    fresh = make(kind, family="random")
    fresh.prompt(0, prompt)
    used = make(kind, family="random")
    used.prompt(0, prompt_tokens(1, 29))
    used.step(0)
    used.drafter.truncate(0, 0)
    used.context.remove(0)
    used.tokens[0] = []
    used.prompt(0, prompt)
    for _ in range(8):
        assert [draft.tokens for draft in used.step(0)] == [draft.tokens for draft in fresh.step(0)]
    assert used.tokens == fresh.tokens


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_alone_and_with_neighbours(kind: str) -> None:
    alone, among = make(kind, family="random"), make(kind, family="random", n_seq=3)
    alone.prompt(0, prompt_tokens(0, 21))
    for seq in range(3):
        among.prompt(seq, prompt_tokens(2 * seq, 21 + seq))
    for _ in range(6):
        assert alone.step(0)[0].tokens == among.step(0, 1, 2)[0].tokens


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy(kind: str, unified: bool) -> None:
    rounds = make(kind, n_seq=2, kv_unified=unified)
    rounds.prompt(0, prompt_tokens(0, 30))
    rounds.check(0)
    end = len(rounds.tokens[0])
    rounds.context.copy(0, 1)
    rounds.drafter.copy(0, 1, end)
    rounds.tokens[1], rounds.last[1] = list(rounds.tokens[0]), rounds.last[0]
    rounds.drafter.begin(1, rounds.tokens[1])
    rounds.check(1, steps=3)
    rounds.check(0, 1)


@pytest.mark.parametrize("kind", ["shared", "dflash", "model", "chained"])
def test_a_copy_of_the_beginning(kind: str) -> None:
    rounds = make(kind, n_seq=2, kv_unified=True)
    rounds.prompt(0, prompt_tokens(0, 40))
    rounds.check(0)
    rounds.context.copy(0, 1, 0, 25)
    rounds.drafter.copy(0, 1, 25)
    rounds.tokens[1] = rounds.tokens[0][:25]
    rounds.reuse(1, 25)
    rounds.prompt(1, [*rounds.tokens[0][:25], *prompt_tokens(9, 6)[1:]])
    rounds.check(0, 1)


@pytest.mark.parametrize("kind", ["dflash", "model"])
def test_a_shift(kind: str) -> None:
    rounds = make(kind)
    rounds.prompt(0, prompt_tokens(0, 60))
    rounds.check(0)
    keep, discard = 5, 30
    rounds.context.remove(0, keep, keep + discard)
    rounds.context.shift(0, keep + discard, -1, -discard)
    rounds.drafter.shift(0, keep, discard)
    del rounds.tokens[0][keep : keep + discard]
    rounds.check(0)


def test_a_memory_that_cannot_be_shifted_starts_over() -> None:
    """Step35's positions cannot be moved: its heads go on with an empty memory, and say so before."""
    rounds = make("chained")
    assert not rounds.drafter.info.can_shift
    rounds.prompt(0, prompt_tokens(0, 60))
    rounds.check(0)
    rounds.drafter.shift(0, 5, 30)
    assert rounds.drafter.stats.n_failures == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_decode_that_was_not_processed(kind: str) -> None:
    """A gap: an image was in between, or the caller forgot. Drafting goes on behind it."""
    rounds = make(kind)
    rounds.prompt(0, prompt_tokens(0, 20))
    rounds.check(0, steps=2)
    rounds.step(0, process=False, depth=0)
    rounds.step(0, depth=0)
    rounds.check(0)


def test_taps_that_were_switched_off() -> None:
    rounds = make("dflash")
    rounds.context.enable_layer_input(2, enable=False)
    with Batch(rounds.context) as batch:
        batch.add(0, 0, [1, 270])
        rounds.context.decode(batch)
        with pytest.raises(InvalidArgumentError, match="layer 2 was switched off, `draft-dflash` reads it"):
            rounds.drafter.process(batch)
    rounds = make("shared")
    rounds.context.enable_nextn(enable=False)
    with pytest.raises(InvalidArgumentError, match="hidden rows were switched off"):
        rounds.prompt(0, prompt_tokens(0, 5))


def test_a_full_cache_is_no_matter_where_it_is_shared() -> None:
    """A drafter that reads the target's cells writes none of its own: it drafts on when other sequences hold all the rest."""
    target, link = KINDS["shared"]
    rounds = Rounds(target, link, n_seq=2, n_ctx=128, kv_unified=True)
    rounds.prompt(0, prompt_tokens(0, 20))
    rounds.prompt(1, prompt_tokens(1, 2 * 128 - 20))
    draft = rounds.drafter.draft([DraftRequest(0, rounds.last[0], 20, DEPTH)])[0]
    assert draft.tokens == link.draft_after(rounds.last[0], DEPTH)
    assert rounds.drafter.stats.n_failures == 0


COPIES = """
import sys
from pathlib import Path
from pyllm import models
from pyllm._ffi import Batch, Context, Drafter, DraftRequest, Model

def memory(name):
    return next(int(line.split()[1]) << 10 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))

n = 1500
target, draft = (models.make(name, family="successor", width=8) for name in ("llama", "llama-dflash"))
with Model(target) as model, Model(draft) as small, Context(model, n_ctx=2048, n_batch=2048, n_ubatch=2048) as context, Drafter(context) as drafter:
    drafter.add("draft-dflash", small, n_max=3)
    with Batch(context) as batch:
        batch.add(0, 0, [259 + i % 97 for i in range(n)], "last")
        for _ in range(2):
            context.remove(0)
            drafter.truncate(0, 0)
            context.decode(batch)
            drafter.process(batch)
            Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
            before = memory("VmRSS")
            drafter.draft([DraftRequest(0, 259, n, 3)])
        assert drafter.stats.n_injected == 2 * n
        print(memory("VmHWM") - before, 4 * n * model.info.n_embd)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process's memory is reset by Linux")
def test_rows_are_not_copied_on_their_way() -> None:
    """A draft for which many rows are injected needs no memory of their size, not even of one of their layers, once there was one before it."""
    # What is freed goes back to the system at once, so that another copy shows.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", COPIES], env=environment, capture_output=True, text=True, check=True, timeout=120)
    grown, size = map(int, done.stdout.split())
    assert size > 2 << 20
    assert grown < size // 2
