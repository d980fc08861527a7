"""A slot's sampler: upstream's chain, with penalties and grammar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm._ffi.door import Handle, check, ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyllm._ffi.context import Context
    from pyllm._ffi.model import Model

RANDOM_SEED = 0xFFFFFFFF


class Sampler(Handle):
    """Sampling state of one generation (``pyllm_sampler``). ``temperature`` 0 is greedy.

    Raises:
        InvalidArgumentError: a number outside its range, or a grammar that does not parse.
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
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        penalty_last_n: int = 64,
        ignore_eos: bool = False,
        grammar: str = "",
    ) -> None:
        params = ffi.new("pyllm_sampler_params *", lib.pyllm_sampler_params_default())
        text = ffi.new("char[]", grammar.encode())
        params.seed = seed & 0xFFFFFFFF
        params.temperature = temperature
        params.top_k = top_k
        params.top_p = top_p
        params.min_p = min_p
        params.repeat_penalty = repeat_penalty
        params.frequency_penalty = frequency_penalty
        params.presence_penalty = presence_penalty
        params.penalty_last_n = penalty_last_n
        params.ignore_eos = ignore_eos
        params.grammar = text
        out = ffi.new("pyllm_sampler **")
        check(lib.pyllm_sampler_create(model._pointer, params, out))  # noqa: SLF001 - handles of one module
        super().__init__(out[0])
        self._count = ffi.new("int32_t *")

    def reset(self) -> None:
        """Forget what was accepted; the seed starts anew."""
        check(lib.pyllm_sampler_reset(self._pointer))

    def accept(self, tokens: Sequence[int], *, generated: bool) -> None:
        """Feed prompt tokens to the penalties, or generated ones to penalties and grammar."""
        check(lib.pyllm_sampler_accept(self._pointer, ffi.new("int32_t[]", list(tokens)), len(tokens), generated))

    def verify(self, context: Context, index: int, draft: Sequence[int] = ()) -> list[int]:
        """Sample at batch entry ``index`` and go on while the sampled token is the drafted one.

        Returns 1 to ``len(draft) + 1`` tokens, all accepted by the sampler; without a draft this is plain sampling.
        """
        tokens = ffi.new("int32_t[]", len(draft) + 1)
        drafted = ffi.new("int32_t[]", list(draft)) if draft else ffi.NULL
        check(lib.pyllm_sampler_verify(self._pointer, context._pointer, index, drafted, len(draft), tokens, self._count))  # noqa: SLF001 - handles of one module
        return list(ffi.unpack(tokens, int(self._count[0])))
