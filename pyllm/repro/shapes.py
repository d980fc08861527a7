"""The tensors of an attention node as a selector finds them, and whether they belong together.

A reported node may have been corrupted: a stale graph, recycled tensors. Rules and sentences are those by which the native library refuses such a node,
``contradiction`` in ``native/route/node.cpp``, as far as they are about shapes.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyllm.errors import ConfigError

#: ggml's ``ne``: Q ``[d_k, n_q, n_head, streams]``, K ``[d_k, n_kv, n_head_kv, streams]``, V ``[d_v, n_kv, n_head_kv, streams]``, mask
#: ``[n_kv, n_q, heads, streams]``.
Shape = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Shapes:
    """Shapes of Q, K, V and the mask, None without one."""

    q: Shape
    k: Shape
    v: Shape
    mask: Shape | None

    @property
    def mask_kind(self) -> str:
        """The mask as the axis of that name has it."""
        if self.mask is None:
            return "none"
        if self.mask[2] > 1:
            return "head"
        return "stream" if self.mask[3] == self.q[3] else "repeat"

    def __str__(self) -> str:
        return f"Q {list(self.q)} K {list(self.k)} V {list(self.v)} mask {'none' if self.mask is None else list(self.mask)}"

    def contradictions(self) -> list[str]:
        """What contradicts what."""
        q, k, v = self.q, self.k, self.v
        rules = [
            (q[0] == k[0], f"head dims of Q and K differ: {q[0]} and {k[0]}"),
            (k[1] == v[1], f"rows of K and V differ: {k[1]} and {v[1]}"),
            (k[2] == v[2], f"heads of K and V differ: {k[2]} and {v[2]}"),
            (q[2] % k[2] == 0, f"query heads do not divide over KV heads: {q[2]} and {k[2]}"),
            (q[3] == k[3] == v[3], f"streams of Q, K and V differ: {q[3]}, {k[3]}, {v[3]}"),
        ]
        if self.mask is not None:
            mask = self.mask
            rules += [
                (mask[0] == k[1], f"columns of the mask and rows of K differ: {mask[0]} and {k[1]}"),
                (mask[1] >= q[1], f"the mask has fewer rows than Q: {mask[1]} and {q[1]}"),
                (q[2] % mask[2] == 0, f"query heads do not divide over the mask's: {q[2]} and {mask[2]}"),
                (q[3] % mask[3] == 0, f"streams do not divide over the mask's: {q[3]} and {mask[3]}"),
            ]
        return [text for holds, text in rules if not holds]

    def check(self) -> None:
        """Refuse shapes that contradict each other.

        Raises:
            ConfigError: the first contradiction.
        """
        for text in self.contradictions():
            raise ConfigError(text, "such a node was corrupted, by a stale graph or recycled tensors: no route may run it")
