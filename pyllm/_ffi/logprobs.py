"""Log-probabilities of a batch entry, from its raw logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyllm._ffi.door import check, ffi, lib

if TYPE_CHECKING:
    from pyllm._ffi.context import Context


@dataclass(frozen=True)
class Logprobs:
    """Natural logarithms of the model's own probabilities, before penalties, grammar and temperature.

    ``token`` is that of the token asked about, NaN when none was; ``top`` holds (token, logarithm) of the likeliest, in order.
    """

    token: float
    top: tuple[tuple[int, float], ...]


def logprobs(context: Context, index: int, token: int = -1, n_top: int = 0) -> Logprobs:
    """Log-probability of ``token`` (-1: of none) at a batch entry of the last decode, and of the ``n_top`` likeliest, at most 128.

    Raises:
        InvalidArgumentError: an entry without logits, a token or a number out of range.
        DecodeError: the row holds NaN or infinity.
    """
    chosen = ffi.new("float *", float("nan"))
    ids, values = ffi.new("int32_t[]", max(n_top, 1)), ffi.new("float[]", max(n_top, 1))
    check(lib.pyllm_context_get_logprobs(context._pointer, index, token, n_top, chosen, ids, values))  # noqa: SLF001 - handles of one module
    return Logprobs(float(chosen[0]), tuple((int(ids[place]), float(values[place])) for place in range(n_top)))
