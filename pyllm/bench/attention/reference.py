"""What a node's result should be, in double precision, for a sample of its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyllm._ffi import Attention
    from pyllm.routes.key import Node

#: Rows of the result that are looked at, of one stream and head each.
_SAMPLE = 24
#: The softcap that native/core/attention.cpp gives its nodes.
_SOFTCAP = 20.0
#: Values of K that are worth reading back for a check.
_MOST = 2**28


class Reference:
    """A sample of the first node's rows, ``[sample, d_v]``."""

    def __init__(self, attention: Attention, node: Node) -> None:
        self.node = node
        source = np.random.default_rng(1)
        q = attention.input("q").reshape(node.streams, node.n_head, node.n_q, node.d_k)
        k = attention.input("k").reshape(node.streams, node.n_head_kv, node.n_kv, node.d_k)
        v = attention.input("v").reshape(node.streams, node.n_head_kv, node.n_kv, node.d_v)
        self.places = [(int(source.integers(node.streams)), int(source.integers(node.n_head)), int(source.integers(node.n_q))) for _ in range(_SAMPLE)]
        self.rows = np.stack([self._row(q, k, v, place) for place in self.places])

    def _row(self, q: NDArray[np.float32], k: NDArray[np.float32], v: NDArray[np.float32], place: tuple[int, int, int]) -> NDArray[np.float64]:
        node = self.node
        stream, head, row = place
        group = head // (node.n_head // node.n_head_kv)
        last = max(0, node.n_kv - node.n_q + row) if node.mask != "none" else node.n_kv - 1
        first = max(0, last + 1 - node.n_kv_max) if node.n_kv_max else 0
        seen = slice(first, last + 1)
        scores = k[stream, group, seen].astype(np.float64) @ q[stream, head, row].astype(np.float64) / np.sqrt(node.d_k)
        if node.softcap:
            scores = _SOFTCAP * np.tanh(scores / _SOFTCAP)
        weights = np.exp(scores - scores.max())
        found: NDArray[np.float64] = weights @ v[stream, group, seen].astype(np.float64) / weights.sum()
        return found

    @staticmethod
    def covers(node: Node) -> bool:
        """Whether there is one for ``node``: not with ALiBi or sinks, which only the kernels' own tests look at, nor over very long caches."""
        return not (node.alibi or node.sinks or node.mask in {"repeat", "head"}) and node.streams * node.n_head_kv * node.n_kv * node.d_k <= _MOST

    def error(self, result: NDArray[np.float32]) -> float:
        """Squared error of a result over the squares of what it should be; NaN where it has one anywhere."""
        node = self.node
        whole = result.reshape(node.streams, node.n_q, node.n_head, node.d_v)
        if not np.isfinite(whole).all():
            return float("nan")
        rows = np.stack([whole[stream, row, head] for stream, head, row in self.places])
        return float(((rows - self.rows) ** 2).sum() / (self.rows**2).sum())
