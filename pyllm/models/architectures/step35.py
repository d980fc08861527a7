"""``step35``: sliding-window and full layers, and several chained nextn blocks.

Tensor layout: ``src/models/step35.cpp``. Draft step k runs nextn block k and only that one, so a drafter with three
blocks drafts at most three tokens. Full layers rotate half of the dimensions that sliding-window layers rotate, which
is why upstream refuses a context shift. All blocks are dense here, as the leading ones of the real model are.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyllm.errors import ConfigError
from pyllm.models.architectures.block import attention, ffn, frame
from pyllm.models.blueprint import Blueprint, Heads, Part, Role, Tensor

N_VOCAB, HEAD_DIM = 512, 128
FREQ_BASE, FREQ_BASE_SWA = 1000000.0, 10000.0
SLIDING_WINDOW = 32
N_NEXTN = 3


@dataclass(frozen=True)
class Size:
    """Widths, heads and layers.

    Attributes:
        n_embd: width of the stream.
        n_ff: feed-forward width.
        n_head: query heads.
        n_head_kv: KV heads.
        layers: blocks of the target unless the caller wants another number.
        dense: see :class:`~pyllm.models.blueprint.Blueprint`.

    """

    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    layers: int
    dense: bool = False


TINY = Size(256, 128, 8, 2, 4)
M60 = Size(512, 1792, 8, 2, 16, dense=True)
B8 = Size(4096, 14336, 32, 8, 32, dense=True)


def blueprint(width: int = 1, layers: int | None = None, *, size: Size = TINY) -> Blueprint:
    """Return the blueprint; ``layers`` counts the target's blocks, the nextn blocks come on top.

    Every fourth block, from the first, is full attention.

    Raises:
        ConfigError: fewer than two layers.

    """
    n_layer = size.layers if layers is None else layers
    if n_layer < 2:
        raise ConfigError(f"step35 needs at least 2 layers, not {n_layer}", "one full and one sliding-window layer are the least")
    n_embd, n_ff = size.n_embd * width, size.n_ff * width
    swa = [i % 4 != 0 for i in range(n_layer)] + [True] * N_NEXTN
    plan = Blueprint(
        "step35",
        {
            "vocab_size": N_VOCAB,
            "context_length": 8192,
            "embedding_length": n_embd,
            "block_count": n_layer + N_NEXTN,
            "nextn_predict_layers": N_NEXTN,
            "feed_forward_length": n_ff,
            "expert_feed_forward_length": n_ff,
            "attention.head_count": size.n_head,
            "attention.head_count_kv": size.n_head_kv,
            "attention.key_length": HEAD_DIM,
            "attention.value_length": HEAD_DIM,
            "attention.layer_norm_rms_epsilon": 1e-6,
            "attention.sliding_window": SLIDING_WINDOW,
            "attention.sliding_window_pattern": swa,
            "rope.dimension_count": HEAD_DIM,
            "rope.freq_base": FREQ_BASE,
            "rope.freq_base_swa": FREQ_BASE_SWA,
        },
        n_embd=n_embd,
        n_embd_target=n_embd,
        dense=size.dense,
    )
    plan.tensors += frame(n_embd, N_VOCAB)
    for i in range(n_layer + N_NEXTN):
        part = Part.TARGET if i < n_layer else Part.NEXTN
        plan.tensors += [
            Tensor(f"blk.{i}.attn_norm.weight", (n_embd,), Role.NORM, layer=i, part=part),
            *attention(i, n_embd, size.n_head_kv, _heads(size.n_head, swa[i]), part=part),
            Tensor(f"blk.{i}.attn_gate.weight", (size.n_head, n_embd), Role.IN, layer=i, part=part),
            Tensor(f"blk.{i}.ffn_norm.weight", (n_embd,), Role.NORM, layer=i, part=part),
            *ffn(i, n_embd, n_ff, part=part),
        ]
        if part is Part.NEXTN:
            plan.tensors += [
                Tensor(f"blk.{i}.nextn.eh_proj.weight", (n_embd, 2 * n_embd), Role.FUSE, layer=i, part=part),
                Tensor(f"blk.{i}.nextn.enorm.weight", (n_embd,), Role.NORM, layer=i, part=part),
                Tensor(f"blk.{i}.nextn.hnorm.weight", (n_embd,), Role.NORM, layer=i, part=part),
                Tensor(f"blk.{i}.nextn.shared_head_norm.weight", (n_embd,), Role.HEAD_NORM, layer=i, part=part),
            ]
    return plan


def _heads(count: int, swa: bool) -> Heads:
    if swa:
        return Heads(count, HEAD_DIM, HEAD_DIM, FREQ_BASE_SWA, HEAD_DIM**-0.5, normed=True, reach=SLIDING_WINDOW * 3 // 4)
    return Heads(count, HEAD_DIM, HEAD_DIM // 2, FREQ_BASE, HEAD_DIM**-0.5, normed=True)
