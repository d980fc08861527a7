"""Generation by hand: a successor target, or one of another family, and a chain of drafters; greedy, several sequences in one batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from pyllm import models
from pyllm._ffi import Batch, Context, Draft, Drafter, DraftRequest, Model, Sampler
from pyllm.models.vocabulary import STALE_ID

if TYPE_CHECKING:
    from collections.abc import Iterable

SEED = 7
#: Share of the tokens after which drafters are wrong.
ERRORS = 0.3
DEPTH = 3
#: What follows each token in the end.
TRUE = dict(enumerate(map(int, models.successor(SEED))))


@dataclass(frozen=True)
class Link:
    """One drafter: its type, the recipe of its model (None: inside the target's file), and the settings of ``Drafter.add``."""

    type: str
    recipe: str | None = None
    errors: float = ERRORS
    nan_after: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def expected(self) -> dict[int, int]:
        """What it proposes after each token. A file that is a target, too, never errs."""
        return TRUE if self.recipe == "qwen35" else dict(enumerate(map(int, models.drafter_table(SEED, self.errors))))

    def draft_after(self, last: int, depth: int) -> list[int]:
        """What it drafts after ``last``.

        A block's positions know the true tokens before them; steps only what was proposed; a draft model notices that it went wrong, and so does the
        selector of DFlash2, at once.
        """
        selects = self.recipe is not None and "dflash2" in self.recipe
        proposed: list[int] = []
        for _ in range(depth):
            wrong = bool(proposed) and (self.type == "draft-simple" or selects) and proposed[-1] != last
            wrong = wrong or (selects and self.expected[last] != TRUE[last])
            proposed.append(STALE_ID if wrong else self.expected[last])
            last = proposed[-1] if self.type == "draft-mtp" else TRUE[last]
        return proposed


#: Every kind of driver, as target recipe and link.
KINDS: dict[str, tuple[str, Link]] = {
    "shared": ("gemma4", Link("draft-mtp", "gemma4-assistant")),
    "single": ("qwen35", Link("draft-mtp")),
    "nemotron": ("nemotron-h-moe", Link("draft-mtp")),
    "chained": ("step35", Link("draft-mtp")),
    "dflash": ("llama", Link("draft-dflash", "llama-dflash")),
    "dflash2": ("llama", Link("draft-dflash", "llama-dflash2")),
    "dflash-mrope": ("qwen35", Link("draft-dflash", "qwen35-dflash")),
    "model": ("llama", Link("draft-simple", "llama-draft")),
    "model-recurrent": ("llama", Link("draft-simple", "qwen35")),
}


def follow(last: int, length: int) -> list[int]:
    """The true tokens after ``last``."""
    return [last := TRUE[last] for _ in range(length)]


@cache
def open_model(recipe: str, family: str, errors: float, nan_after: str | None = None) -> Model:
    """One of each is enough for a session: the tests do not change them."""
    path = models.make(recipe, family=family, seed=SEED, error_rate=errors if family == "successor" else 0.0, nan_after=nan_after)
    return Model(path, load_mtp=True)


class Rounds:
    """``n_seq`` sequences with a drafter of ``links``, each with ``n_ctx`` cells."""

    def __init__(self, target: str, *links: Link, n_seq: int = 1, family: str = "successor", n_ctx: int = 512, **settings: Any) -> None:
        own = next((link for link in links if link.recipe is None and link.type == "draft-mtp"), None)
        self.model = open_model(target, family, own.errors if own else 0.0, own.nan_after if own else None)
        recurrent = self.model.info.recurrent or self.model.info.hybrid
        self.context = Context(self.model, **({"n_ctx": n_ctx * n_seq, "n_seq_max": n_seq, "n_batch": 256, "n_rs_seq": 8 if recurrent else 0} | settings))
        self.links = links
        self.family = family
        self.drafter = self.make_drafter()
        self.batch = Batch(self.context)
        self.tokens: list[list[int]] = [[] for _ in range(n_seq)]
        self.last = [0] * n_seq

    def make_drafter(self) -> Drafter:
        """Another chain like the one in use."""
        drafter = Drafter(self.context)
        for link in self.links:
            model = open_model(link.recipe, self.family, link.errors, link.nan_after) if link.recipe else None
            drafter.add(link.type, model, **({"n_max": DEPTH} | link.settings))
        return drafter

    def sample(self, index: int, draft: Iterable[int] = ()) -> list[int]:
        """Greedy verification."""
        with Sampler(self.model, temperature=0.0) as sampler:
            return sampler.verify(self.context, index, list(draft))

    def prompt(self, seq: int, tokens: list[int]) -> None:
        """Compute what the sequence lacks of a prompt, and start to generate."""
        held = len(self.tokens[seq])
        assert self.tokens[seq] == tokens[:held]
        for begin in range(held, len(tokens), 200):
            part = tokens[begin : begin + 200]
            self.batch.clear()
            self.batch.add(seq, begin, part, "last")
            self.context.decode(self.batch)
            self.drafter.process(self.batch)
        self.last[seq] = self.sample(len(part) - 1)[0]
        self.tokens[seq] = list(tokens)
        self.drafter.begin(seq, tokens)

    def step(self, *seqs: int, depth: int = DEPTH, process: bool = True, accept: bool = True) -> list[Draft]:
        """Draft for all sequences at once, verify in one decode, take over what was accepted. Returns the drafts."""
        wishes = [DraftRequest(seq, self.last[seq], len(self.tokens[seq]), depth) for seq in seqs]
        drafts = self.drafter.draft(wishes) if depth > 0 else [Draft([], -1)] * len(seqs)
        self.batch.clear()
        first = [self.batch.add(seq, len(self.tokens[seq]), [self.last[seq], *draft.tokens], "all") for seq, draft in zip(seqs, drafts, strict=True)]
        self.context.decode(self.batch)
        if process:
            self.drafter.process(self.batch)
        for seq, draft, index in zip(seqs, drafts, first, strict=True):
            ids = self.sample(index, draft.tokens)
            gained = [self.last[seq], *ids[:-1]]
            self.tokens[seq] += gained
            if accept:
                self.drafter.accept(seq, len(ids) - 1, gained)
            self.context.remove(seq, len(self.tokens[seq]))
            self.last[seq] = ids[-1]
        return drafts

    def check(self, *seqs: int, steps: int = 6) -> None:
        """Drafts are what the first link's table says, and as many are accepted as are right."""
        link = self.links[0]
        before = self.drafter.stats
        n_right = 0
        for _ in range(steps):
            last = [self.last[seq] for seq in seqs]
            for token, draft in zip(last, self.step(*seqs), strict=True):
                assert draft.tokens == link.draft_after(token, DEPTH)
                assert draft.link == 0
                places = zip(draft.tokens, follow(token, DEPTH), strict=True)
                n_right += next((place for place, (drafted, true) in enumerate(places) if drafted != true), DEPTH)
        after = self.drafter.stats
        assert after.n_accepted - before.n_accepted == n_right
        assert after.n_drafted - before.n_drafted == DEPTH * steps * len(seqs)
        assert after.n_failures == 0

    def reuse(self, seq: int, end: int) -> int:
        """Keep the first ``end`` tokens of a sequence, for a prompt that begins with them. Returns how many the target has kept."""
        self.drafter.truncate(seq, end)
        kept = self.drafter.reusable(seq, end)
        assert max(0, end - 1) <= kept <= end
        self.context.remove(seq, kept)
        self.tokens[seq] = self.tokens[seq][:kept]
        return kept
