"""``qwen35``: gated delta net, full attention in every fourth layer, and a nextn block.

Tensor layout: ``src/models/qwen35.cpp``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyllm.errors import ConfigError
from pyllm.models.architectures.block import attention, ffn, frame
from pyllm.models.blueprint import Blueprint, Heads, Part, Role, Tensor

N_VOCAB, HEAD_DIM = 512, 256
N_ROT, FREQ_BASE = HEAD_DIM // 4, 10000000.0
FULL_ATTENTION_INTERVAL = 4
D_CONV, D_STATE = 4, 128


@dataclass(frozen=True)
class Size:
    """Widths, heads and layers.

    Attributes:
        n_embd: width of the stream.
        n_ff: feed-forward width.
        n_head: query heads of full attention.
        n_head_kv: its KV heads.
        n_group: key heads of the delta net.
        n_v_head: its value heads.
        layers: blocks of the target unless the caller wants another number.
        context: tokens that the model says it was trained with.
        dense: see :class:`~pyllm.models.blueprint.Blueprint`.

    """

    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    n_group: int
    n_v_head: int
    layers: int
    context: int = 8192
    dense: bool = False


TINY = Size(256, 128, 12, 2, 2, 4, FULL_ATTENTION_INTERVAL)
M60 = Size(512, 1536, 4, 2, 4, 8, 16, dense=True)
SLICE_27B = Size(5120, 17408, 24, 4, 16, 48, 12, context=131072, dense=True)
B8 = Size(4096, 12288, 16, 4, 16, 32, 32, dense=True)


def blueprint(width: int = 1, layers: int | None = None, *, size: Size = TINY) -> Blueprint:
    """Return the blueprint; ``layers`` counts the target's blocks, a multiple of four; the nextn block comes on top.

    Raises:
        ConfigError: ``layers`` is not a positive multiple of four.

    """
    n_layer = size.layers if layers is None else layers
    if n_layer < FULL_ATTENTION_INTERVAL or n_layer % FULL_ATTENTION_INTERVAL:
        raise ConfigError(
            f"qwen35 needs a positive multiple of {FULL_ATTENTION_INTERVAL} layers, not {n_layer}",
            f"every {FULL_ATTENTION_INTERVAL}th layer is full attention; the nearest is "
            f"{max(1, round(n_layer / FULL_ATTENTION_INTERVAL)) * FULL_ATTENTION_INTERVAL}",
        )
    n_embd, n_ff = size.n_embd * width, size.n_ff * width
    plan = Blueprint(
        "qwen35",
        {
            "vocab_size": N_VOCAB,
            "context_length": size.context,
            "embedding_length": n_embd,
            "block_count": n_layer + 1,
            "nextn_predict_layers": 1,
            "feed_forward_length": n_ff,
            "full_attention_interval": FULL_ATTENTION_INTERVAL,
            "attention.head_count": size.n_head,
            "attention.head_count_kv": size.n_head_kv,
            "attention.key_length": HEAD_DIM,
            "attention.value_length": HEAD_DIM,
            "attention.layer_norm_rms_epsilon": 1e-6,
            "rope.dimension_count": N_ROT,
            "rope.dimension_sections": [11, 11, 10, 0],
            "rope.freq_base": FREQ_BASE,
            "ssm.conv_kernel": D_CONV,
            "ssm.inner_size": D_STATE * size.n_v_head,
            "ssm.state_size": D_STATE,
            "ssm.time_step_rank": size.n_v_head,
            "ssm.group_count": size.n_group,
        },
        n_embd=n_embd,
        n_embd_target=n_embd,
        dense=size.dense,
    )
    plan.tensors += frame(n_embd, N_VOCAB)
    for i in range(n_layer):
        full = (i + 1) % FULL_ATTENTION_INTERVAL == 0
        mixer = _full_attention(i, n_embd, size, Part.TARGET) if full else _delta_net(i, n_embd, size)
        plan.tensors += [*_norms(i, n_embd, Part.TARGET), *mixer, *ffn(i, n_embd, n_ff)]
    i, part = n_layer, Part.NEXTN
    plan.tensors += [
        *_norms(i, n_embd, part),
        *_full_attention(i, n_embd, size, part),
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


def _full_attention(i: int, n_embd: int, size: Size, part: Part) -> list[Tensor]:
    heads = Heads(size.n_head, HEAD_DIM, N_ROT, FREQ_BASE, HEAD_DIM**-0.5, normed=True, gated=True)
    return attention(i, n_embd, size.n_head_kv, heads, part=part, gain=2.0)


def _delta_net(i: int, n_embd: int, size: Size) -> list[Tensor]:
    n_v_head, d_inner = size.n_v_head, D_STATE * size.n_v_head
    conv_dim = 2 * D_STATE * size.n_group + d_inner
    return [
        Tensor(f"blk.{i}.attn_qkv.weight", (conv_dim, n_embd), Role.IN, layer=i),
        Tensor(f"blk.{i}.attn_gate.weight", (d_inner, n_embd), Role.IN, 1.5, i),
        Tensor(f"blk.{i}.ssm_conv1d.weight", (conv_dim, D_CONV), Role.IN, 1.5, i, single=True),
        # decay per token is exp(ssm_a * softplus(ssm_alpha·x + ssm_dt)): about 0.9 here, the state remembers tens of
        # tokens
        Tensor(f"blk.{i}.ssm_dt.bias", (n_v_head,), Role.FIXED, layer=i, fixed=np.full(n_v_head, -1.0, np.float32)),
        Tensor(f"blk.{i}.ssm_a", (n_v_head,), Role.FIXED, layer=i, fixed=-np.linspace(0.1, 0.4, n_v_head, dtype=np.float32)),
        Tensor(f"blk.{i}.ssm_beta.weight", (n_v_head, n_embd), Role.IN, layer=i),
        Tensor(f"blk.{i}.ssm_alpha.weight", (n_v_head, n_embd), Role.IN, layer=i),
        Tensor(f"blk.{i}.ssm_norm.weight", (D_STATE,), Role.NORM, layer=i),
        Tensor(f"blk.{i}.ssm_out.weight", (n_embd, d_inner), Role.OUT, 1.5, i),
    ]
