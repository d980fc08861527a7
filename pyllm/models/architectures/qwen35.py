"""``qwen35``: gated delta net, full attention in every fourth layer, and a nextn block.

Tensor layout: ``src/models/qwen35.cpp``.
"""

from __future__ import annotations

import numpy as np

from pyllm.errors import ConfigError
from pyllm.models.architectures.block import attention, ffn, frame
from pyllm.models.blueprint import Blueprint, Heads, Part, Role, Tensor

N_EMBD, N_FF, N_VOCAB = 256, 128, 512
N_HEAD, N_HEAD_KV, HEAD_DIM = 12, 2, 256
N_ROT, FREQ_BASE = HEAD_DIM // 4, 10000000.0
FULL_ATTENTION_INTERVAL = 4
D_CONV, D_STATE, N_GROUP, N_V_HEAD = 4, 128, 2, 4
D_INNER = D_STATE * N_V_HEAD


def blueprint(width: int = 1, layers: int | None = None) -> Blueprint:
    """Return the blueprint; ``layers`` counts the target's blocks, a multiple of four; the nextn block comes on top.

    Raises:
        ConfigError: ``layers`` is not a positive multiple of four.

    """
    n_layer = FULL_ATTENTION_INTERVAL if layers is None else layers
    if n_layer < FULL_ATTENTION_INTERVAL or n_layer % FULL_ATTENTION_INTERVAL:
        raise ConfigError(
            f"qwen35 needs a positive multiple of {FULL_ATTENTION_INTERVAL} layers, not {n_layer}",
            f"every {FULL_ATTENTION_INTERVAL}th layer is full attention; the nearest is "
            f"{max(1, round(n_layer / FULL_ATTENTION_INTERVAL)) * FULL_ATTENTION_INTERVAL}",
        )
    n_embd, n_ff = N_EMBD * width, N_FF * width
    plan = Blueprint(
        "qwen35",
        {
            "vocab_size": N_VOCAB,
            "context_length": 8192,
            "embedding_length": n_embd,
            "block_count": n_layer + 1,
            "nextn_predict_layers": 1,
            "feed_forward_length": n_ff,
            "full_attention_interval": FULL_ATTENTION_INTERVAL,
            "attention.head_count": N_HEAD,
            "attention.head_count_kv": N_HEAD_KV,
            "attention.key_length": HEAD_DIM,
            "attention.value_length": HEAD_DIM,
            "attention.layer_norm_rms_epsilon": 1e-6,
            "rope.dimension_count": N_ROT,
            "rope.dimension_sections": [11, 11, 10, 0],
            "rope.freq_base": FREQ_BASE,
            "ssm.conv_kernel": D_CONV,
            "ssm.inner_size": D_INNER,
            "ssm.state_size": D_STATE,
            "ssm.time_step_rank": N_V_HEAD,
            "ssm.group_count": N_GROUP,
        },
        n_embd=n_embd,
        n_embd_target=n_embd,
    )
    plan.tensors += frame(n_embd, N_VOCAB)
    for i in range(n_layer):
        full = (i + 1) % FULL_ATTENTION_INTERVAL == 0
        mixer = _full_attention(i, n_embd, Part.TARGET) if full else _delta_net(i, n_embd)
        plan.tensors += [*_norms(i, n_embd, Part.TARGET), *mixer, *ffn(i, n_embd, n_ff)]
    i, part = n_layer, Part.NEXTN
    plan.tensors += [
        *_norms(i, n_embd, part),
        *_full_attention(i, n_embd, part),
        *ffn(i, n_embd, n_ff, part=part),
        Tensor(f"blk.{i}.nextn.eh_proj.weight", (n_embd, 2 * n_embd), Role.FUSE, layer=i, part=part),
        Tensor(f"blk.{i}.nextn.enorm.weight", (n_embd,), Role.NORM, layer=i, part=part),
        Tensor(f"blk.{i}.nextn.hnorm.weight", (n_embd,), Role.NORM, layer=i, part=part),
        Tensor(f"blk.{i}.nextn.shared_head_norm.weight", (n_embd,), Role.HEAD_NORM, layer=i, part=part),
    ]
    return plan


def _norms(i: int, n_embd: int, part: Part) -> list[Tensor]:
    return [
        Tensor(f"blk.{i}.attn_norm.weight", (n_embd,), Role.NORM, layer=i, part=part),
        # despite its name it stands in front of the FFN, behind the attention's residual
        Tensor(f"blk.{i}.post_attention_norm.weight", (n_embd,), Role.NORM, layer=i, part=part),
    ]


def _full_attention(i: int, n_embd: int, part: Part) -> list[Tensor]:
    heads = Heads(N_HEAD, HEAD_DIM, N_ROT, FREQ_BASE, HEAD_DIM**-0.5, normed=True, gated=True)
    return attention(i, n_embd, N_HEAD_KV, heads, part=part, gain=2.0)


def _delta_net(i: int, n_embd: int) -> list[Tensor]:
    conv_dim = 2 * D_STATE * N_GROUP + D_INNER
    return [
        Tensor(f"blk.{i}.attn_qkv.weight", (conv_dim, n_embd), Role.IN, layer=i),
        Tensor(f"blk.{i}.attn_gate.weight", (D_INNER, n_embd), Role.IN, 1.5, i),
        Tensor(f"blk.{i}.ssm_conv1d.weight", (conv_dim, D_CONV), Role.IN, 1.5, i, single=True),
        # decay per token is exp(ssm_a * softplus(ssm_alpha·x + ssm_dt)): about 0.9 here, the state remembers tens of
        # tokens
        Tensor(f"blk.{i}.ssm_dt.bias", (N_V_HEAD,), Role.FIXED, layer=i, fixed=np.full(N_V_HEAD, -1.0, np.float32)),
        Tensor(f"blk.{i}.ssm_a", (N_V_HEAD,), Role.FIXED, layer=i, fixed=-np.linspace(0.1, 0.4, N_V_HEAD, dtype=np.float32)),
        Tensor(f"blk.{i}.ssm_beta.weight", (N_V_HEAD, n_embd), Role.IN, layer=i),
        Tensor(f"blk.{i}.ssm_alpha.weight", (N_V_HEAD, n_embd), Role.IN, layer=i),
        Tensor(f"blk.{i}.ssm_norm.weight", (D_STATE,), Role.NORM, layer=i),
        Tensor(f"blk.{i}.ssm_out.weight", (n_embd, D_INNER), Role.OUT, 1.5, i),
    ]
