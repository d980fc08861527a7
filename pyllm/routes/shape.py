"""The attention node of a layer for a certain load, and what follows from how its tensors lie in memory.

The graph: ``src/llama-graph.cpp`` (``build_attn_mha``); K and V: ``src/llama-kv-cache.cpp`` (``get_k``, ``get_v``) of the pinned upstream.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from pyllm.routes.key import Node

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyllm.routes.flags import Memory
    from pyllm.routes.header import Header, Layer

_LARGEST = 2**31 - 1
_ALIGN = 16
_F32, _F16 = 4, 2


class Tensor(NamedTuple):
    """ggml's ``ne`` and ``nb``: values and bytes, fastest axis first."""

    ne: Sequence[int]
    nb: Sequence[int]


def row_bytes(type_kv: str, values: int) -> int:
    """Bytes of so many values of a KV type."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[type_kv.upper()]]
    return values // block * size


def block_of(type_kv: str) -> int:
    """Values that a KV type stores together."""
    return GGML_QUANT_SIZES[GGMLQuantizationType[type_kv.upper()]][0]


def width(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> int:
    """``Node.wide``; the same as ``width`` in ``native/route/node.cpp``. A ``mask`` of zeros is none."""

    def over(tensor: Tensor, axis: int) -> bool:
        return tensor.ne[axis] * tensor.nb[axis] > _LARGEST

    values = v.ne[0] * q.ne[1] * q.ne[2] * q.ne[3]
    if over(q, 1) or values > _LARGEST or any(over(tensor, 2) or tensor.nb[1] > _LARGEST for tensor in (q, k, v)):
        return 2
    return int(any(over(tensor, 1) for tensor in (k, v, mask)))


def node(header: Header, layer: Layer, memory: Memory, *, n_q: int, streams: int, n_kv: int, heads: tuple[int, int] | None = None) -> Node:
    """The node of ``layer`` over ``n_kv`` rows of ``memory``; ``heads`` are those of a device's slice, by default all."""
    n_head, n_head_kv = heads or (layer.n_head, layer.n_head_kv)
    latent = layer.kind == "latent"
    # Graphs cast f32 caches to f16, which makes tensors of their own: nothing is a view any more.
    cast = "f32" in {memory.type_k, memory.type_v}
    type_k, type_v = ("f16" if one == "f32" else one for one in (memory.type_k, memory.type_v))
    view = latent and not cast
    cells = memory.cells_of(layer.kind)
    k = _cached(type_k, (layer.d_k, n_kv, n_head_kv, streams), layer.d_k, cells)
    v = _cached(type_v, (layer.d_v, n_kv, n_head_kv, streams), layer.d_k if view else layer.d_v, cells)
    q_row = layer.d_k * n_head * _F32
    q = Tensor((layer.d_k, n_q, n_head, streams), (_F32, q_row, layer.d_k * _F32, q_row * n_q))
    mask = Tensor((n_kv, n_q, 1, streams), (_F16, n_kv * _F16, n_kv * n_q * _F16, n_kv * n_q * _F16))
    return Node(
        d_k=layer.d_k,
        d_v=layer.d_v,
        n_head=n_head,
        n_head_kv=n_head_kv,
        n_q=n_q,
        n_kv=n_kv,
        streams=streams,
        type_k=type_k,
        type_v=type_v,
        alibi=header.alibi,
        softcap=header.softcap,
        sinks=layer.sinks,
        align=min(alignment(q), *(alignment(one) for one, kind in ((k, type_k), (v, type_v)) if block_of(kind) == 1), _ALIGN),
        mask_align=alignment(mask),
        view=view,
        # Several slots' caches are one piece only where every cell is read; the front of a row never is.
        dense=not view and (streams == 1 or n_kv == cells),
        wide=width(q, k, v, mask),
        n_kv_max=min(layer.top_k, n_kv) if layer.top_k else 0,
    )


def _cached(type_kv: str, ne: tuple[int, int, int, int], head_dim: int, cells: int) -> Tensor:
    """K or V of a cache with so many cells, whose heads take ``head_dim`` values each."""
    row = row_bytes(type_kv, head_dim * ne[2])
    return Tensor(ne, (row_bytes(type_kv, block_of(type_kv)), row, row_bytes(type_kv, head_dim), row * cells))


def alignment(tensor: Tensor) -> int:
    """Bytes, at most 16, that divide every stride above the first; the same as ``alignment`` in ``native/route/node.cpp`` for offset 0."""
    return math.gcd(_ALIGN, *(stride for size, stride in zip(tensor.ne[1:], tensor.nb[1:], strict=True) if size > 1))
