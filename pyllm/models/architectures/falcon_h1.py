"""``falcon-h1``: attention and Mamba-2 side by side in every layer (tensor layout: ``src/models/falcon-h1.cpp``).

Upstream keeps no snapshots of its recurrent state: a rejected draft can only be taken back from a checkpoint.
"""

from __future__ import annotations

from pyllm.models.architectures.block import Mamba2, attention, ffn, frame, mamba2
from pyllm.models.blueprint import Blueprint, Heads, Role, Tensor

N_EMBD, N_FF, N_VOCAB = 256, 128, 512
N_HEAD, N_HEAD_KV, HEAD_DIM, FREQ_BASE = 8, 2, 64, 10000.0
SSM = Mamba2(d_conv=4, d_state=64, n_group=1, n_head=8, d_inner=512)


def blueprint(width: int = 1, layers: int | None = None) -> Blueprint:
    """Return the blueprint, of any number of layers."""
    n_layer = 3 if layers is None else layers
    n_embd, n_ff = N_EMBD * width, N_FF * width
    plan = Blueprint(
        "falcon-h1",
        {
            "vocab_size": N_VOCAB,
            "context_length": 8192,
            "embedding_length": n_embd,
            "block_count": n_layer,
            "feed_forward_length": n_ff,
            "attention.head_count": N_HEAD,
            "attention.head_count_kv": N_HEAD_KV,
            "attention.key_length": HEAD_DIM,
            "attention.value_length": HEAD_DIM,
            "attention.layer_norm_rms_epsilon": 1e-6,
            "rope.dimension_count": HEAD_DIM,
            "rope.freq_base": FREQ_BASE,
            **SSM.metadata(),
        },
        n_embd=n_embd,
        n_embd_target=n_embd,
        ballast=True,
    )
    plan.tensors += frame(n_embd, N_VOCAB)
    heads = Heads(N_HEAD, HEAD_DIM, HEAD_DIM, FREQ_BASE, HEAD_DIM**-0.5)
    for i in range(n_layer):
        plan.tensors += [
            Tensor(f"blk.{i}.attn_norm.weight", (n_embd,), Role.NORM, layer=i),
            *attention(i, n_embd, N_HEAD_KV, heads, gain=1.0),
            *mamba2(i, n_embd, SSM, gain=0.8),
            # upstream reads this one without the usual suffix
            Tensor(f"blk.{i}.ffn_norm", (n_embd,), Role.NORM, layer=i),
            *ffn(i, n_embd, n_ff),
        ]
    return plan
