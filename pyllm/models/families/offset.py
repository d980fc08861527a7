"""Attention heads that read one row: the token a fixed number of positions back.

A soft average over the context is where rounding enters: half-precision accumulation and the batch size decide its
last digits, and a deep model amplifies them. A head that puts all its weight on one row returns that row exactly,
whatever the kernel, the batch or the number of other rows.

Two dimensions of the stream are reserved. :data:`CONSTANT` holds the same positive number for every token,
:data:`FIRST` the same number for the token that begins a sequence and zero for every other. Keys are one vector for
all tokens, built from the constant, so that RoPE alone tells positions apart; a query is that vector turned back by
the head's offset. The score is the sum of ``cos(theta * (distance - offset))`` over the rotated pairs: largest at the
offset, and scaled so that neighbours lose by :data:`GAP`. The first token has a key of its own that scores half a gap
below the best for every query: whatever would reach beyond the beginning reads the first token.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pyllm.models.blueprint import Array, Heads

GAP = 40.0
"""How far the score of the rows next to the one meant lies below it: their weight is ``exp(-GAP)``."""

CONSTANT = 0
FIRST = 1

Index = npt.NDArray[np.int64]


def pairs(heads: Heads) -> tuple[Index, Index, Array]:
    """Return first dimension, second dimension and angle per token (radians) of each rotating pair."""
    count = heads.n_rot // 2
    index = np.arange(count if heads.still is None else heads.still)
    if _sink(heads) < heads.n_rot and heads.still is None:
        index = index[:-1]
    first, second = (2 * index, 2 * index + 1) if heads.interleaved else (index, index + count)
    return first, second, (heads.base ** (-2.0 * index / heads.n_rot)).astype(np.float32)


def _sink(heads: Heads) -> int:
    """Return the dimension for the key of the first token: one that does not rotate, or the slowest."""
    if heads.still is not None:
        return heads.still
    if heads.n_rot < heads.dim:
        return heads.n_rot
    return heads.n_rot - 2 if heads.interleaved else heads.n_rot // 2 - 1


def _lost(heads: Heads) -> float:
    """Return what the sum of cosines loses from the offset to its neighbour."""
    return float(np.sum(1.0 - np.cos(pairs(heads)[2].astype(np.float64))))


def amplitude(heads: Heads) -> float:
    """Return the length per pair of a query or key for which a neighbour's score is :data:`GAP` lower."""
    return float(np.sqrt(GAP / (heads.scale * _lost(heads))))


def head_scale(heads: Heads) -> Array:
    """Return the weights, shape ``(dim,)``, of the norm of each head that bring :func:`rows` to :func:`amplitude`.

    A query is longer than a key by its component along the key of the first token; the product of both weights makes
    up for it.
    """
    count = len(pairs(heads)[2])
    query = math.sqrt(count + _sink_component(heads) ** 2)
    length = math.sqrt(heads.dim / math.sqrt(count) / query)
    return np.full(heads.dim, amplitude(heads) / length, np.float32)


def _sink_component(heads: Heads) -> float:
    """Return the component of a query, in units of one pair, along the first token's key.

    That key is as long as every other.
    """
    count = len(pairs(heads)[2])
    return (count - _lost(heads) / 2) / math.sqrt(count)


def queries(shape: tuple[int, ...], heads: Heads, offsets: list[int], level: float) -> Array:
    """Return a query projection that only reads the constant.

    Args:
        shape: ``(rows, n_embd)``.
        heads: how the graph uses the rows.
        offsets: tokens each head looks back.
        level: the normed constant, for projections whose result is not normalised per head.

    """
    first, second, theta = pairs(heads)
    length = 1.0 if heads.normed else amplitude(heads) / level
    weight = np.zeros(shape, np.float32)
    stride = heads.dim * (2 if heads.gated else 1)
    for head, offset in enumerate(offsets):
        row = head * stride
        weight[row + first, CONSTANT] = length * np.cos(offset * theta)
        weight[row + second, CONSTANT] = -length * np.sin(offset * theta)
        weight[row + _sink(heads), CONSTANT] = length * _sink_component(heads)
    return weight


def keys(shape: tuple[int, ...], heads: Heads, level: float, level_first: float) -> Array:
    """Return a key projection that only reads the reserved dimensions.

    Args:
        shape: ``(rows, n_embd)``.
        heads: how the graph uses the rows.
        level: the normed constant, for projections whose result is not normalised per head.
        level_first: the same for the token that begins a sequence.

    """
    first, _, theta = pairs(heads)
    length = 1.0 if heads.normed else amplitude(heads) / level
    weight = np.zeros(shape, np.float32)
    for row in range(0, heads.count * heads.dim, heads.dim):
        weight[row + first, CONSTANT] = length
        weight[row + first, FIRST] = -length
        weight[row + _sink(heads), FIRST] = length * len(theta) ** 0.5 * (1.0 if heads.normed else level / level_first)
    return weight


def content(shape: tuple[int, ...], heads: Heads, level: float, rng: np.random.Generator) -> Array:
    """Return Gaussian rows for the dimensions of a key that no query looks at.

    They give these dimensions ``heads.content`` of the key's squared length.
    """
    first, second, _ = pairs(heads)
    free = np.setdiff1d(np.arange(heads.dim), [*first, *second, _sink(heads)])
    spread = (heads.content / (1.0 - heads.content) * len(first) * level**2 / len(free) / shape[1]) ** 0.5
    weight = np.zeros(shape, np.float32)
    for row in range(0, heads.count * heads.dim, heads.dim):
        weight[row + free] = rng.standard_normal((len(free), shape[1]), np.float32) * np.float32(spread)
    weight[:, [CONSTANT, FIRST]] = 0.0
    return weight


def draw(heads: Heads, rng: np.random.Generator) -> list[int]:
    """Return different offsets for the heads of a layer, within reach."""
    return [int(o) + 1 for o in rng.choice(heads.reach, heads.count, replace=False)]
