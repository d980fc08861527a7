"""Tiny models of architectures that no recipe makes, for what their attention is: weights without meaning, two to four layers, width 64.

Tensors: ``src/models/<architecture>.cpp`` of the pinned upstream.
"""

from __future__ import annotations

import numpy as np

from pyllm.models import writer
from pyllm.models.blueprint import Blueprint, Role, Tensor

N_EMBD, N_FF, N_EXPERT, N_VOCAB = 64, 32, 2, 512

_ROPE = {"rope.dimension_count": 64}
_NORM = {"attention.layer_norm_rms_epsilon": 1e-6}
_EXPERTS = {"expert_count": N_EXPERT, "expert_used_count": 1, "expert_feed_forward_length": N_FF}
_WINDOW = {"attention.sliding_window": 32}


def _heads(n_head, n_head_kv, d_k, d_v):
    return {"attention.head_count": n_head, "attention.head_count_kv": n_head_kv, "attention.key_length": d_k, "attention.value_length": d_v}


def _attention(n_head, n_head_kv, d_k, d_v):
    """Separate projections; shapes are (n_out, n_in)."""
    return {
        "attn_norm.weight": (N_EMBD,),
        "attn_q.weight": (n_head * d_k, N_EMBD),
        "attn_k.weight": (n_head_kv * d_k, N_EMBD),
        "attn_v.weight": (n_head_kv * d_v, N_EMBD),
        "attn_output.weight": (N_EMBD, n_head * d_v),
    }


_FFN = {"ffn_norm.weight": (N_EMBD,), "ffn_gate.weight": (N_FF, N_EMBD), "ffn_up.weight": (N_FF, N_EMBD), "ffn_down.weight": (N_EMBD, N_FF)}
_D_INNER, _D_STATE, _N_SSM_HEAD, _D_CONV = 128, 16, 4, 4
_CONV_DIM = _D_INNER + 2 * _D_STATE

