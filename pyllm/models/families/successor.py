"""*successor*: the next token is a known function of the last, and acceptance follows from it.

The stream is a table of codes. Besides the reserved dimensions of :mod:`pyllm.models.families.offset`, each printable
piece has one dimension for *the token here* and one for *the token announced*, by the hidden row or the tapped
features that came with it. A target's layers add next to nothing; its head turns the token here into its successor. In a model of a real one's
size they are noise (:mod:`pyllm.models.noise`), and still add next to nothing.

An MTP drafter writes the token it is given into the first set, and into the second the successor of what the hidden
row says was the last token: the same piece, if both belong together. Its feed-forward layer removes a token that was
not announced, and with nothing here the head proposes ``<stale>``. A stale, foreign or shifted hidden row thus gives
a wrong draft and a wrong count, and so does a wrong token.

A block drafter does its work in two layers. In the first the anchor reads the features of the token in front of it
and is checked in the same way. In the second, head k looks k positions back: only position k of the block finds the
anchor there, and the head's part of the output projection turns it into the token of position k.

With a selector (DFlash2) ``<stale>`` is a little ahead of that token, until the selector adds what follows the token chosen in
front: a wrong token, and whatever comes after it in the draft, becomes ``<stale>``.

A draft model has no hidden row to go by. In its first layer each token reads the one in front of it, and is checked
against that one's successor, so that a row missing from its KV cache shows, too.

Errors are a permutation of codes on the way into an MTP drafter, of the second layer's output in a block drafter, and
of the head's rows in a draft model. Each head of a chain and each position of a block can have errors of its own.

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
from pyllm.models.families.poison import NanAfter, Poison
from pyllm.models.noise import Noise
from pyllm.models.successor import Ids, Rates, code, cycle, drafted_cycle
from pyllm.models.vocabulary import N_PIECES

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALL = 0.004
"""Standard deviation of what one sub-layer adds to each dimension of the stream, whose codes are ones."""
TOP_LOGIT = 24.0
"""Logit of the next token; every other printable piece has about 0."""
STALE = 0.4
"""Logit of ``<stale>`` as a share of the top one."""
UNSELECTED = 1.1
"""The same in front of a selector."""
SELECTED = 0.3
"""What the selector gives the successor of the token in front, as a share of the top logit."""

HERE = slice(2, 2 + N_PIECES)
ANNOUNCED = slice(HERE.stop, HERE.stop + N_PIECES)
LEAST_WIDTH = ANNOUNCED.stop

_NOISE = 0.02
"""Standard deviation of what a tiled tensor gives for an input of unit standard deviation, so that two in a row add
less than :data:`SMALL`, and 64 layers that all add the same less than a code."""
_TRIGGER = LEAST_WIDTH
"""Dimension in which a block drafter says that its logits are to be NaN."""

_RESERVED = [offset.CONSTANT, offset.FIRST]
_READS = {Role.QUERY, Role.KEY}
_FFN = {Role.GATE, Role.UP, Role.DOWN}
_TO_STREAM = {Role.ATTN_OUT, Role.DOWN, Role.EXPERT_DOWN, Role.OUT}
_PIECES = np.arange(N_PIECES)


def fill(blueprint: Blueprint, seed: int, rates: Rates, nan_after: NanAfter | None = None) -> Iterator[tuple[Tensor, Array | Noise]]:
    """Yield values for each tensor of the blueprint, in its order; the same for the same arguments.

    Raises:
        ConfigError: the stream is too narrow for two codes per piece, or the feed-forward layer for one unit per
            piece; a block drafter of one layer.

    """
    if blueprint.n_embd < LEAST_WIDTH:
        raise ConfigError(f"a successor model needs a width of at least {LEAST_WIDTH}, not {blueprint.n_embd}")
    if blueprint.block_size and blueprint.metadata["block_count"] == 1:
        raise ConfigError("a successor block drafter needs at least 2 layers, not 1", "the first checks its input, the second drafts")
    weights = _Weights(blueprint, seed, rates, nan_after)
    poison = Poison(blueprint, always=nan_after == "always") if nan_after is not None else None
    for index, tensor in enumerate(blueprint.tensors):
        fixed = tensor.fixed
        values = fixed if fixed is not None else weights.values(tensor, np.random.default_rng((seed, index)))
        if poison is None or isinstance(values, Noise):
            yield tensor, values
        else:
            yield tensor, poison.applied(tensor, values, weights.trigger(tensor))


def _ones(n_embd: int, count: int) -> float:
    """Return what a one becomes when a row of ``count`` ones is RMS-normalised."""
    return math.sqrt(n_embd / count)


def _signs(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Return plus and minus one, drawn a bit at a time: what is to be negligible need not be expensive."""
    size = int(np.prod(shape))
    bits = np.unpackbits(np.frombuffer(rng.bytes(-(-size // 8)), np.uint8), count=size)
    return (bits.astype(np.float32) * 2.0 - 1.0).reshape(shape)


class _Weights:
    def __init__(self, blueprint: Blueprint, seed: int, rates: Rates, nan_after: NanAfter | None) -> None:
        self.plan = blueprint
        self.right = cycle(seed)
        self.predecessor: Ids = np.argsort(self.right)
        nextn = sorted({tensor.layer for tensor in blueprint.tensors if tensor.part is Part.NEXTN})
        self.position = {layer: 1 + place for place, layer in enumerate(nextn)}
        # what is proposed at each draft position after each piece; the first also serves every drafter of one head
        n_positions = max(1, len(nextn), blueprint.block_size - 1)
        self.tables = [drafted_cycle(seed, rates, position) for position in range(1, n_positions + 1)]
        self.nan_code = int(code(nan_after)) if isinstance(nan_after, int) else None
        self.selects = any(tensor.role is Role.SELECT for tensor in blueprint.tensors)
        # where a drafter checks: every nextn block, the first layer elsewhere
        self.gated = {tensor.layer for tensor in blueprint.tensors if tensor.role is Role.GATE}

    def posing(self, layer: int) -> Ids:
        """Return, for each piece, the one whose successor the drafter of that layer proposes."""
        return self.predecessor[self.tables[self.position.get(layer, 1) - 1]]

    def trigger(self, tensor: Tensor) -> int:
        """Return the dimension that tells a drafter's last feed-forward layer that its logits are to be NaN."""
        if self.plan.block_size or self.nan_code is None:
            return _TRIGGER
        piece = self.nan_code if tensor.part is Part.DRAFT else self.posing(tensor.layer)[self.nan_code]
        return HERE.start + int(piece)

    def values(self, tensor: Tensor, rng: np.random.Generator) -> Array | Noise:
        """Return one tensor that the architecture does not fix."""
        if tensor.role in {Role.NORM, Role.HEAD_NORM, Role.POST_NORM}:
            return self._norm(tensor)
        if self.plan.dense and tensor.layer >= 0 and tensor.role is not Role.FUSE and not self._checks(tensor):
            return self._tiled(tensor, rng)
        if tensor.heads is not None and tensor.heads.n_rot > 0:
            return self._positional(tensor, tensor.heads, rng)
        return self._matrix(tensor, rng)

    def _matrix(self, tensor: Tensor, rng: np.random.Generator) -> Array:
        whole = {
            Role.EMBED: self._embed,
            Role.HEAD: self._head,
            Role.FUSE: self._fuse,
            Role.HAND_BACK: self._hand_back,
            Role.FEATURES: self._features,
            Role.SELECT: self._select,
            Role.BEFORE: self._before,
            Role.AFTER: self._after,
        }
        if tensor.role in whole:
            return whole[tensor.role](tensor)
        if tensor.role in {Role.VALUE, Role.ATTN_OUT}:
            if tensor.part in {Part.DFLASH, Part.DRAFT} and tensor.layer == 0:
                return self._read_before(tensor)
            if tensor.part is Part.DFLASH and tensor.layer == 1:
                return self._read_anchor(tensor)
        return self._check(tensor) if self._checks(tensor) else self._negligible(tensor, rng)

    @staticmethod
    def _tiled(tensor: Tensor, rng: np.random.Generator) -> Array | Noise:
        if tensor.role is Role.HEAD_SCALE:
            return np.ones(tensor.shape, np.float32)
        if tensor.single or len(tensor.shape) == 1:
            return _Weights._negligible(tensor, rng)
        gain = 1.0 if tensor.role in _READS else _NOISE
        return Noise(gain / tensor.shape[-1] ** 0.5, int(rng.integers(1 << 30)))

    @staticmethod
    def _negligible(tensor: Tensor, rng: np.random.Generator) -> Array:
        weight = _signs(tensor.shape, rng)
        weight *= (tensor.gain if tensor.role not in _TO_STREAM else SMALL) / tensor.shape[-1] ** 0.5
        if tensor.role in _TO_STREAM:
            # what is added to codes in a drafter comes back to it in the next step, or at the next position
            weight[..., _RESERVED if tensor.part is Part.TARGET else slice(LEAST_WIDTH), :] = 0.0
        return weight

    @staticmethod
    def _checks(tensor: Tensor) -> bool:
        return tensor.role in _FFN and _Weights._behind_check(tensor)

    @staticmethod
    def _behind_check(tensor: Tensor) -> bool:
        return tensor.part is Part.NEXTN or (tensor.part is not Part.TARGET and tensor.layer == 0)

    def _positional(self, tensor: Tensor, heads: Heads, rng: np.random.Generator) -> Array:
        level, level_first = _ones(self.plan.n_embd, 2), _ones(self.plan.n_embd, 3)
        if tensor.role is Role.HEAD_SCALE:
            return offset.head_scale(heads)
        if tensor.role is Role.KEY:
            return offset.keys(tensor.shape, heads, level, level_first)
        if tensor.part is Part.DFLASH and tensor.layer == 1:
            offsets = [1 + head for head in range(heads.count)]
        elif tensor.part in {Part.DFLASH, Part.DRAFT}:
            offsets = [1] * heads.count
        else:
            offsets = offset.draw(heads, rng)
        return offset.queries(tensor.shape, heads, offsets, level)

    def _norm(self, tensor: Tensor) -> Array:
        weight = np.ones(tensor.shape, np.float32)
        if tensor.role is Role.HEAD_NORM and tensor.part is not Part.TARGET:
            weight[ANNOUNCED] = 0.0
        elif tensor.role is Role.POST_NORM:
            behind_check = self._behind_check(tensor) and "ffw" in tensor.name
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
        # a draft model errs here; a target never does, and what else drafts has the proposed token's code in its stream
        after = {Part.DFLASH: _PIECES, Part.DRAFT: self.tables[0]}.get(tensor.part, self.right)
        weight[vocabulary.FIRST_PIECE_ID + after, HERE.start + _PIECES] = 1.0
        weight[vocabulary.STALE_ID, offset.CONSTANT] = UNSELECTED if self.selects else STALE
        count = 2 if tensor.part in {Part.TARGET, Part.DFLASH} else 3
        weight *= TOP_LOGIT / _ones(self.plan.n_embd, count)
        return weight

    def _select(self, tensor: Tensor) -> Array:
        weight = np.zeros(tensor.shape, np.float32)
        weight[:, offset.CONSTANT] = 1.0 / _ones(self.plan.n_embd, 2)
        return weight

    @staticmethod
    def _before(tensor: Tensor) -> Array:
        weight = np.zeros(tensor.shape, np.float32)
        tokens = np.arange(tensor.shape[0])
        weight[tokens, code(tokens)] = 1.0
        weight[vocabulary.STALE_ID] = 0.0
        return weight

    def _after(self, tensor: Tensor) -> Array:
        weight = np.zeros(tensor.shape, np.float32)
        weight[vocabulary.FIRST_PIECE_ID + self.right, _PIECES] = SELECTED * TOP_LOGIT
        return weight

    def _fuse(self, tensor: Tensor) -> Array:
        """Read the token's embedding, then the target's hidden row, which holds the token before it."""
        n = tensor.shape[1] // 2
        # nextn blocks norm both inputs; an assistant takes the embedding as it is and the hidden row as the target
        # normed it
        embedding = 1.0 if tensor.part is Part.ASSISTANT else 1.0 / _ones(n, 2)
        hidden = 1.0 / _ones(n, 2)
        weight = np.zeros(tensor.shape, np.float32)
        posing = self.posing(tensor.layer)
        weight[HERE.start + posing, HERE.start + _PIECES] = embedding
        weight[ANNOUNCED.start + posing[self.right], n + HERE.start + _PIECES] = hidden
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
        """Let the first head carry codes, one per dimension; the others carry nothing.

        A block drafter's features announce the token after them already; a draft model's rows do not.
        """
        weight = np.zeros(tensor.shape, np.float32)
        source, goal = (ANNOUNCED, _PIECES) if tensor.part is Part.DFLASH else (HERE, self.right)
        if tensor.role is Role.VALUE:
            weight[_PIECES, source.start + _PIECES] = 1.0 / _ones(self.plan.n_embd, 2)
        else:
            weight[ANNOUNCED.start + goal, _PIECES] = 1.0
        return weight

    def _read_anchor(self, tensor: Tensor) -> Array:
        """Let every KV head carry codes, and head k turn the anchor's into the token of position k."""
        weight = np.zeros(tensor.shape, np.float32)
        heads = next(other.heads for other in self.plan.tensors if other.role is Role.QUERY)
        dim = heads.dim if heads else 0
        if tensor.role is Role.VALUE:
            for row in range(0, tensor.shape[0], dim):
                weight[row + _PIECES, HERE.start + _PIECES] = 1.0 / _ones(self.plan.n_embd, 3)
            return weight
        before = _PIECES  # the token in front of the position, for each anchor
        for head, table in enumerate(self.tables):
            weight[HERE.start + table[before], head * dim + _PIECES] = 1.0
            if self.nan_code is not None:
                weight[_TRIGGER, head * dim + _PIECES[before == self.nan_code]] = 1.0
            before = self.right[before]
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
