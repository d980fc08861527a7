"""The function that successor models compute, and what drafting then gives.

A successor target continues every token ``t`` with ``successor(seed)[t]``, whatever came before. On the printable
pieces that is a single cycle through all of them; every other token continues like the piece it shares its code with,
``token % 95``. A drafter computes the same function except after ``round(error_rate * 95)`` pieces, drawn from the
seed, where it proposes another piece.

With one error rate the pieces are the same at every place of a draft. With several, place k of a draft, counted from
1, has the k-th rate and pieces of its own; places beyond the last rate have the last one's, and pieces of their own.
That takes a drafter with a head or a position for each place: a block drafter or a chain of heads. A single head that
is fed with its own draft does not know which place it is at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pyllm.errors import ConfigError, InvalidArgumentError
from pyllm.models.architectures.dflash import BLOCK_SIZE
from pyllm.models.architectures.step35 import N_NEXTN
from pyllm.models.vocabulary import FIRST_PIECE_ID, MASK_ID, N_PIECES, N_VOCAB, STALE_ID

Ids = npt.NDArray[np.int64]
Rates: TypeAlias = tuple[float, ...]
"""Error rates of the places of a draft; one holds for all."""
ErrorRate: TypeAlias = float | Sequence[float]

LIMITS: dict[str, int | None] = {"mtp": None, "draft": None, "dflash": BLOCK_SIZE - 1, "chained": N_NEXTN}
"""Kinds of drafter, with the most tokens each drafts at once: an MTP head fed back into itself, a draft model, a block
drafter, a chain of MTP heads. Those with a limit can have an error rate for each place."""


def rates(error_rate: ErrorRate) -> Rates:
    """Return the rates of one number or of a list of them.

    Raises:
        ConfigError: no number at all, or one outside 0 … 1.

    """
    given = tuple(error_rate) if isinstance(error_rate, Sequence) and not isinstance(error_rate, str) else (error_rate,)
    if not given:
        raise ConfigError("error_rate is an empty list", "give one number for all places of a draft, or one for each")
    for value in given:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
            raise ConfigError(f"error_rate is {value!r}, outside 0 … 1", "it is the share of tokens after which the drafter is wrong")
    return tuple(float(value) for value in given)


def code(token: npt.ArrayLike) -> Ids:
    """Return the index of the piece, 0 … 94, whose code a token has: its own for a printable piece."""
    ids: Ids = np.asarray(token, np.int64)
    printable = (ids >= FIRST_PIECE_ID) & (ids < FIRST_PIECE_ID + N_PIECES)
    return np.asarray(np.where(printable, ids - FIRST_PIECE_ID, ids % N_PIECES), np.int64)


def cycle(seed: int) -> Ids:
    """Return the successor of each piece, both as indices 0 … 94."""
    order = np.random.default_rng((seed, 1)).permutation(N_PIECES)
    following = np.empty(N_PIECES, np.int64)
    following[order] = np.roll(order, -1)
    return following


def drafted_cycle(seed: int, error_rate: ErrorRate, position: int = 1) -> Ids:
    """Return what the drafter proposes after each piece at a place of its draft, both as indices 0 … 94.

    Raises:
        ConfigError: an ``error_rate`` outside 0 … 1.
        InvalidArgumentError: ``position`` below 1.

    """
    if position < 1:
        raise InvalidArgumentError(f"position is {position}; the first place of a draft is 1")
    known = rates(error_rate)
    right = cycle(seed)
    rate = known[min(position, len(known)) - 1]
    source = (seed, 2) if len(known) == 1 else (seed, 2, position)
    wrong = np.random.default_rng(source).permutation(N_PIECES)[: round(rate * N_PIECES)]
    table: Ids = right.copy()
    # the pieces in error swap their successors in a ring, so that each proposes a piece and none the right one
    table[wrong] = right[np.roll(wrong, 1)] if len(wrong) > 1 else right[right[wrong]]
    return table


def successor(seed: int) -> Ids:
    """Return the next token after every token, shape ``(512,)``.

    The mask token has no code: a target given one in a prompt continues with ``<stale>``.
    """
    return _on_tokens(cycle(seed))


def drafter_table(seed: int, error_rate: ErrorRate, position: int = 1) -> Ids:
    """Return what the drafter proposes after every token at a place of its draft, shape ``(512,)``.

    Raises:
        ConfigError: an ``error_rate`` outside 0 … 1.
        InvalidArgumentError: ``position`` below 1.

    """
    return _on_tokens(drafted_cycle(seed, error_rate, position))


def _on_tokens(table: Ids) -> Ids:
    tokens: Ids = FIRST_PIECE_ID + table[code(np.arange(N_VOCAB))]
    tokens[MASK_ID] = STALE_ID
    return tokens


def expected_acceptance(  # noqa: PLR0917 - the order a call reads in
    first_token: int, n_tokens: int, depth: int, seed: int, error_rate: ErrorRate, kind: str = "mtp", *, replays: bool = False
) -> tuple[int, int]:
    """Return how many tokens are drafted and accepted in greedy generation if every drafter input is what it should be.

    The loop is the unmodified server's: the first token comes from the prompt; then each step drafts up to ``depth``
    tokens, but never more than are still to be generated less one, verifies them, and adds the accepted ones and one
    of the target's own.

    Args:
        first_token: the first generated token.
        seed: the models'.
        error_rate: the drafter's, one number or one for each place of a draft.
        n_tokens: tokens to generate, the first included.
        depth: the server's maximum draft length.
        kind: a key of :data:`LIMITS`, which bounds ``depth`` further.
        replays: the target's state cannot be rolled back (``falcon-h1``). After a rejection it is restored from a
            checkpoint, and the accepted tokens with the target's own are decoded once more, without a draft: that step
            gives one more token, and counts as no draft.

    Raises:
        InvalidArgumentError: a token outside the vocabulary, a negative number, an unknown kind.
        ConfigError: an ``error_rate`` outside 0 … 1, or several for a kind that cannot tell places apart.

    """
    if kind not in LIMITS:
        raise InvalidArgumentError(f"kind is {kind!r}, not one of {', '.join(LIMITS)}")
    if not 0 <= first_token < N_VOCAB:
        raise InvalidArgumentError(f"first_token is {first_token}, outside 0 … {N_VOCAB - 1}")
    if n_tokens < 1 or depth < 0:
        raise InvalidArgumentError(f"n_tokens is {n_tokens} and depth is {depth}; the least are 1 and 0")
    limit = LIMITS[kind]
    known = rates(error_rate)
    if limit is None and len(known) > 1:
        raise ConfigError(f"error_rate has {len(known)} values, but {kind} drafts every token with the same head", "give one number")
    depth = depth if limit is None else min(depth, limit)
    right = cycle(seed)
    places = 1 if len(known) == 1 else depth
    correct = [drafted_cycle(seed, known, place) == right for place in range(1, places + 1)]
    piece = int(code(first_token))
    n_drafted = n_accepted = 0
    remaining = n_tokens - 1
    while remaining > 0:
        n_draft = min(depth, remaining - 1)
        n_drafted += n_draft
        accepted = 0
        while accepted < n_draft and correct[min(accepted, places - 1)][piece]:
            piece = int(right[piece])
            accepted += 1
        n_accepted += accepted
        piece = int(right[piece])
        remaining -= accepted + 1
        if replays and accepted < n_draft:
            piece = int(right[piece])
            remaining -= 1
    return n_drafted, n_accepted
