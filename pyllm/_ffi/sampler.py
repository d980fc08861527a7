"""A slot's sampler: bias, penalties, grammar, truncation and temperature; plain sampling and both kinds of verification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyllm._ffi.door import Handle, check, ffi, lib
from pyllm._ffi.grammar import text_pointer
from pyllm.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyllm._ffi.context import Context
    from pyllm._ffi.model import Model

RANDOM_SEED = 0xFFFFFFFF


class Sampler(Handle):
    """Sampling state of one generation (``pyllm_sampler``). ``temperature`` 0 is greedy; ``logit_bias`` is added to logits, -inf forbids.

    With a grammar the draw is from what it allows: mask first, then truncation (``top_k`` …) and temperature.

    Raises:
        InvalidArgumentError: a number outside its range, or a grammar that does not parse.
        LimitError: a grammar so ambiguous that its first step costs too much.
    """

    kind = "sampler"
    free = "pyllm_sampler_free"

    def __init__(
        self,
        model: Model,
        *,
        seed: int = RANDOM_SEED,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        top_n_sigma: float = -1.0,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        penalty_last_n: int = 64,
        dry_multiplier: float = 0.0,
        dry_base: float = 1.75,
        dry_allowed_length: int = 2,
        dry_penalty_last_n: int = 64,
        min_keep: int = 0,
        logit_bias: Mapping[int, float] | None = None,
        ignore_eos: bool = False,
        grammar: str = "",
    ) -> None:
        params = ffi.new("pyllm_sampler_params *", lib.pyllm_sampler_params_default())
        counts = {
            "top_k": top_k,
            "penalty_last_n": penalty_last_n,
            "dry_allowed_length": dry_allowed_length,
            "dry_penalty_last_n": dry_penalty_last_n,
            "min_keep": min_keep,
        }
        for name, count in counts.items():
            if not -(2**31) <= count < 2**31:
                raise InvalidArgumentError(f"{name} {count} does not fit 32 bits", "give a smaller number")
            setattr(params, name, count)
        params.seed = seed & 0xFFFFFFFF
        params.temperature = temperature
        params.top_p = top_p
        params.min_p = min_p
        params.typical_p = typical_p
        params.top_n_sigma = top_n_sigma
        params.repeat_penalty = repeat_penalty
        params.frequency_penalty = frequency_penalty
        params.presence_penalty = presence_penalty
        params.dry_multiplier = dry_multiplier
        params.dry_base = dry_base
        params.ignore_eos = ignore_eos
        bias = logit_bias or {}
        for token in bias:
            if not 0 <= token < 2**31:
                raise InvalidArgumentError(f"logit_bias of token {token}, which is not in [0, {2**31})", "give token numbers of the vocabulary")
        ids, values, text = ffi.new("int32_t[]", list(bias)), ffi.new("float[]", list(bias.values())), text_pointer(grammar, "grammar")
        params.n_logit_bias, params.logit_bias_ids, params.logit_bias_values, params.grammar = len(bias), ids, values, text
        out = ffi.new("pyllm_sampler **")
        check(lib.pyllm_sampler_create(model._pointer, params, out))  # noqa: SLF001 - handles of one module
        super().__init__(out[0])
        self._buffers()

    def _buffers(self) -> None:
        self._count = ffi.new("int32_t *")
        self._size = ffi.new("size_t *")

    def clone(self) -> Sampler:
        """A second sampler that goes on exactly as this one would."""
        out = ffi.new("pyllm_sampler **")
        check(lib.pyllm_sampler_clone(self._pointer, out))
        copy = Sampler.__new__(Sampler)
        Handle.__init__(copy, out[0])
        copy._buffers()  # noqa: SLF001 - of this class
        return copy

    def reset(self) -> None:
        """As it was when it was made: nothing accepted, the grammar at its start, the seed anew."""
        check(lib.pyllm_sampler_reset(self._pointer))

    def accept(self, tokens: Sequence[int], *, generated: bool) -> None:
        """Feed prompt tokens to the penalties, or generated ones to penalties and grammar. All or nothing.

        Raises:
            InvalidArgumentError: a token outside the vocabulary, or one that the grammar does not allow.
        """
        check(lib.pyllm_sampler_accept(self._pointer, ffi.new("int32_t[]", list(tokens)), len(tokens), generated))

    def verify(self, context: Context, index: int, draft: Sequence[int] = (), q: tuple[Any, Any] | None = None) -> list[int]:
        """Sample at batch entry ``index`` and go on while the drafted token is taken; without a draft this is plain sampling.

        Without ``q`` a drafted token is taken if it is the one that was sampled: the text is that of plain sampling with the same seed.
        ``q`` is what the draft was drawn from, as ``Draft.q`` or as arrays of tokens and probabilities, each ``[len(draft), 10]``, -1 for
        unused places: lossless rejection sampling, distributed as plain sampling. Returns 1 to ``len(draft) + 1`` tokens, all accepted.

        Raises:
            DecodeError: NaN, infinity or no token left at ``index``; after it the sampler is as before.
            InvalidArgumentError: an entry without logits, or a ``q`` that is no distribution over the drafted token.
        """
        tokens = ffi.new("int32_t[]", len(draft) + 1)
        drafted = ffi.new("int32_t[]", list(draft)) if draft else ffi.NULL
        ids, probs = (ffi.NULL, ffi.NULL) if q is None or not draft else _proposal(q, len(draft))
        check(lib.pyllm_sampler_verify(self._pointer, context._pointer, index, drafted, len(draft), ids, probs, tokens, self._count))  # noqa: SLF001 - handles of one module
        return list(ffi.unpack(tokens, int(self._count[0])))

    def state(self) -> bytes:
        """Place in the random streams, what the penalties remember, and place in the grammar; not the settings."""
        check(lib.pyllm_sampler_get_state(self._pointer, ffi.NULL, 0, self._size))
        data = ffi.new("uint8_t[]", int(self._size[0]))
        check(lib.pyllm_sampler_get_state(self._pointer, data, len(data), self._size))
        return bytes(ffi.buffer(data))

    def set_state(self, data: bytes) -> None:
        """Go on as the sampler went on whose ``state()`` this is. The settings have to be the same; the seed comes with the state.

        Raises:
            StateError: bytes of other settings, another grammar, another version, or damaged; the sampler is as before.
        """
        check(lib.pyllm_sampler_set_state(self._pointer, data, len(data)))


def _proposal(q: tuple[Any, Any], n_draft: int) -> tuple[Any, Any]:
    """Pointers to the two arrays of ``q``; the arrays live as long as the pointers."""
    pointers = []
    for part, ctype, dtype in ((q[0], "int32_t[]", np.int32), (q[1], "float[]", np.float32)):
        data = part if isinstance(part, ffi.CData) else ffi.from_buffer(ctype, np.ascontiguousarray(part, dtype))
        size = len(data) if ffi.typeof(data).kind == "array" else n_draft * lib.PYLLM_DRAFT_CANDIDATES
        if size < n_draft * lib.PYLLM_DRAFT_CANDIDATES:
            raise InvalidArgumentError(
                f"q has {size} entries for {n_draft} drafted tokens", f"give {lib.PYLLM_DRAFT_CANDIDATES} of tokens and of probabilities for each"
            )
        pointers.append(data)
    return pointers[0], pointers[1]
