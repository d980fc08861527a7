"""``gemma4`` and ``gemma4-assistant``.

Tensor layout: ``src/models/gemma4.cpp``, ``src/models/gemma4-assistant.cpp``.

Sliding-window layers with head dim 256 alternate with global ones of head dim 512; attention scores are not scaled.
The last two layers are one of each, because an assistant reads exactly those two caches; where KV is shared, they
reuse the caches of the two layers in front of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pyllm.errors import ConfigError
from pyllm.models.architectures.block import attention, ffn, frame
from pyllm.models.blueprint import Blueprint, Heads, Part, Role, Tensor, Value

N_EMBD, N_FF, N_VOCAB = 256, 128, 512
N_EMBD_ASSISTANT = 192  # upstream refuses an assistant as wide as its target
HEAD_DIM, HEAD_DIM_SWA = 512, 256
N_EMBD_PER_LAYER = 32
FREQ_BASE, FREQ_BASE_SWA = 1000000.0, 10000.0
SLIDING_WINDOW = 32  # tokens; real models have 512 or 1024, a test wants to pass it quickly


@dataclass(frozen=True)
class Size:
    """Head counts and sharing of one member of the family.

    Attributes:
        n_head: query heads of every layer.
        n_head_kv: KV heads of a global layer.
        n_head_kv_swa: KV heads of a sliding-window layer.
        n_head_assistant: query heads of the assistant; its KV heads are the target's.
        shared: whether the last two layers reuse the KV of the two before them, and layers have embeddings of their
            own.
        period: every how many layers, counted from the last, one is global; 0 for only the last and the last with KV
            of its own.
        layers: blocks unless the caller wants another number.
        n_embd: width of the stream.
        n_ff: feed-forward width.
        n_embd_assistant: width of the assistant's stream.
        window: tokens that a sliding-window layer sees.
        context: tokens that the model says it was trained with.
        dense: see :class:`~pyllm.models.blueprint.Blueprint`.

    """

    n_head: int
    n_head_kv: int
    n_head_kv_swa: int
    n_head_assistant: int
    shared: bool
    period: int
    layers: int
    n_embd: int = N_EMBD
    n_ff: int = N_FF
    n_embd_assistant: int = N_EMBD_ASSISTANT
    window: int = SLIDING_WINDOW
    context: int = 8192
    dense: bool = False


E4B = Size(8, 2, 2, 4, shared=True, period=0, layers=6)
DENSE_31B = Size(16, 2, 8, 8, shared=False, period=6, layers=6)
SLICE_31B = Size(32, 4, 16, 16, shared=False, period=6, layers=12, n_embd=5376, n_ff=21504, n_embd_assistant=1024, window=1024, context=131072, dense=True)
DENSE_12B = Size(16, 1, 8, 8, shared=False, period=6, layers=6)


def _swa(size: Size, n_layer: int) -> list[bool]:
    if size.period:
        return [(n_layer - 1 - i) % size.period != 0 for i in range(n_layer)]
    return [i not in (n_layer - 3, n_layer - 1) for i in range(n_layer)]


def _heads(count: int, swa: bool, content: float = 0.0) -> Heads:
    if swa:
        # The smallest window of any size: what is within reach there is in all of them.
        return Heads(count, HEAD_DIM_SWA, HEAD_DIM_SWA, FREQ_BASE_SWA, 1.0, normed=True, reach=SLIDING_WINDOW * 3 // 4)
    return Heads(count, HEAD_DIM, HEAD_DIM, FREQ_BASE, 1.0, normed=True, still=HEAD_DIM // 8, content=content)


def _rope_freqs(part: Part) -> Tensor:
    # proportional RoPE: the first quarter of the pairs rotates, an infinite factor keeps the others still
    pairs = HEAD_DIM // 2
    factors = np.full(pairs, 1e30, np.float32)
    factors[: pairs // 4] = 1.0
    return Tensor("rope_freqs.weight", (pairs,), Role.FIXED, part=part, fixed=factors)


def _metadata(size: Size, n_embd: int, n_ff: int, n_head: int, swa: list[bool]) -> dict[str, Value]:
    return {
        "vocab_size": N_VOCAB,
        "context_length": size.context,
        "embedding_length": n_embd,
        "block_count": len(swa),
        "feed_forward_length": n_ff,
        "attention.head_count": n_head,
        "attention.head_count_kv": [size.n_head_kv_swa if s else size.n_head_kv for s in swa],
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
        "attention.key_length_swa": HEAD_DIM_SWA,
        "attention.value_length_swa": HEAD_DIM_SWA,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.sliding_window": size.window,
        "attention.sliding_window_pattern": swa,
        "rope.dimension_count": HEAD_DIM,
        "rope.dimension_count_swa": HEAD_DIM_SWA,
        "rope.freq_base": FREQ_BASE,
        "rope.freq_base_swa": FREQ_BASE_SWA,
    }


def target(size: Size, width: int = 1, layers: int | None = None) -> Blueprint:
    """Return a Gemma 4 text model.

    Raises:
        ConfigError: too few layers for one cache of each kind.

    """
    n_layer = size.layers if layers is None else layers
    least = 4 if size.shared else 2
    if n_layer < least:
        raise ConfigError(
            f"gemma4 needs at least {least} layers, not {n_layer}",
            f"the last two layers are one sliding-window and one global layer; ask for {least} or more",
        )
    n_embd, n_ff = size.n_embd * width, size.n_ff * width
    swa = _swa(size, n_layer)
    n_shared = 2 if size.shared else 0
    n_per_layer = N_EMBD_PER_LAYER if size.shared else 0
    metadata = _metadata(size, n_embd, n_ff, size.n_head, swa)
    metadata["attention.shared_kv_layers"] = n_shared
    metadata["embedding_length_per_layer_input"] = n_per_layer
    metadata["final_logit_softcapping"] = 30.0
    plan = Blueprint("gemma4", metadata, n_embd=n_embd, n_embd_target=n_embd, dense=size.dense)
    add = plan.tensors.extend
    add(frame(n_embd, N_VOCAB, embed_gain=n_embd**-0.5))
    add([_rope_freqs(Part.TARGET)])
    if n_per_layer:
        add(
            [
                Tensor("per_layer_token_embd.weight", (N_VOCAB, n_per_layer * n_layer), Role.IN, gain=math.sqrt(n_layer)),
                Tensor("per_layer_model_proj.weight", (n_per_layer * n_layer, n_embd), Role.IN),
                Tensor("per_layer_proj_norm.weight", (n_per_layer,), Role.NORM),
            ]
        )
    for i in range(n_layer):
        n_head_kv = size.n_head_kv_swa if swa[i] else size.n_head_kv
        # the large models have no value projection in global layers: keys serve as values
        value = size.shared or swa[i]
        projections = attention(i, n_embd, n_head_kv, _heads(size.n_head, swa[i], 0.0 if value else 0.1), value=value)
        if i >= n_layer - n_shared:
            projections = [t for t in projections if t.role not in (Role.KEY, Role.VALUE) and "k_norm" not in t.name]
        add([Tensor(f"blk.{i}.attn_norm.weight", (n_embd,), Role.NORM, layer=i), *projections])
        add(_norms_and_ffn(i, n_embd, n_ff, Part.TARGET))
        if n_per_layer:
            add(
                [
                    Tensor(f"blk.{i}.inp_gate.weight", (n_per_layer, n_embd), Role.IN, layer=i),
                    Tensor(f"blk.{i}.proj.weight", (n_embd, n_per_layer), Role.OUT, layer=i),
                    Tensor(f"blk.{i}.post_norm.weight", (n_embd,), Role.POST_NORM, 0.3, layer=i),
                ]
            )
    return plan


def assistant(size: Size, width: int = 1, layers: int | None = None) -> Blueprint:
    """Return the drafter for :func:`target`: queries only, attending to the target's last two caches.

    Raises:
        ConfigError: fewer than two layers.

    """
    n_layer = 4 if layers is None else layers
    if n_layer < 2:
        raise ConfigError(
            f"gemma4-assistant needs at least 2 layers, not {n_layer}",
            "one sliding-window and one global layer are the least",
        )
    n_embd, n_ff, n_target = size.n_embd_assistant * width, N_FF * width, size.n_embd * width
    swa = [i != n_layer - 1 for i in range(n_layer)]
    metadata = _metadata(size, n_embd, n_ff, size.n_head_assistant, swa)
    metadata["attention.shared_kv_layers"] = n_layer
    metadata["embedding_length_out"] = n_target
    metadata["embedding_length_per_layer_input"] = 0
    metadata["nextn_predict_layers"] = n_layer
    part = Part.ASSISTANT
    plan = Blueprint("gemma4-assistant", metadata, n_embd=n_embd, n_embd_target=n_target)
    plan.tensors += [
        # token embeddings come from the target: this matrix only serves as the head
        Tensor("token_embd.weight", (N_VOCAB, n_embd), Role.HEAD, part=part),
        Tensor("output_norm.weight", (n_embd,), Role.HEAD_NORM, part=part),
        Tensor("nextn.pre_projection.weight", (n_embd, 2 * n_target), Role.FUSE, part=part),
        Tensor("nextn.post_projection.weight", (n_target, n_embd), Role.HAND_BACK, part=part),
        _rope_freqs(part),
    ]
    for i in range(n_layer):
        heads = _heads(size.n_head_assistant, swa[i])
        rows = heads.count * heads.dim
        plan.tensors += [
            Tensor(f"blk.{i}.attn_norm.weight", (n_embd,), Role.NORM, layer=i, part=part),
            Tensor(f"blk.{i}.attn_q.weight", (rows, n_embd), Role.QUERY, layer=i, part=part, heads=heads),
            Tensor(f"blk.{i}.attn_output.weight", (n_embd, rows), Role.ATTN_OUT, layer=i, part=part),
            Tensor(f"blk.{i}.attn_q_norm.weight", (heads.dim,), Role.HEAD_SCALE, 1.0, i, part, heads=heads),
            *_norms_and_ffn(i, n_embd, n_ff, part),
        ]
    return plan


def _norms_and_ffn(i: int, n_embd: int, n_ff: int, part: Part) -> list[Tensor]:
    return [
        Tensor(f"blk.{i}.post_attention_norm.weight", (n_embd,), Role.POST_NORM, 0.8, i, part),
        Tensor(f"blk.{i}.ffn_norm.weight", (n_embd,), Role.NORM, layer=i, part=part),
        *ffn(i, n_embd, n_ff, part=part),
        Tensor(f"blk.{i}.post_ffw_norm.weight", (n_embd,), Role.POST_NORM, 0.35, i, part),
        Tensor(f"blk.{i}.layer_output_scale.weight", (1,), Role.FIXED, layer=i, part=part, fixed=np.ones(1, np.float32)),
    ]
