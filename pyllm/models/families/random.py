"""*random*: greedy output depends on the context, in a way that no rounding disturbs.

Every matrix is Gaussian, scaled so that each sub-layer adds about as much to the stream as is already there.
Attention heads read single rows at drawn offsets (:mod:`pyllm.models.families.offset`); through the layers the
offsets add up, so that a token anywhere in the last hundred or more changes the text soon afterwards, and so does any
row that leaks from another sequence.

The output matrix gives every token that is not a printable piece a large negative weight on the constant dimension,
so control tokens, bytes and padding are out of reach whatever the context.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pyllm.models import vocabulary
from pyllm.models.blueprint import Array, Blueprint, Heads, Part, Role, Tensor
from pyllm.models.families import offset
from pyllm.models.families.poison import Poison

if TYPE_CHECKING:
    from collections.abc import Iterator

LOGIT_STD = 10.0
"""Standard deviation of the logits of printable pieces, before soft-capping."""

_BARRIER = -100.0  # times the normed constant, at least about 1: far below the least logit
_ADDED = 2.0  # variance that one layer adds to the stream, in units of a token embedding's
_AVERSION = 0.25  # share of its own embedding in a token's row of the head, negative: a repeated token would feed on itself
_RESERVED = [offset.CONSTANT, offset.FIRST]
_FROM_STREAM = {Role.QUERY, Role.KEY, Role.VALUE, Role.GATE, Role.UP, Role.EXPERT_UP, Role.IN, Role.SELECT}
_TO_STREAM = {Role.ATTN_OUT, Role.DOWN, Role.EXPERT_DOWN, Role.OUT}
_INTO_DRAFTER = {Role.FUSE, Role.FEATURES, Role.HAND_BACK}


class _Stream:
    """Expected sizes in the stream of one model, in units of a token embedding's standard deviation per dimension.

    Normally the constant is small against the rest and the norms keep every layer's input at unit variance. With
    ballast the constant decides the norm; the rest is then smaller by a known factor, which the matrices that read it
    make up for.
    """

    def __init__(self, blueprint: Blueprint) -> None:
        self.n_embd = blueprint.n_embd
        self.ballast = blueprint.ballast
        self.n_layer = 1 + max(tensor.layer for tensor in blueprint.tensors)
        self.constant = 64.0 * math.sqrt(self.n_embd) if self.ballast else 4.0
        self.embedding: Array | None = None  # of unit variance; known once the embedding tensor is drawn

    def variance(self, layer: int) -> float:
        """Return the variance per dimension in front of a layer, or of the head for -1."""
        return 1.0 + _ADDED * (self.n_layer if layer < 0 else layer)

    def level(self, layer: int, constants: int = 1) -> float:
        """Return the normed constant in front of a layer; ``constants`` is 2 for the first token, which has two."""
        return self.constant / math.sqrt(constants * self.constant**2 / self.n_embd + self.variance(layer))

    def boost(self, layer: int) -> float:
        """Return the factor for matrices that read the normed stream."""
        if not self.ballast:
            return 1.0
        return self.constant / math.sqrt(self.n_embd * self.variance(layer))


def fill(blueprint: Blueprint, seed: int, *, nan: bool = False) -> Iterator[tuple[Tensor, Array]]:
    """Yield values for each tensor of the blueprint, in its order; the same for the same seed.

    With ``nan`` a drafter's logits are always NaN.
    """
    stream = _Stream(blueprint)
    poison = Poison(blueprint, always=True) if nan else None
    for index, tensor in enumerate(blueprint.tensors):
        weight = _values(tensor, stream, np.random.default_rng((seed, index)))
        yield tensor, poison.applied(tensor, weight, offset.CONSTANT) if poison else weight


def _values(tensor: Tensor, stream: _Stream, rng: np.random.Generator) -> Array:
    if tensor.fixed is not None:
        return tensor.fixed
    if tensor.heads is not None and tensor.heads.n_rot > 0:
        return _positional(tensor, tensor.heads, stream, rng)
    if tensor.role in {Role.NORM, Role.HEAD_NORM, Role.POST_NORM}:
        weight = np.full(tensor.shape, tensor.gain, np.float32)
        if tensor.role is Role.POST_NORM:
            weight[_RESERVED] = 0.0
        return weight
    weight = rng.standard_normal(tensor.shape, np.float32)
    if tensor.role is Role.EMBED:
        return _embed(weight, tensor, stream)
    if tensor.role is Role.HEAD:
        return _head(weight, tensor, stream)
    weight *= tensor.gain / tensor.shape[-1] ** 0.5
    if tensor.role in _FROM_STREAM:
        weight *= stream.boost(tensor.layer)
        weight[..., _RESERVED] = 0.0
        if tensor.part is Part.EAGLE3:
            weight[..., _reserved_of_each(tensor, stream)] = 0.0
    elif tensor.role in _TO_STREAM:
        weight[..., _RESERVED, :] = 0.0
    elif tensor.role in _INTO_DRAFTER:
        if tensor.part is Part.EAGLE3:
            weight[..., _reserved_of_each(tensor, stream)] = 0.0  # no norm follows: constants would be all that is left
        # both come from the first input: token embedding, first tap, or the drafter's own stream
        weight[_RESERVED, :] = 0.0
        weight[_RESERVED, _RESERVED] = 1.0
    return weight


def _reserved_of_each(tensor: Tensor, stream: _Stream) -> list[int]:
    """Return the reserved columns of a matrix that reads several rows side by side."""
    return [start + place for start in range(0, tensor.shape[-1], stream.n_embd) for place in _RESERVED]


def _positional(tensor: Tensor, heads: Heads, stream: _Stream, rng: np.random.Generator) -> Array:
    level = stream.level(tensor.layer)
    if tensor.role is Role.HEAD_SCALE:
        return offset.head_scale(heads)
    if tensor.role is Role.KEY:
        weight = offset.keys(tensor.shape, heads, level, stream.level(tensor.layer, 2))
        return weight + offset.content(tensor.shape, heads, level, rng) if heads.content else weight
    weight = offset.queries(tensor.shape, heads, offset.draw(heads, rng), level)
    if heads.gated:
        split = weight.reshape(heads.count, 2, heads.dim, -1)
        split[:, 1] = rng.standard_normal(split[:, 1].shape, np.float32) / weight.shape[1] ** 0.5
    return weight


def _embed(weight: Array, tensor: Tensor, stream: _Stream) -> Array:
    stream.embedding = weight.copy()
    weight[:, _RESERVED] = 0.0
    weight[:, offset.CONSTANT] = stream.constant
    weight[vocabulary.BOS_ID, offset.FIRST] = stream.constant
    weight *= tensor.gain
    return weight


def _head(weight: Array, tensor: Tensor, stream: _Stream) -> Array:
    if stream.embedding is not None:
        weight -= _AVERSION * stream.embedding
    weight *= LOGIT_STD * stream.boost(tensor.layer) / tensor.shape[-1] ** 0.5
    weight[:, _RESERVED] = 0.0
    weight[:, offset.CONSTANT] = _BARRIER
    weight[vocabulary.FIRST_PIECE_ID : vocabulary.FIRST_PIECE_ID + vocabulary.N_PIECES, offset.CONSTANT] = 0.0
    return weight
