"""``nemotron_h`` and ``nemotron_h_moe``: Mamba-2, attention without RoPE and feed-forward, each a block of its own.

Tensor layout: ``src/models/nemotron-h.cpp``, ``src/models/nemotron-h-moe.cpp``. Which kind a block is follows from
its KV heads and its feed-forward length, both zero for Mamba-2. Only the MoE architecture has a nextn graph.
"""

from __future__ import annotations

import numpy as np

from pyllm.errors import ConfigError
from pyllm.models.architectures.block import Mamba2, attention, ffn, frame, mamba2
from pyllm.models.blueprint import Blueprint, Heads, Part, Role, Tensor, Value

N_EMBD, N_FF, N_VOCAB = 256, 128, 512
N_HEAD, N_HEAD_KV, HEAD_DIM = 32, 2, 128
SSM = Mamba2(d_conv=4, d_state=128, n_group=2, n_head=8, d_inner=512)
N_EXPERT, N_EXPERT_USED = 4, 2
PATTERN = "M*-"
"""Kinds of the blocks, repeated: Mamba-2, attention, feed-forward."""


def blueprint(width: int = 1, layers: int | None = None, *, moe: bool) -> Blueprint:
    """Return the blueprint; ``layers`` counts the target's blocks, a multiple of three.

    With ``moe`` a nextn block comes on top.

    Raises:
        ConfigError: ``layers`` is not a positive multiple of three.

    """
    n_layer = 2 * len(PATTERN) if layers is None else layers
    if n_layer < len(PATTERN) or n_layer % len(PATTERN):
        raise ConfigError(
            f"nemotron-h needs a positive multiple of {len(PATTERN)} layers, not {n_layer}",
            f"its blocks repeat the pattern {PATTERN!r} (Mamba-2, attention, feed-forward)",
        )
    n_embd, n_ff = N_EMBD * width, N_FF * width
    kinds = PATTERN * (n_layer // len(PATTERN))
    n_nextn = 1 if moe else 0
    metadata: dict[str, Value] = {
        "vocab_size": N_VOCAB,
        "context_length": 8192,
        "embedding_length": n_embd,
        "block_count": n_layer + n_nextn,
        "feed_forward_length": [n_ff if k == "-" else 0 for k in kinds] + [n_ff] * n_nextn,
        "attention.head_count": N_HEAD,
        "attention.head_count_kv": [N_HEAD_KV if k == "*" else 0 for k in kinds] + [N_HEAD_KV] * n_nextn,
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
        "attention.layer_norm_epsilon": 1e-6,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.dimension_count": HEAD_DIM,
        **SSM.metadata(),
    }
    if moe:
        metadata |= {
            "nextn_predict_layers": n_nextn,
            "expert_count": N_EXPERT,
            "expert_used_count": N_EXPERT_USED,
            "expert_shared_count": 1,
            "expert_feed_forward_length": n_ff,
            "expert_shared_feed_forward_length": n_ff,
            "expert_weights_norm": True,
            "expert_weights_scale": 1.0,
        }
    plan = Blueprint("nemotron_h_moe" if moe else "nemotron_h", metadata, n_embd=n_embd, n_embd_target=n_embd)
    plan.tensors += frame(n_embd, N_VOCAB)
    for i, kind in enumerate(kinds):
        plan.tensors.append(Tensor(f"blk.{i}.attn_norm.weight", (n_embd,), Role.NORM, layer=i))
        if kind == "M":
            plan.tensors += mamba2(i, n_embd, SSM, gain=3.0)
        elif kind == "*":
            plan.tensors += _attention(i, n_embd, Part.TARGET)
        else:
            plan.tensors += _experts(i, n_embd, n_ff, Part.TARGET) if moe else ffn(i, n_embd, n_ff, gate=False)
    if moe:
        i, part = n_layer, Part.NEXTN
        plan.tensors += [
            Tensor(f"blk.{i}.nextn.enorm.weight", (n_embd,), Role.NORM, layer=i, part=part),
            Tensor(f"blk.{i}.nextn.hnorm.weight", (n_embd,), Role.NORM, layer=i, part=part),
            Tensor(f"blk.{i}.nextn.eh_proj.weight", (n_embd, 2 * n_embd), Role.FUSE, layer=i, part=part),
            Tensor(f"blk.{i}.nextn.shared_head_norm.weight", (n_embd,), Role.HEAD_NORM, layer=i, part=part),
            Tensor(f"blk.{i}.attn_norm.weight", (n_embd,), Role.NORM, layer=i, part=part),
            *_attention(i, n_embd, part),
            Tensor(f"blk.{i}.post_attention_norm.weight", (n_embd,), Role.NORM, layer=i, part=part),
            *_experts(i, n_embd, n_ff, part),
        ]
    return plan


def _attention(i: int, n_embd: int, part: Part) -> list[Tensor]:
    return attention(i, n_embd, N_HEAD_KV, Heads(N_HEAD, HEAD_DIM, 0, 1.0, HEAD_DIM**-0.5), part=part)


def _experts(i: int, n_embd: int, n_ff: int, part: Part) -> list[Tensor]:
    return [
        Tensor(f"blk.{i}.ffn_gate_inp.weight", (N_EXPERT, n_embd), Role.IN, 1.5, i, part, single=True),
        Tensor(
            f"blk.{i}.exp_probs_b.bias",
            (N_EXPERT,),
            Role.FIXED,
            layer=i,
            part=part,
            fixed=np.zeros(N_EXPERT, np.float32),
        ),
        Tensor(f"blk.{i}.ffn_up_exps.weight", (N_EXPERT, n_ff, n_embd), Role.EXPERT_UP, 1.0, i, part),
        Tensor(f"blk.{i}.ffn_down_exps.weight", (N_EXPERT, n_embd, n_ff), Role.EXPERT_DOWN, 1.0, i, part),
        Tensor(f"blk.{i}.ffn_up_shexp.weight", (n_ff, n_embd), Role.UP, 1.0, i, part),
        Tensor(f"blk.{i}.ffn_down_shexp.weight", (n_embd, n_ff), Role.DOWN, 1.0, i, part),
    ]
