"""The tensors that most architectures have in common."""

from __future__ import annotations

from dataclasses import replace

from pyllm.models.blueprint import Heads, Part, Role, Tensor

SHARP = 1.7
"""Gain of queries and keys without RoPE: scores get about its square as standard deviation, so that attention is
selective."""


def frame(n_embd: int, n_vocab: int, *, embed_gain: float = 1.0, head: bool = True) -> list[Tensor]:
    """Return token embeddings, final norm and head. ``embed_gain`` undoes what a graph multiplies embeddings with."""
    tensors = [
        Tensor("token_embd.weight", (n_vocab, n_embd), Role.EMBED, gain=embed_gain),
        Tensor("output_norm.weight", (n_embd,), Role.HEAD_NORM),
    ]
    if head:
        tensors.append(Tensor("output.weight", (n_vocab, n_embd), Role.HEAD))
    return tensors


def attention(
    i: int,
    n_embd: int,
    n_head_kv: int,
    heads: Heads,
    *,
    part: Part = Part.TARGET,
    gain: float = 1.2,
    value: bool = True,
) -> list[Tensor]:
    """Return the projections of one attention layer and, where ``heads.normed``, the norms of its heads.

    Args:
        i: block.
        n_embd: width of the stream.
        n_head_kv: key heads.
        heads: the query heads; there are ``n_head_kv`` key heads of the same kind.
        part: what the layer belongs to.
        gain: of the output projection.
        value: False for layers that use the key projection for values, too.

    """
    keys = replace(heads, count=n_head_kv, gated=False)
    q_rows = heads.count * heads.dim * (2 if heads.gated else 1)
    kv_rows = n_head_kv * heads.dim
    sharp = 1.0 if heads.n_rot else SHARP
    tensors = [
        Tensor(f"blk.{i}.attn_q.weight", (q_rows, n_embd), Role.QUERY, sharp, i, part, heads=heads),
        Tensor(f"blk.{i}.attn_k.weight", (kv_rows, n_embd), Role.KEY, sharp, i, part, heads=keys),
    ]
    if value:
        tensors.append(Tensor(f"blk.{i}.attn_v.weight", (kv_rows, n_embd), Role.VALUE, 1.0, i, part))
    tensors.append(Tensor(f"blk.{i}.attn_output.weight", (n_embd, heads.count * heads.dim), Role.ATTN_OUT, gain, i, part))
    if heads.normed:
        tensors += [
            Tensor(f"blk.{i}.attn_q_norm.weight", (heads.dim,), Role.HEAD_SCALE, 1.0, i, part, heads=heads),
            Tensor(f"blk.{i}.attn_k_norm.weight", (heads.dim,), Role.HEAD_SCALE, 1.0, i, part, heads=keys),
        ]
    return tensors


def ffn(i: int, n_embd: int, n_ff: int, *, part: Part = Part.TARGET, gate: bool = True) -> list[Tensor]:
    """Return a dense feed-forward layer; without a gate it is the squared-ReLU form."""
    tensors = [Tensor(f"blk.{i}.ffn_gate.weight", (n_ff, n_embd), Role.GATE, 1.0, i, part)] if gate else []
    return [
        *tensors,
        Tensor(f"blk.{i}.ffn_up.weight", (n_ff, n_embd), Role.UP, 1.0, i, part),
        Tensor(f"blk.{i}.ffn_down.weight", (n_embd, n_ff), Role.DOWN, 0.8, i, part),
    ]
