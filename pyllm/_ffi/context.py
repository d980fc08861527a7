"""A context: the KV cache of some sequences, and the graph that extends them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyllm._ffi.blob import blob_of
from pyllm._ffi.door import Handle, check, ffi, kv_type, lib
from pyllm._ffi.trace import AttentionNode
from pyllm.errors import InvalidArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyllm._ffi.batch import Batch
    from pyllm._ffi.blob import Blob
    from pyllm._ffi.model import Model

ROLLBACKS = ("none", "any", "bounded", "checkpoint")
FLASH_ATTN = {"auto": -1, "off": 0, "on": 1}


@dataclass(frozen=True)
class ContextInfo:
    """Sizes that a context really has.

    ``rollback`` says how a sequence can be cut back: ``any`` tail, at most ``n_rs_seq`` tokens (``bounded``), only by restoring
    a ``checkpoint``, or ``none`` at all.
    """

    n_ctx: int
    n_ctx_seq: int
    n_batch: int
    n_ubatch: int
    n_seq_max: int
    n_rs_seq: int
    rollback: str
    can_shift: bool
    causal: bool
    kv_unified: bool


class Context(Handle):
    """KV cache and graph of one model (``pyllm_context``). Positions and ranges are in tokens; ``end`` -1 means to the end.

    Raises:
        InvalidArgumentError: a size that is zero, negative or impossible.
        UnsupportedError: the model refuses a setting, such as a quantised V cache without flash attention.
        OutOfMemoryError: cache or compute buffers do not fit.
    """

    kind = "context"
    free = "pyllm_context_free"

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int = 0,
        n_batch: int = 2048,
        n_ubatch: int = 512,
        n_seq_max: int = 1,
        n_rs_seq: int = 0,
        n_outputs_max: int = 0,
        n_threads: int = 0,
        n_threads_batch: int = 0,
        type_k: str = "f16",
        type_v: str = "f16",
        flash_attn: str = "auto",
        kv_unified: bool = False,
        swa_full: bool = False,
        offload_kqv: bool = True,
        trace: bool = False,
    ) -> None:
        params = ffi.new("pyllm_context_params *", lib.pyllm_context_params_default())
        sizes = {
            "n_ctx": n_ctx,
            "n_batch": n_batch,
            "n_ubatch": n_ubatch,
            "n_seq_max": n_seq_max,
            "n_rs_seq": n_rs_seq,
            "n_outputs_max": n_outputs_max,
            "n_threads": n_threads,
            "n_threads_batch": n_threads_batch,
        }
        for name, value in sizes.items():
            if not 0 <= value < 2**31:
                raise InvalidArgumentError(f"{name} {value} is not in [0, 2147483647]", "give a size that is not negative")
            setattr(params, name, value)
        if flash_attn not in FLASH_ATTN:
            raise InvalidArgumentError(f"flash_attn `{flash_attn}` is not known", f"choose from {', '.join(FLASH_ATTN)}")
        params.type_k = kv_type(type_k)
        params.type_v = kv_type(type_v)
        params.flash_attn = FLASH_ATTN[flash_attn]
        params.kv_unified = kv_unified
        params.swa_full = swa_full
        params.offload_kqv = offload_kqv
        params.trace = trace
        out = ffi.new("pyllm_context **")
        check(lib.pyllm_context_create(model._pointer, params, out))  # noqa: SLF001 - handles of one module
        super().__init__(out[0])
        self.model = model

    @property
    def info(self) -> ContextInfo:
        """Sizes that the context really has."""
        info = ffi.new("pyllm_context_info *")
        check(lib.pyllm_context_get_info(self._pointer, info))
        values: dict[str, Any] = {name: getattr(info, name) for name in ContextInfo.__dataclass_fields__}
        values["rollback"] = ROLLBACKS[info.rollback]
        return ContextInfo(**values)

    def decode(self, batch: Batch) -> None:
        """One decode of the whole batch.

        Raises:
            ContextFullError: no free cells; the memory is as it was.
            CancelledError, DecodeError: the sequences of the batch may hold a part of it; cut them back.
            LimitError: more tokens than ``n_batch``.
        """
        check(lib.pyllm_context_decode(self._pointer, batch._pointer))  # noqa: SLF001 - handles of one module

    def cancel(self) -> None:
        """Make the running decode, or else the next one, raise ``CancelledError``. Any thread."""
        lib.pyllm_context_cancel(self._pointer)

    def logits(self, index: int) -> NDArray[np.float32]:
        """Logits of a batch entry of the last decode, shape ``[n_vocab]``, a copy."""
        return self._row(lib.pyllm_context_get_logits, index)

    def enable_nextn(self, *, enable: bool = True, masked: bool = False) -> None:
        """Extract the hidden rows that prediction heads read; ``masked``: only of entries with logits."""
        check(lib.pyllm_context_enable_nextn(self._pointer, enable, masked))

    def nextn(self, index: int) -> NDArray[np.float32]:
        """Hidden row of a batch entry, shape ``[n_embd_out]``, a copy."""
        return self._row(lib.pyllm_context_get_nextn, index)

    def enable_layer_input(self, layer: int, *, enable: bool = True) -> None:
        """Extract the input of a layer, 0 to ``n_layer``.

        Raises:
            UnsupportedError: the architecture's graph does not hand it out.
        """
        check(lib.pyllm_context_enable_layer_input(self._pointer, layer, enable))

    def has_tap(self, layer: int | None = None) -> bool:
        """Whether a layer's input, or without a layer the hidden rows, are extracted: by the caller, or for a drafter."""
        enabled = ffi.new("bool *")
        check(lib.pyllm_context_get_tap(self._pointer, -1 if layer is None else layer, enabled))
        return bool(enabled[0])

    def layer_input(self, layer: int) -> NDArray[np.float32]:
        """Input of a layer for all tokens of the last decode, shape ``[n_tokens, n_embd]`` in batch order, a copy."""
        rows, count, width = ffi.new("const float **"), ffi.new("int32_t *"), ffi.new("int32_t *")
        check(lib.pyllm_context_get_layer_input(self._pointer, layer, rows, count, width))
        data = ffi.buffer(rows[0], 4 * count[0] * width[0])
        shaped: NDArray[np.float32] = np.frombuffer(data, np.float32).reshape(count[0], width[0]).copy()
        return shaped

    def _row(self, call: Any, index: int) -> NDArray[np.float32]:
        row, width = ffi.new("const float **"), ffi.new("int32_t *")
        check(call(self._pointer, index, row, width))
        values: NDArray[np.float32] = np.frombuffer(ffi.buffer(row[0], 4 * width[0]), np.float32).copy()
        return values

    def clear(self) -> None:
        """Forget all sequences."""
        check(lib.pyllm_memory_clear(self._pointer))

    def remove(self, seq: int, begin: int = 0, end: int = -1) -> None:
        """Drop positions ``[begin, end)`` of a sequence.

        Raises:
            UnsupportedError: recurrent state cannot be cut back that far.
        """
        check(lib.pyllm_memory_remove(self._pointer, seq, begin, end))

    def copy(self, from_seq: int, to_seq: int, begin: int = 0, end: int = -1) -> None:
        """Let ``to_seq`` hold positions ``[begin, end)`` of ``from_seq`` too; a part only where the cache is unified."""
        check(lib.pyllm_memory_copy(self._pointer, from_seq, to_seq, begin, end))

    def keep(self, seq: int) -> None:
        """Drop all sequences but one."""
        check(lib.pyllm_memory_keep(self._pointer, seq))

    def shift(self, seq: int, begin: int, end: int, delta: int) -> None:
        """Move positions ``[begin, end)`` by ``delta``.

        Raises:
            UnsupportedError: this memory cannot be shifted.
        """
        check(lib.pyllm_memory_shift(self._pointer, seq, begin, end, delta))

    def range(self, seq: int) -> tuple[int, int]:
        """Smallest and largest position that a sequence holds, (-1, -1) when empty."""
        first, last = ffi.new("int32_t *"), ffi.new("int32_t *")
        check(lib.pyllm_memory_range(self._pointer, seq, first, last))
        return int(first[0]), int(last[0])

    def state(self, seq: int, *, partial: bool = False, device: bool = False) -> Blob:
        """One sequence's memory as bytes; ``partial``: only what cannot be rolled back (sliding windows, recurrent state).

        ``device``: the memory is copied where it is and the bytes only stand for it; they load into this context only, and only the last ones taken
        of a sequence.

        Raises:
            UnsupportedError: it cannot be kept on the device; take it to the host.
            OutOfMemoryError: there is no room for the bytes.
        """
        flags = int(partial) | int(device) << 1
        size = ffi.new("size_t *")
        check(lib.pyllm_state_size(self._pointer, seq, flags, size))
        need = int(size[0])
        return blob_of(need, lambda data: check(lib.pyllm_state_get(self._pointer, seq, flags, data, need, size)))

    def set_state(self, seq: int, data: Blob, *, partial: bool = False, device: bool = False) -> None:
        """Take over what ``state`` returned. After a failure the sequence is empty.

        Raises:
            StateError: bytes of another model, KV type or version, no room for them, or no longer on the device.
        """
        check(lib.pyllm_state_set(self._pointer, seq, int(partial) | int(device) << 1, ffi.from_buffer("uint8_t[]", data), len(data)))

    def trace(self) -> list[AttentionNode]:
        """Distinct attention nodes since creation or ``clear_trace``; needs ``trace=True``."""
        nodes = []
        for index in range(lib.pyllm_trace_count(self._pointer)):
            node = ffi.new("pyllm_attention_node *")
            check(lib.pyllm_trace_get(self._pointer, index, node))
            nodes.append(AttentionNode.of(node))
        return nodes

    def clear_trace(self) -> None:
        """Forget the recorded attention nodes."""
        lib.pyllm_trace_clear(self._pointer)
