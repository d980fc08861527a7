"""Both kinds of verification draw from the distribution of plain sampling, and exact match repeats its text."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pyllm._ffi import Batch, Context, Model, Sampler
from pyllm._ffi.door import check, ffi, lib
from pyllm.errors import InvalidArgumentError
from tests.conftest import prompt_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WIDTH = 10  # entries of a drafted token's distribution
TOKENS = [300, 301, 302, 303, 304, 305, 306, 307]
N = len(TOKENS)
PLACE = {token: place for place, token in enumerate(TOKENS)}
PREFIX = [1, 301, 303]
PLAIN_SETTINGS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


@dataclass
class Rows:
    """Logits after the prefix, after each first token, and after each pair, decoded once.

    ``index[a, b]`` is the batch entry of the prefix's last token in the sequence that goes on with tokens ``a`` and ``b``.
    """

    context: Context
    index: np.ndarray
    first: np.ndarray = field(default_factory=lambda: np.zeros(0))  # [N]
    second: np.ndarray = field(default_factory=lambda: np.zeros(0))  # [N, N]


def writable(context: Context, index: int) -> np.ndarray:
    """The row of logits itself, as the sampler reads it."""
    row, width = ffi.new("const float **"), ffi.new("int32_t *")
    check(lib.pyllm_context_get_logits(context._pointer, index, row, width))
    return np.frombuffer(ffi.buffer(ffi.cast("float *", row[0]), 4 * width[0]), np.float32)


@pytest.fixture(scope="module")
def rows(llama: Model) -> Iterator[Rows]:
    with Context(llama, n_ctx=1024, n_batch=512, n_ubatch=512, n_seq_max=N * N, kv_unified=True) as context, Batch(context) as batch:
        index = np.zeros((N, N), int)
        for a in range(N):
            for b in range(N):
                batch.add(a * N + b, 0, PREFIX[:-1])
                index[a, b] = batch.add(a * N + b, len(PREFIX) - 1, [PREFIX[-1], TOKENS[a], TOKENS[b]], "all")
        context.decode(batch)
        for entry in np.unique([index, index + 1, index + 2]):
            writable(context, int(entry))[:] *= 0.1  # the model's own are too far apart for a distribution with many likely tokens
        made = Rows(context, index)
        made.first = context.logits(int(index[0, 0]))[TOKENS].astype(float)
        made.second = np.array([context.logits(int(index[a, 0]) + 1)[TOKENS] for a in range(N)]).astype(float)
        yield made


@dataclass
class Target:
    """The chain, written a second time: what plain sampling has to be distributed as."""

    settings: dict[str, Any]
    prompt: tuple[int, ...] = ()
    allowed: tuple[tuple[int, ...], ...] = (tuple(range(N)), tuple(range(N)))

    def distribution(self, logits: np.ndarray, history: list[int], step: int) -> np.ndarray:
        settings = PLAIN_SETTINGS | self.settings
        values = logits.copy()
        penalty = settings.get("repeat_penalty", 1.0)
        for place in set(history):
            values[place] = values[place] * penalty if values[place] <= 0 else values[place] / penalty
        values[[place for place in range(N) if place not in self.allowed[step]]] = -np.inf
        order = np.argsort(-values, kind="stable")
        if settings["top_k"] > 0:
            values[order[settings["top_k"] :]] = -np.inf
        weights = np.exp(values - values.max())
        reached = np.cumsum(weights[order]) / weights.sum()
        values[order[1:][reached[:-1] >= settings["top_p"]]] = -np.inf
        values[weights < settings["min_p"]] = -np.inf
        weights = np.exp((values - values.max()) / settings["temperature"])
        return weights / weights.sum()

    def joint(self, rows: Rows) -> np.ndarray:
        prompt = [PLACE[token] for token in self.prompt if token in PLACE]
        first = self.distribution(rows.first, prompt, 0)
        return np.array([first[a] * self.distribution(rows.second[a], [*prompt, a], 1) for a in range(N)])

    @property
    def grammar(self) -> str:
        if len(self.allowed[0]) == len(self.allowed[1]) == N:
            return ""
        steps = [" | ".join(f"<[{TOKENS[place]}]>" for place in step) for step in self.allowed]
        return f"root ::= ({steps[0]}) ({steps[1]}) <[{TOKENS[0]}]>*"

    def sampler(self, model: Model, seed: int) -> Sampler:
        bias = {token: float("-inf") for token in range(512) if token not in PLACE}
        made = Sampler(model, seed=seed, logit_bias=bias, grammar=self.grammar, **(PLAIN_SETTINGS | self.settings))
        made.accept(self.prompt, generated=False)
        return made

    @property
    def stateful(self) -> bool:
        return bool(self.grammar) or "repeat_penalty" in self.settings


PLAIN = Target({})
TARGETS = {
    "plain": PLAIN,
    "cold": Target({"temperature": 0.5}),
    "hot": Target({"temperature": 1.5}),
    "top-k": Target({"top_k": 3}),
    "top-p": Target({"top_p": 0.7}),
    "min-p": Target({"min_p": 0.3}),
    "penalty": Target({"repeat_penalty": 1.8, "penalty_last_n": 16}, prompt=(301, 301, 303)),
    "grammar": Target({"top_k": 2}, allowed=((0, 1, 2), (1, 3, 4, 5))),
}


def proposals(kind: str, joint: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What drafts come from: of the first token [N], and of the second after each first [N, N]."""
    first = joint.sum(1)
    second = np.where(first[:, None] > 0, joint / np.maximum(first[:, None], 1e-30), 1 / N)
    both = [first, second]
    if kind == "near":
        both = [0.9 * part + 0.1 / N for part in both]
    elif kind == "far":
        both = [1.0 / (part + 0.05) for part in both]
    elif kind == "outside":
        both = [np.where(part > 0, 0.1, 1.0) for part in both]
    elif kind == "certain":
        both = [np.eye(N)[3] + 0 * part for part in both]
    return both[0] / both[0].sum(), both[1] / both[1].sum(1, keepdims=True)