#: What each has: layers, metadata, tensors of a layer.
MODELS = {
    # A logit softcap, every second layer with a window.
    "gemma2": (
        4,
        _heads(8, 4, 256, 256) | _NORM | _WINDOW | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        _attention(8, 4, 256, 256) | _FFN | {"post_attention_norm.weight": (N_EMBD,), "post_ffw_norm.weight": (N_EMBD,)},
    ),
    # ALiBi, no rotation; head dims follow from the width.
    "mpt": (
        2,
        {"attention.head_count": 4, "attention.layer_norm_epsilon": 1e-5, "attention.max_alibi_bias": 8.0},
        {
            "attn_norm.weight": (N_EMBD,),
            "attn_qkv.weight": (3 * N_EMBD, N_EMBD),
            "attn_output.weight": (N_EMBD, N_EMBD),
            "ffn_norm.weight": (N_EMBD,),
            "ffn_up.weight": (N_FF, N_EMBD),
            "ffn_down.weight": (N_EMBD, N_FF),
        },
    ),
    # Attention sinks, every second layer with a window.
    "gpt-oss": (
        2,
        _heads(8, 1, 64, 64) | _ROPE | _NORM | _WINDOW | _EXPERTS,
        _attention(8, 1, 64, 64)
        | {
            "attn_output.bias": (N_EMBD,),
            "attn_sinks.weight": (8,),
            "post_attention_norm.weight": (N_EMBD,),
            "ffn_gate_inp.weight": (N_EXPERT, N_EMBD),
            "ffn_gate_inp.bias": (N_EXPERT,),
        }
        | {f"ffn_{name}_exps.weight": (N_EXPERT, N_FF, N_EMBD) for name in ("gate", "up")}
        | {f"ffn_{name}_exps.bias": (N_EXPERT, N_FF) for name in ("gate", "up")}
        | {"ffn_down_exps.weight": (N_EXPERT, N_EMBD, N_FF), "ffn_down_exps.bias": (N_EXPERT, N_EMBD)},
    ),
    # Multi-head latent attention: one row of 576 for all heads, V is its first 512.
    "deepseek2": (
        2,
        _heads(16, 1, 576, 512)
        | _NORM
        | _EXPERTS
        | {
            "rope.dimension_count": 64,
            "attention.key_length_mla": 192,
            "attention.value_length_mla": 128,
            "attention.kv_lora_rank": 512,
            "attention.q_lora_rank": 32,
            "leading_dense_block_count": 2,
            "expert_shared_count": 1,
        },
        _FFN
        | {
            "attn_norm.weight": (N_EMBD,),
            "attn_q_a.weight": (32, N_EMBD),
            "attn_q_a_norm.weight": (32,),
            "attn_q_b.weight": (16 * 192, 32),
            "attn_kv_a_mqa.weight": (576, N_EMBD),
            "attn_kv_a_norm.weight": (512,),
            "attn_k_b.weight": (16, 512, 128),
            "attn_v_b.weight": (16, 128, 512),
            "attn_output.weight": (N_EMBD, 16 * 128),
        },
    ),
    # K and V of different head dims, a listed window, sinks.
    "mimo2": (
        3,
        _heads(8, 2, 192, 128) | _ROPE | _NORM | _WINDOW | _EXPERTS | {"attention.sliding_window_pattern": [False, True, True]},
        _attention(8, 2, 192, 128) | _FFN | {"attn_sinks.weight": (8,)},
    ),
    # Attention and a recurrent state in every layer.
    "falcon-h1": (
        2,
        _heads(8, 2, 64, 64)
        | _ROPE
        | _NORM
        | {
            "ssm.conv_kernel": _D_CONV,
            "ssm.inner_size": _D_INNER,
            "ssm.state_size": _D_STATE,
            "ssm.time_step_rank": _N_SSM_HEAD,
            "ssm.group_count": 1,
        },
        _attention(8, 2, 64, 64)
        | _FFN
        | {
            "ffn_norm": (N_EMBD,),
            "ssm_in.weight": (_D_INNER + _CONV_DIM + _N_SSM_HEAD, N_EMBD),
            "ssm_conv1d.weight": (_CONV_DIM, _D_CONV),
            "ssm_conv1d.bias": (_CONV_DIM,),
            "ssm_norm.weight": (1, _D_INNER),
            "ssm_dt.bias": (_N_SSM_HEAD,),
            "ssm_a": (_N_SSM_HEAD, 1),
            "ssm_d": (_N_SSM_HEAD, 1),
            "ssm_out.weight": (N_EMBD, _D_INNER),
        },
    ),
}
MODELS["falcon-h1"][2].pop("ffn_norm.weight")


def make(architecture, path):
    """Write one."""
    n_layers, metadata, tensors = MODELS[architecture]
    sizes = {
        "vocab_size": N_VOCAB,
        "context_length": 2048,
        "embedding_length": N_EMBD,
        "block_count": n_layers,
        "feed_forward_length": N_FF,
    }
    plan = Blueprint(architecture, sizes | metadata, n_embd=N_EMBD)
    named = {"token_embd.weight": (N_VOCAB, N_EMBD), "output_norm.weight": (N_EMBD,)}
    if architecture != "gemma2":
        named["output.weight"] = (N_VOCAB, N_EMBD)
    named |= {f"blk.{layer}.{name}": shape for layer in range(n_layers) for name, shape in tensors.items()}
    plan.tensors = [Tensor(name, shape, Role.FIXED) for name, shape in named.items()]
    random = np.random.default_rng(0)
    weights = ((tensor, _values(tensor, random)) for tensor in plan.tensors)
    writer.write(path, architecture, plan, weights, "f32")
    return path


def _values(tensor, random):
    if tensor.name.endswith("ssm_a"):
        return -np.ones(tensor.shape, np.float32)
    if "norm" in tensor.name:
        return np.ones(tensor.shape, np.float32)
    return random.normal(0, 0.05, tensor.shape).astype(np.float32)
