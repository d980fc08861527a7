"""Attention nodes that a context has issued."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyllm._ffi.door import kv_type_name, text_of

OPS = {1: "FLASH_ATTN_EXT", 2: "SOFT_MAX"}

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class AttentionNode:
    """One kind of node. Shapes are ggml's ``ne`` (fastest first), strides its ``nb`` in bytes; all 0 where a tensor is absent.

    ``view``, ``dense``, ``align``, ``mask_align`` (bytes) and ``n_kv_max`` are what a route depends on: see ``pyllm.routes.key.Node``.
    """

    name: str
    device: str
    op: str
    types: tuple[str, str, str]
    q: Shape
    k: Shape
    v: Shape
    mask: Shape
    q_strides: Shape
    k_strides: Shape
    v_strides: Shape
    mask_strides: Shape
    scale: float
    max_bias: float
    softcap: float
    sinks: bool
    view: bool
    dense: bool
    align: int
    mask_align: int
    n_kv_max: int
    n_calls: int

    @classmethod
    def of(cls, node: Any) -> AttentionNode:
        """From the C struct."""

        def four(values: Any) -> Shape:
            return (int(values[0]), int(values[1]), int(values[2]), int(values[3]))

        def name(number: int) -> str:
            return kv_type_name(number) if number >= 0 else ""

        return cls(
            name=text_of(node.name),
            device=text_of(node.device),
            op=OPS[node.op],
            types=(name(node.type_q), name(node.type_k), name(node.type_v)),
            q=four(node.ne_q),
            k=four(node.ne_k),
            v=four(node.ne_v),
            mask=four(node.ne_mask),
            q_strides=four(node.nb_q),
            k_strides=four(node.nb_k),
            v_strides=four(node.nb_v),
            mask_strides=four(node.nb_mask),
            scale=float(node.scale),
            max_bias=float(node.max_bias),
            softcap=float(node.softcap),
            sinks=bool(node.has_sinks),
            view=bool(node.is_view),
            dense=bool(node.is_dense),
            align=int(node.align),
            mask_align=int(node.mask_align),
            n_kv_max=int(node.n_kv_max),
            n_calls=int(node.n_calls),
        )
