"""What a route may depend on: the axes of an attention node and of the device that runs it.

The order is the native evaluator's: axis *i* here is ``pyllm_route_key.axis[i]`` in ``native/include/pyllm.h``.
"""

from __future__ import annotations

from dataclasses import dataclass

#: KV cache types in the order of their codes here; ggml's own numbers are no business of a table file.
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")

#: Largest head dim of K or V that any route takes.
MAX_HEAD_DIM = 1024


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis. ``kind`` says how its values are written: words, whole numbers, flags, ``D_k/D_v`` or ``type_k/type_v``."""

    name: str
    kind: str
    phrase: str
    words: tuple[str, ...] = ()

    def encode(self, value: object) -> int:
        """The number that the native evaluator compares.

        Raises:
            ValueError: a word that this axis does not have.
        """
        if self.kind == "head":
            d_k, d_v = str(value).split("/")
            return int(d_k) << 16 | int(d_v)
        if self.kind == "kv":
            type_k, type_v = str(value).split("/")
            return KV_TYPES.index(type_k) << 8 | KV_TYPES.index(type_v)
        if self.kind == "word":
            return self.words.index(str(value))
        return int(value)  # type: ignore[call-overload, no-any-return]

    def decode(self, code: int) -> str:
        """The value as people write it."""
        if self.kind == "head":
            return f"{code >> 16}/{code & 0xFFFF}"
        if self.kind == "kv":
            return f"{KV_TYPES[code >> 8]}/{KV_TYPES[code & 0xFF]}"
        if self.kind == "word":
            return self.words[code]
        if self.kind == "flag":
            return "yes" if code else "no"
        return str(code)


AXES = (
    Axis("vendor", "word", "the device's vendor", ("nvidia", "amd")),
    Axis("arch", "number", "the device's architecture"),
    Axis("matrix", "word", "the device's matrix units", ("none", "volta", "turing", "ampere", "mfma", "wmma")),
    Axis("fast_fp16", "flag", "fast f16 arithmetic"),
    Axis("smem", "number", "shared memory of a block, bytes"),
    Axis("head", "head", "head dims K/V"),
    Axis("gqa", "number", "query heads per KV head"),
    Axis("n_q", "number", "query rows"),
    Axis("n_kv", "number", "KV rows"),
    Axis("streams", "number", "streams"),
    Axis("kv", "kv", "K/V types"),
    Axis("quantised", "flag", "quantised K or V"),
    Axis("mask", "word", "the mask", ("none", "stream", "repeat", "head")),
    Axis("alibi", "flag", "ALiBi"),
    Axis("softcap", "flag", "a logit softcap"),
    Axis("sinks", "flag", "attention sinks"),
    Axis("align", "number", "alignment of Q, K and V in bytes"),
    Axis("mask_align", "number", "alignment of the mask in bytes"),
    Axis("view", "flag", "V being a view of K"),
    Axis("convertible", "flag", "K and V convertible to f16 as they lie"),
    Axis("rows", "flag", "rows that are contiguous"),
    Axis("wide", "number", "width of offsets (0: below 2 GiB, 1: KV rows beyond, 2: heads or rows of Q beyond)"),
    Axis("sparsity", "number", "KV rows per row that a query may see"),
)

#: Types that are not quantised.
FLOAT_TYPES = ("f32", "f16", "bf16")

INDEX = {axis.name: number for number, axis in enumerate(AXES)}

#: Axes that the device alone decides; the rest comes from the node.
DEVICE_AXES = ("vendor", "arch", "matrix", "fast_fp16", "smem")


def axis(name: str) -> Axis:
    """The axis of that name."""
    return AXES[INDEX[name]]
