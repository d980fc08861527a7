"""*successor*: the next token is a known function of the last, and acceptance follows from it.

The stream is a table of codes. Besides the reserved dimensions of :mod:`pyllm.models.families.offset`, each printable
piece has one dimension for *the token here* and one for *the token announced*, by the hidden row or the tapped
features that came with it. A target's layers add next to nothing; its head turns the token here into its successor.

An MTP drafter writes the token it is given into the first set, and into the second the successor of what the hidden
row says was the last token: the same piece, if both belong together. Its feed-forward layer removes a token that was
not announced, and with nothing here the head proposes ``<stale>``. A stale, foreign or shifted hidden row thus gives
a wrong draft and a wrong count, and so does a wrong token.

A block drafter has one layer per position. In layer 0 the anchor reads the features of the token in front of it and
is checked in the same way; in each later layer every position reads the one before it and takes its successor, so
that position i holds its token after layer i. Errors are a permutation of codes on the way into an MTP drafter, and
of the head's rows in a block drafter.

Sizes are exact: codes are ones, the norm of a row of c ones is the root of c, and what layers add is smaller by
:data:`SMALL`, and in drafters stays out of the codes altogether.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pyllm.errors import ConfigError
from pyllm.models import vocabulary
from pyllm.models.blueprint import Array, Blueprint, Heads, Part, Role, Tensor
from pyllm.models.families import offset
from pyllm.models.successor import Ids, code, cycle, drafted_cycle
from pyllm.models.vocabulary import N_PIECES

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALL = 0.004
"""Standard deviation of what one sub-layer adds to each dimension of the stream, whose codes are ones."""
TOP_LOGIT = 24.0
"""Logit of the next token; every other printable piece has about 0."""
STALE = 0.4
"""Logit of ``<stale>`` as a share of the top one."""

HERE = slice(2, 2 + N_PIECES)
ANNOUNCED = slice(HERE.stop, HERE.stop + N_PIECES)
LEAST_WIDTH = ANNOUNCED.stop

_RESERVED = [offset.CONSTANT, offset.FIRST]
_TO_STREAM = {Role.ATTN_OUT, Role.DOWN, Role.EXPERT_DOWN, Role.OUT}
_PIECES = np.arange(N_PIECES)


def fill(blueprint: Blueprint, seed: int, error_rate: float) -> Iterator[tuple[Tensor, Array]]:
    """Yield values for each tensor of the blueprint, in its order; the same for the same arguments.

    Raises:
        ConfigError: the stream is too narrow for two codes per piece, or the feed-forward layer for one unit per
            piece.

    """
    if blueprint.n_embd < LEAST_WIDTH:
        raise ConfigError(f"a successor model needs a width of at least {LEAST_WIDTH}, not {blueprint.n_embd}")
    weights = _Weights(blueprint, seed, error_rate)
    for index, tensor in enumerate(blueprint.tensors):
        fixed = tensor.fixed
        yield tensor, fixed if fixed is not None else weights.values(tensor, np.random.default_rng((seed, index)))


def _ones(n_embd: int, count: int) -> float:
    """Return what a one becomes when a row of ``count`` ones is RMS-normalised."""
    return math.sqrt(n_embd / count)


def _signs(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Return plus and minus one, drawn a bit at a time: what is to be negligible need not be expensive."""
    size = int(np.prod(shape))
    bits = np.unpackbits(np.frombuffer(rng.bytes(-(-size // 8)), np.uint8), count=size)
    return (bits.astype(np.float32) * 2.0 - 1.0).reshape(shape)


class _Weights:
    def __init__(self, blueprint: Blueprint, seed: int, error_rate: float) -> None:
        self.plan = blueprint
        self.right = cycle(seed)
        self.table = drafted_cycle(seed, error_rate)
        predecessor = np.argsort(self.right)
        # the piece whose successor is what the drafter proposes
        self.posing: Ids = predecessor[self.table]
        # where a drafter checks: every nextn block, the first layer elsewhere
        self.gated = {tensor.layer for tensor in blueprint.tensors if tensor.role is Role.GATE}

    def values(self, tensor: Tensor, rng: np.random.Generator) -> Array:
        """Return one tensor that the architecture does not fix."""
        if tensor.heads is not None and tensor.heads.n_rot > 0:
            return self._positional(tensor, tensor.heads, rng)
        if tensor.role in {Role.NORM, Role.HEAD_NORM, Role.POST_NORM}:
            return self._norm(tensor)
        whole = {
            Role.EMBED: self._embed,
            Role.HEAD: self._head,
            Role.FUSE: self._fuse,
            Role.HAND_BACK: self._hand_back,
            Role.FEATURES: self._features,
        }
        if tensor.role in whole:
            return whole[tensor.role](tensor)
        if tensor.part is Part.DFLASH and tensor.role in {Role.VALUE, Role.ATTN_OUT}:
            return self._read_before(tensor)
        if tensor.role in {Role.GATE, Role.UP, Role.DOWN} and self._checks(tensor):
            return self._check(tensor)
        return self._negligible(tensor, rng)

    @staticmethod
    def _negligible(tensor: Tensor, rng: np.random.Generator) -> Array:
        weight = _signs(tensor.shape, rng)
        weight *= (tensor.gain if tensor.role not in _TO_STREAM else SMALL) / tensor.shape[-1] ** 0.5
        if tensor.role in _TO_STREAM:
            # positions of a block read each other once per layer: what is added to codes there would multiply
            weight[..., _RESERVED if tensor.part is Part.TARGET else slice(LEAST_WIDTH), :] = 0.0
        return weight

    @staticmethod
    def _checks(tensor: Tensor) -> bool:
        return tensor.part is Part.NEXTN or (tensor.part is not Part.TARGET and tensor.layer == 0)

    def _positional(self, tensor: Tensor, heads: Heads, rng: np.random.Generator) -> Array:
        level, level_first = _ones(self.plan.n_embd, 2), _ones(self.plan.n_embd, 3)
        if tensor.role is Role.HEAD_SCALE:
            return offset.head_scale(heads)
        if tensor.role is Role.KEY:
            return offset.keys(tensor.shape, heads, level, level_first)
        offsets = [1] * heads.count if tensor.part is Part.DFLASH else offset.draw(heads, rng)
        return offset.queries(tensor.shape, heads, offsets, level)

    def _norm(self, tensor: Tensor) -> Array:
        weight = np.ones(tensor.shape, np.float32)
        if tensor.role is Role.HEAD_NORM and tensor.part is not Part.TARGET:
            weight[ANNOUNCED] = 0.0
        elif tensor.role is Role.POST_NORM:
            behind_check = self._checks(tensor) and "ffw" in tensor.name
            # the norm stretches the one removed code to the root of the width; undone here
            weight *= self.plan.n_embd**-0.5 if behind_check else SMALL
            weight[_RESERVED] = 0.0
        return weight

    def _embed(self, tensor: Tensor) -> Array:
        weight = np.zeros(tensor.shape, np.float32)
        tokens = np.arange(tensor.shape[0])
        weight[tokens, HERE.start + code(tokens)] = 1.0
        weight[vocabulary.MASK_ID] = 0.0
        weight[:, offset.CONSTANT] = 1.0
        weight[vocabulary.BOS_ID, offset.FIRST] = 1.0
        weight *= tensor.gain
        return weight

    def _head(self, tensor: Tensor) -> Array:
        weight = np.zeros(tensor.shape, np.float32)
        if tensor.part is Part.DFLASH:
            # the code at a position is already the successor: go back one and let the drafter's table continue
            np.add.at(weight, (vocabulary.FIRST_PIECE_ID + self.table, HERE.start + self.right), 1.0)
        else:
            weight[vocabulary.FIRST_PIECE_ID + self.right, HERE.start + _PIECES] = 1.0
        weight[vocabulary.STALE_ID, offset.CONSTANT] = STALE
        count = 2 if tensor.part is Part.TARGET else 3
        weight *= TOP_LOGIT / _ones(self.plan.n_embd, count)
        return weight

    def _fuse(self, tensor: Tensor) -> Array:
        """Read the token's embedding, then the target's hidden row, which holds the token before it."""
        n = tensor.shape[1] // 2
        # nextn blocks norm both inputs; an assistant takes the embedding as it is and the hidden row as the target
        # normed it
        embedding = 1.0 if tensor.part is Part.ASSISTANT else 1.0 / _ones(n, 2)
        hidden = 1.0 / _ones(n, 2)
        weight = np.zeros(tensor.shape, np.float32)
        weight[HERE.start + self.posing, HERE.start + _PIECES] = embedding
        weight[ANNOUNCED.start + self.posing[self.right], n + HERE.start + _PIECES] = hidden
        weight[_RESERVED, _RESERVED] = embedding
        return weight

    def _hand_back(self, tensor: Tensor) -> Array:
        n_target, n_embd = tensor.shape
        kept = np.r_[_RESERVED, HERE]
        weight = np.zeros(tensor.shape, np.float32)
        weight[kept, kept] = _ones(n_target, 2) / _ones(n_embd, 3)
        return weight

    def _features(self, tensor: Tensor) -> Array:
        n_embd, n_taps = self.plan.n_embd, self.plan.n_taps
        weight = np.zeros(tensor.shape, np.float32)
        for tap in range(n_taps):
            weight[ANNOUNCED.start + self.right, tap * n_embd + HERE.start + _PIECES] = 1.0 / n_taps
        weight[_RESERVED, _RESERVED] = 1.0
        return weight

    def _read_before(self, tensor: Tensor) -> Array:
        """Let the first head carry codes, one per dimension; the others carry nothing."""
        weight = np.zeros(tensor.shape, np.float32)
        source, goal = (ANNOUNCED.start, ANNOUNCED.start + _PIECES) if tensor.layer == 0 else (HERE.start, HERE.start + self.right)
        if tensor.role is Role.VALUE:
            weight[_PIECES, source + _PIECES] = 1.0 / _ones(self.plan.n_embd, 2)
        else:
            weight[goal, _PIECES] = 1.0
        return weight

    def _check(self, tensor: Tensor) -> Array:
        """Let one unit per piece fire when the piece is here but not announced, and remove it."""
        n_units = tensor.shape[0] if tensor.role is not Role.DOWN else tensor.shape[1]
        if n_units < N_PIECES:
            raise ConfigError(f"a successor drafter needs a feed-forward width of at least {N_PIECES}, not {n_units}")
        weight = np.zeros(tensor.shape, np.float32)
        unit = 1.0 / _ones(self.plan.n_embd, 3)
        gated = tensor.layer in self.gated
        # a block drafter averages its taps: one stale tap among three has to be seen, an MTP row is either right or
        # wrong
        threshold, steep, removed_at = (0.2, 50.0, 6.0) if tensor.part is Part.DFLASH else (0.5, 20.0, 10.0)
        if not gated:
            steep, removed_at = 2.0, 1.0  # squared ReLU: exactly zero below the threshold, one at a full mismatch
        if tensor.role is Role.DOWN:
            weight[HERE.start + _PIECES, _PIECES] = -1.0 / removed_at
        elif tensor.role is Role.UP and gated:
            weight[_PIECES, offset.CONSTANT] = unit
        else:
            weight[_PIECES, HERE.start + _PIECES] = steep * unit
            weight[_PIECES, ANNOUNCED.start + _PIECES] = -steep * unit
            weight[_PIECES, offset.CONSTANT] = -threshold * steep * unit
        return weight
