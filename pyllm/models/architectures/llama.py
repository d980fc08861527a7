"""``llama``: dense, full attention in every layer (tensor layout: ``src/models/llama.cpp``)."""

from __future__ import annotations

from pyllm.models.architectures.block import attention, ffn, frame
from pyllm.models.blueprint import Blueprint, Heads, Role, Tensor

N_EMBD, N_FF, N_HEAD, N_HEAD_KV, HEAD_DIM = 256, 128, 8, 2, 64


def blueprint(width: int = 1, layers: int | None = None, *, foreign_vocabulary: bool = False) -> Blueprint:
    """Return the blueprint, of any number of layers.

    ``foreign_vocabulary`` gives another vocabulary, of another size.
    """
    n_layer = 4 if layers is None else layers
    n_embd, n_ff = N_EMBD * width, N_FF * width
    n_vocab = 768 if foreign_vocabulary else 512
    plan = Blueprint(
        "llama",
        {
            "vocab_size": n_vocab,
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
            "rope.freq_base": 10000.0,
        },
        n_embd=n_embd,
        ballast=True,
        n_vocab=n_vocab,
        reverse_vocabulary=foreign_vocabulary,
    )
    plan.tensors += frame(n_embd, n_vocab)
    heads = Heads(N_HEAD, HEAD_DIM, HEAD_DIM, 10000.0, HEAD_DIM**-0.5, interleaved=True)
    for i in range(n_layer):
        plan.tensors += [
            Tensor(f"blk.{i}.attn_norm.weight", (n_embd,), Role.NORM, layer=i),
            *attention(i, n_embd, N_HEAD_KV, heads),
            Tensor(f"blk.{i}.ffn_norm.weight", (n_embd,), Role.NORM, layer=i),
            *ffn(i, n_embd, n_ff),
        ]
    return plan
