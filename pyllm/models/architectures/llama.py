"""``llama``: dense, full attention in every layer (tensor layout: ``src/models/llama.cpp``)."""

from __future__ import annotations

from dataclasses import dataclass

from pyllm.models.architectures.block import attention, ffn, frame
from pyllm.models.blueprint import Blueprint, Heads, Part, Role, Tensor


@dataclass(frozen=True)
class Size:
    """Widths, heads and layers.

    Attributes:
        n_embd: width of the stream.
        n_ff: feed-forward width.
        n_head: query heads.
        n_head_kv: KV heads.
        head_dim: dimensions per head, all of them rotated.
        layers: blocks unless the caller wants another number.
        dense: see :class:`~pyllm.models.blueprint.Blueprint`.

    """

    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    layers: int
    dense: bool = False


TINY = Size(256, 128, 8, 2, 64, 4)
DRAFT = Size(256, 128, 4, 2, 128, 2)
M60 = Size(512, 1792, 8, 2, 128, 16, dense=True)
B8 = Size(4096, 14336, 32, 8, 128, 32, dense=True)


def blueprint(width: int = 1, layers: int | None = None, *, size: Size = TINY, part: Part = Part.TARGET, foreign_vocabulary: bool = False) -> Blueprint:
    """Return the blueprint, of any number of layers.

    ``foreign_vocabulary`` gives another vocabulary, of another size.
    """
    n_layer = size.layers if layers is None else layers
    n_embd, n_ff = size.n_embd * width, size.n_ff * width
    n_vocab = 768 if foreign_vocabulary else 512
    plan = Blueprint(
        "llama",
        {
            "vocab_size": n_vocab,
            "context_length": 8192,
            "embedding_length": n_embd,
            "block_count": n_layer,
            "feed_forward_length": n_ff,
            "attention.head_count": size.n_head,
            "attention.head_count_kv": size.n_head_kv,
            "attention.key_length": size.head_dim,
            "attention.value_length": size.head_dim,
            "attention.layer_norm_rms_epsilon": 1e-6,
            "rope.dimension_count": size.head_dim,
            "rope.freq_base": 10000.0,
        },
        n_embd=n_embd,
        ballast=True,
        n_vocab=n_vocab,
        reverse_vocabulary=foreign_vocabulary,
        dense=size.dense,
    )
    plan.tensors += frame(n_embd, n_vocab, part=part)
    heads = Heads(size.n_head, size.head_dim, size.head_dim, 10000.0, size.head_dim**-0.5, interleaved=True)
    for i in range(n_layer):
        plan.tensors += [
            Tensor(f"blk.{i}.attn_norm.weight", (n_embd,), Role.NORM, layer=i, part=part),
            *attention(i, n_embd, size.n_head_kv, heads, part=part),
            Tensor(f"blk.{i}.ffn_norm.weight", (n_embd,), Role.NORM, layer=i, part=part),
            *ffn(i, n_embd, n_ff, part=part),
        ]
    return plan
