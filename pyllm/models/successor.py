"""The function that successor models compute, and what drafting then gives.

A successor target continues every token ``t`` with ``successor(seed)[t]``, whatever came before. On the printable
pieces that is a single cycle through all of them; every other token continues like the piece it shares its code with,
``token % 95``. A drafter computes the same function except after ``round(error_rate * 95)`` pieces, drawn from the
seed, where it proposes another piece.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pyllm.errors import ConfigError, InvalidArgumentError
from pyllm.models.architectures.dflash import BLOCK_SIZE
from pyllm.models.architectures.step35 import N_NEXTN
from pyllm.models.vocabulary import FIRST_PIECE_ID, MASK_ID, N_PIECES, N_VOCAB, STALE_ID

Ids = npt.NDArray[np.int64]

LIMITS: dict[str, int | None] = {"mtp": None, "dflash": BLOCK_SIZE - 1, "chained": N_NEXTN}
"""Kinds of drafter, with the most tokens each drafts at once: an MTP head fed back into itself, a block drafter, a
chain of MTP heads."""


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


def drafted_cycle(seed: int, error_rate: float) -> Ids:
    """Return what the drafter proposes after each piece, both as indices 0 … 94.

    Raises:
        ConfigError: ``error_rate`` outside 0 … 1.

    """
    if not 0.0 <= error_rate <= 1.0:
        raise ConfigError(f"error_rate is {error_rate!r}, outside 0 … 1", "it is the share of tokens after which the drafter is wrong")
    right = cycle(seed)
    wrong = np.random.default_rng((seed, 2)).permutation(N_PIECES)[: round(error_rate * N_PIECES)]
    table: Ids = right.copy()
    # the pieces in error swap their successors in a ring, so that each proposes a piece and none the right one
    table[wrong] = right[np.roll(wrong, 1)] if len(wrong) > 1 else right[right[wrong]]
    return table


def successor(seed: int) -> Ids:
    """Return the next token after every token, shape ``(512,)``.

    The mask token has no code: a target given one in a prompt continues with ``<stale>``.
    """
    return _on_tokens(cycle(seed))


def drafter_table(seed: int, error_rate: float) -> Ids:
    """Return what the drafter proposes after every token, shape ``(512,)``.

    Raises:
        ConfigError: ``error_rate`` outside 0 … 1.

    """
    return _on_tokens(drafted_cycle(seed, error_rate))


def _on_tokens(table: Ids) -> Ids:
    tokens: Ids = FIRST_PIECE_ID + table[code(np.arange(N_VOCAB))]
    tokens[MASK_ID] = STALE_ID
    return tokens


def expected_acceptance(  # noqa: PLR0917 - the order a call reads in
    first_token: int, n_tokens: int, depth: int, seed: int, error_rate: float, kind: str = "mtp"
) -> tuple[int, int]:
    """Return how many tokens are drafted and accepted in greedy generation if every drafter input is what it should be.

    The loop is the unmodified server's: the first token comes from the prompt; then each step drafts up to ``depth``
    tokens, but never more than are still to be generated less one, verifies them, and adds the accepted ones and one
    of the target's own.

    Args:
        first_token: the first generated token.
        seed: the models'.
        error_rate: the drafter's.
        n_tokens: tokens to generate, the first included.
        depth: the server's maximum draft length.
        kind: a key of :data:`LIMITS`, which bounds ``depth`` further.

    Raises:
        InvalidArgumentError: a token outside the vocabulary, a negative number, an unknown kind.
        ConfigError: ``error_rate`` outside 0 … 1.

    """
    if kind not in LIMITS:
        raise InvalidArgumentError(f"kind is {kind!r}, not one of {', '.join(LIMITS)}")
    if not 0 <= first_token < N_VOCAB:
        raise InvalidArgumentError(f"first_token is {first_token}, outside 0 … {N_VOCAB - 1}")
    if n_tokens < 1 or depth < 0:
        raise InvalidArgumentError(f"n_tokens is {n_tokens} and depth is {depth}; the least are 1 and 0")
    limit = LIMITS[kind]
    depth = depth if limit is None else min(depth, limit)
    right = cycle(seed)
    correct = drafted_cycle(seed, error_rate) == right
    piece = int(code(first_token))
    n_drafted = n_accepted = 0
    remaining = n_tokens - 1
    while remaining > 0:
        n_draft = min(depth, remaining - 1)
        n_drafted += n_draft
        accepted = 0
        while accepted < n_draft and correct[piece]:
            piece = int(right[piece])
            accepted += 1
        n_accepted += accepted
        piece = int(right[piece])
        remaining -= accepted + 1
    return n_drafted, n_accepted
