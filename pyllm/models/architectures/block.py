"""The tensors that most architectures have in common."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pyllm.models.blueprint import Heads, Part, Role, Tensor

SHARP = 1.7
"""Gain of queries and keys without RoPE: scores get about its square as standard deviation, so that attention is
selective."""


def frame(n_embd: int, n_vocab: int, *, embed_gain: float = 1.0, head: bool = True, part: Part = Part.TARGET) -> list[Tensor]:
    """Return token embeddings, final norm and head. ``embed_gain`` undoes what a graph multiplies embeddings with."""
    tensors = [
        Tensor("token_embd.weight", (n_vocab, n_embd), Role.EMBED, gain=embed_gain, part=part),
        Tensor("output_norm.weight", (n_embd,), Role.HEAD_NORM, part=part),
    ]
    if head:
        tensors.append(Tensor("output.weight", (n_vocab, n_embd), Role.HEAD, part=part))
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


@dataclass(frozen=True)
class Mamba2:
    """Sizes of a Mamba-2 mixer, by ggml's names."""

    d_conv: int
    d_state: int
    n_group: int
    n_head: int
    d_inner: int

    def metadata(self) -> dict[str, int]:
        """Return the keys that all architectures with such a mixer have."""
        return {
            "ssm.conv_kernel": self.d_conv,
            "ssm.inner_size": self.d_inner,
            "ssm.state_size": self.d_state,
            "ssm.time_step_rank": self.n_head,
            "ssm.group_count": self.n_group,
        }


def mamba2(i: int, n_embd: int, size: Mamba2, *, gain: float) -> list[Tensor]:
    """Return one Mamba-2 mixer; ``gain`` is its output projection's. The convolution's bias is zero, but has to be there: the graph reads it unasked."""
    conv_dim = size.d_inner + 2 * size.n_group * size.d_state
    n_head = size.n_head
    # decay per token is exp(ssm_a * softplus(dt)), dt about ssm_dt: the heads remember from a few to about a hundred
    # tokens
    decay = -np.geomspace(0.02, 0.5, n_head).astype(np.float32).reshape(n_head, 1)
    ones = np.ones((n_head, 1), np.float32)
    return [
        Tensor(f"blk.{i}.ssm_in.weight", (size.d_inner + conv_dim + n_head, n_embd), Role.IN, layer=i),
        Tensor(f"blk.{i}.ssm_conv1d.weight", (conv_dim, size.d_conv), Role.IN, 1.5, i, single=True),
        Tensor(f"blk.{i}.ssm_conv1d.bias", (conv_dim,), Role.FIXED, layer=i, fixed=np.zeros(conv_dim, np.float32)),
        Tensor(f"blk.{i}.ssm_dt.bias", (n_head,), Role.FIXED, layer=i, fixed=np.full(n_head, -1.0, np.float32)),
        Tensor(f"blk.{i}.ssm_a", (n_head, 1), Role.FIXED, layer=i, fixed=decay, single=True),
        Tensor(f"blk.{i}.ssm_d", (n_head, 1), Role.FIXED, layer=i, fixed=ones, single=True),
        Tensor(f"blk.{i}.ssm_norm.weight", (size.n_group, size.d_inner // size.n_group), Role.NORM, layer=i, single=True),
        Tensor(f"blk.{i}.ssm_out.weight", (n_embd, size.d_inner), Role.OUT, gain, i),
    ]