def as_q(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``q`` of a draft of two, padded with unused places."""
    ids, probs = np.full((2, WIDTH), -1, np.int32), np.zeros((2, WIDTH), np.float32)
    for step, part in enumerate((first, second)):
        ids[step, :N], probs[step, :N] = np.where(part > 0, TOKENS, -1), part
    return ids, probs


def as_buffers(q: tuple[np.ndarray, np.ndarray]) -> tuple[Any, Any]:
    """The form in which a drafter hands ``q`` over."""
    return ffi.new("int32_t[]", q[0].ravel().tolist()), ffi.new("float[]", q[1].ravel().tolist())


def drafts(generator: np.random.Generator, first: np.ndarray, second: np.ndarray, n: int) -> np.ndarray:
    """``n`` drafts of two places, shape [n, 2]."""
    one = generator.choice(N, n, p=first)
    two = (generator.random(n)[:, None] > np.cumsum(second, 1)[one]).sum(1)
    return np.stack([one, np.minimum(two, N - 1)], 1)


def draw_pairs(rows: Rows, model: Model, target: Target, *, mode: str, kind: str, n: int) -> tuple[Counter[tuple[int, int]], int]:
    """Counts of the first two tokens of ``n`` generations, and how many drafted tokens were taken."""
    first, second = proposals(kind, target.joint(rows))
    generator = np.random.default_rng(20)
    drafted = drafts(generator, first, second, n).tolist()
    q = [as_buffers(as_q(first, second[a])) for a in range(N)]
    index = rows.index.tolist()
    pairs: Counter[tuple[int, int]] = Counter()
    taken = 0
    with target.sampler(model, 11) as sampler:
        state = sampler.state()
        for trial, (a, b) in enumerate(drafted):
            if target.stateful:  # the same sampler with another seed
                sampler.set_state(state[:24] + struct.pack("<I", trial) + state[28:])
            if mode == "plain":
                ids = sampler.verify(rows.context, index[0][0])
            else:
                ids = sampler.verify(rows.context, index[a][b], (TOKENS[a], TOKENS[b]), q[a] if mode == "rejection" else None)
                taken += len(ids) - 1
            if len(ids) == 1:
                ids += sampler.verify(rows.context, index[PLACE[ids[0]]][0] + 1)
            pairs[PLACE[ids[0]], PLACE[ids[1]]] += 1
    return pairs, taken


def chi_square(pairs: Counter[tuple[int, int]], joint: np.ndarray) -> float:
    """How far the counts are from the expectation, in standard deviations of a normal variable (Wilson and Hilferty)."""
    n = sum(pairs.values())
    observed = np.array([[pairs[a, b] for b in range(N)] for a in range(N)]).ravel()
    expected = n * joint.ravel()
    assert observed[joint.ravel() == 0].sum() == 0, "a token was drawn whose probability is zero"
    rare = expected < 8
    cells = [(observed[~rare], expected[~rare]), (observed[rare].sum(keepdims=True), expected[rare].sum(keepdims=True))]
    keep = [(o, e) for part in cells for o, e in zip(*part, strict=True) if e > 5]
    freedom = max(len(keep) - 1, 1)
    statistic = sum((o - e) ** 2 / e for o, e in keep)
    return float(((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / (2 / (9 * freedom)) ** 0.5)


DRAWS = 100_000  # pairs of tokens in the slow suite
FEW = DRAWS // 2
SIGMAS = 4.9  # 1 in 2,000,000; the seeds are fixed

CASES = [
    ("plain", "plain", "near"),
    ("plain", "exact", "near"),
    ("plain", "rejection", "near"),
    ("cold", "rejection", "near"),
    ("hot", "rejection", "far"),
    ("hot", "rejection", "certain"),
    ("top-k", "plain", "near"),
    ("top-k", "exact", "outside"),
    ("top-k", "rejection", "outside"),
    ("top-p", "rejection", "far"),
    ("min-p", "rejection", "outside"),
    ("penalty", "plain", "near"),
    ("penalty", "exact", "near"),
    ("penalty", "rejection", "far"),
    ("grammar", "plain", "near"),
    ("grammar", "exact", "far"),
    ("grammar", "rejection", "far"),
]
QUICK = [
    ("plain", "plain", "near"),
    ("plain", "exact", "near"),
    ("plain", "rejection", "near"),
    ("top-k", "rejection", "outside"),
    ("top-p", "rejection", "far"),
    ("penalty", "exact", "near"),
    ("penalty", "rejection", "far"),
    ("grammar", "exact", "far"),
    ("grammar", "rejection", "far"),
]


def check_joint_distribution(llama: Model, rows: Rows, case: tuple[str, str, str], n: int) -> None:
    name, mode, kind = case
    pairs, _ = draw_pairs(rows, llama, TARGETS[name], mode=mode, kind=kind, n=n)
    assert sum(pairs.values()) == n
    assert chi_square(pairs, TARGETS[name].joint(rows)) < SIGMAS


@pytest.mark.parametrize("case", QUICK, ids="-".join)
def test_joint_distribution(llama: Model, rows: Rows, case: tuple[str, str, str]) -> None:
    check_joint_distribution(llama, rows, case, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_joint_distribution_of_many(llama: Model, rows: Rows, case: tuple[str, str, str]) -> None:
    check_joint_distribution(llama, rows, case, DRAWS)


def test_the_statistic_tells_distributions_apart(llama: Model, rows: Rows) -> None:
    pairs, _ = draw_pairs(rows, llama, PLAIN, mode="plain", kind="near", n=FEW)
    assert chi_square(pairs, Target({"temperature": 1.05}).joint(rows)) > SIGMAS
    assert chi_square(pairs, Target({"temperature": 1.0, "min_p": 0.0, "repeat_penalty": 1.3}, prompt=(301,)).joint(rows)) > SIGMAS


def test_acceptance_is_what_p_and_q_have_in_common(llama: Model, rows: Rows) -> None:
    """The first token of a draft is taken with probability sum(min(p, q)): more often than by exact match."""
    p = PLAIN.joint(rows).sum(1)
    shares = {}
    for mode in ("exact", "rejection"):
        first, second = proposals("near", PLAIN.joint(rows))
        generator = np.random.default_rng(3)
        with PLAIN.sampler(llama, 5) as sampler:
            taken = 0
            for a, _ in drafts(generator, first, second, 20_000).tolist():
                ids, probs = as_q(first, second[a])
                q = (ids[:1], probs[:1]) if mode == "rejection" else None
                taken += len(sampler.verify(rows.context, int(rows.index[a, 0]), (TOKENS[a],), q)) - 1
        shares[mode] = taken / 20_000
    first, _ = proposals("near", PLAIN.joint(rows))
    assert shares["rejection"] == pytest.approx(np.minimum(p, first).sum(), abs=0.02)
    assert shares["exact"] == pytest.approx((p * first).sum(), abs=0.02)


def generate(model: Model, context: Context, sampler: Sampler, n: int, draft: Callable[[int], list[int]] | None = None) -> list[int]:
    """``n`` tokens after a prompt; ``draft(n)`` proposes what follows token ``n``."""
    prompt = prompt_tokens(4, 9)
    context.clear()
    sampler.accept(prompt, generated=False)
    with Batch(context) as batch:
        first = batch.add(0, 0, prompt, "last")
        context.decode(batch)
        made = sampler.verify(context, first + len(prompt) - 1)
        length = len(prompt)
        while len(made) < n:
            proposed = draft(len(made)) if draft else []
            batch.clear()
            first = batch.add(0, length, [made[-1], *proposed], "all")
            context.decode(batch)
            ids = sampler.verify(context, first, proposed)
            made += ids
            length += len(ids)
            context.remove(0, length)
    return made[:n]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 2.0, "top_k": 0, "top_p": 0.9, "min_p": 0.0, "repeat_penalty": 1.3, "frequency_penalty": 0.2},
        {"temperature": 1.5, "grammar": 'root ::= ([a-m]+ [0-9]? " ")+', "presence_penalty": 0.5},
        {"temperature": 1.2, "typical_p": 0.8, "top_n_sigma": 2.0, "dry_multiplier": 0.8},
        {"temperature": 0.0, "grammar": "root ::= ([a-c] [x-z])+"},
    ],
)
def test_exact_match_repeats_plain_sampling(llama: Model, make_context: Callable[..., Context], settings: dict[str, Any]) -> None:
    context = make_context(n_ctx=512, n_threads=1)
    with Sampler(llama, seed=77, **settings) as sampler:
        plain = generate(llama, context, sampler, 200)

    def draft(place: int) -> list[int]:
        """Right for `place % 4` tokens, then wrong."""
        right = plain[place : place + place % 4]
        return [*right, 272 + place % 90, 280][: 1 + place % 5]

    with Sampler(llama, seed=77, **settings) as sampler:
        assert generate(llama, context, sampler, 200, draft) == plain
    with Sampler(llama, seed=78, **settings) as sampler:
        assert (generate(llama, context, sampler, 200) == plain) == (settings["temperature"] == 0.0)


def test_greedy_ignores_q(llama: Model, rows: Rows) -> None:
    best = int(rows.first.argmax())
    ids, probs = as_q(np.eye(N)[3], np.eye(N)[4])
    with Target({"temperature": 0.0}).sampler(llama, 1) as sampler:
        for a in range(N):
            taken = sampler.verify(rows.context, int(rows.index[a, 4]), (TOKENS[a], TOKENS[4]), (ids, probs))
            assert taken[0] == TOKENS[best]
            assert (len(taken) > 1) == (a == best)


def test_a_draft_stops_at_the_end_of_text(llama: Model, make_context: Callable[..., Context]) -> None:
    context = make_context()
    end = llama.vocab.eos
    with Batch(context) as batch, Sampler(llama, temperature=0.0, logit_bias={end: 1e6}) as sampler:
        first = batch.add(0, 0, [1, 300, end, 301, 302], "all")
        context.decode(batch)
        assert sampler.verify(context, first + 1, [end, end, end]) == [end]


@pytest.mark.parametrize(
    ("probs", "place", "value", "message"),
    [
        (True, (0, 0), -0.1, r"probability -0\.1 of place 0"),
        (True, (1, 2), float("nan"), "probability nan of place 1"),
        (True, (0, slice(None)), 0.05, "of place 0 add up to 0.4 instead of 1"),
        (False, (0, 1), 300, "token 300 is listed twice"),
        (False, (0, 1), 512, r"token 512 at place 0 is not in \[0, 512\)"),
        (False, (0, 1), -1, "an unused entry of place 0 has probability"),
        (False, (1, 3), 299, "the drafted token 303 of place 1 has no probability"),
    ],
)
def test_a_proposal_that_is_no_distribution(llama: Model, rows: Rows, *, probs: bool, place: Any, value: float, message: str) -> None:
    good, bad = as_q(np.full(N, 1 / N), np.full(N, 1 / N)), as_q(np.full(N, 1 / N), np.full(N, 1 / N))
    bad[int(probs)][place] = value
    if probs:
        bad[1][:, N:] = 0
    index, draft = int(rows.index[0, 3]), (TOKENS[0], TOKENS[3])
    with PLAIN.sampler(llama, 1) as sampler:
        assert sampler.verify(rows.context, index, draft, good)
        before = sampler.state()
        with pytest.raises(InvalidArgumentError, match=message):
            sampler.verify(rows.context, index, draft, bad)
        with pytest.raises(InvalidArgumentError, match="q has 10 entries for 2 drafted tokens"):
            sampler.verify(rows.context, index, draft, (good[0][:1], good[1][:1]))
        assert sampler.state() == before


def test_the_width_of_a_proposal() -> None:
    assert lib.PYLLM_DRAFT_CANDIDATES == WIDTH
