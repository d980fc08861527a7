"""``dflash``: a block drafter that reads layer inputs of its target (tensor layout: ``src/models/dflash.cpp``).

The target's layer inputs of every committed token go through ``fc`` and become keys and values of the drafter's own
cache. Drafting is one non-causal pass over ``[last token, mask, mask, …]``. Token embeddings are the target's, as in
published drafters; the head is the target's too, unless the family needs one of its own.

DFlash2 is the same with short convolutions over the block around attention and feed-forward layers, and a selector behind the
head: it gives the best tokens of each position, and how well each of them follows each of the position before.
"""

from __future__ import annotations

import numpy as np

from pyllm.models.architectures.block import attention, ffn
from pyllm.models.blueprint import Blueprint, Heads, Part, Role, Tensor, Value

N_HEAD, N_HEAD_KV, HEAD_DIM, N_FF = 4, 2, 128, 128
BLOCK_SIZE = 8
N_VOCAB = 512
CONV_KERNEL, CONV_GROUP = 2, 32
SELECTOR_RANK, SELECTOR_TOP_K = 128, 8


def blueprint(
    target: Blueprint,
    taps: list[int],
    *,
    layers: int,
    embed_scale: float | None,
    exact: bool,
    mrope: bool,
    window: int = 0,
    selects: bool = False,
) -> Blueprint:
    """Return a drafter for ``target`` that reads the inputs of the target's layers ``taps``.

    ``exact`` gives what the successor family needs: a head of its own, and as many query heads as positions to draft.
    A ``window`` in tokens makes every other layer, from the first, a sliding-window one. ``selects`` makes it DFlash2.
    """
    n_embd = target.n_embd
    n_head, n_head_kv = (BLOCK_SIZE, BLOCK_SIZE // 2) if exact else (N_HEAD, N_HEAD_KV)
    n_ff = N_FF if exact else N_FF * max(1, n_embd // 256)
    metadata: dict[str, Value] = {
        "vocab_size": N_VOCAB,
        "context_length": 8192,
        "embedding_length": n_embd,
        "block_count": layers,
        "feed_forward_length": n_ff,
        "attention.head_count": n_head,
        "attention.head_count_kv": n_head_kv,
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.dimension_count": HEAD_DIM,
        "rope.freq_base": 10000.0,
        "block_size": BLOCK_SIZE,
        "target_layers": taps,
    }
    if mrope:
        metadata["rope.dimension_sections"] = [HEAD_DIM // 2, 0, 0, 0]
    if window:
        metadata["attention.sliding_window"] = window
        metadata["attention.sliding_window_pattern"] = [i % 2 == 0 for i in range(layers)]
    if selects:
        metadata |= {"conv_kernel_size": CONV_KERNEL, "conv_group_size": CONV_GROUP, "selector_rank": SELECTOR_RANK, "selector_top_k": SELECTOR_TOP_K}
    if embed_scale is not None:
        metadata["embedding_scale"] = embed_scale
    plan = Blueprint(
        "dflash",
        metadata,
        n_embd=n_embd,
        n_embd_target=n_embd,
        block_size=BLOCK_SIZE,
        n_taps=len(taps),
    )
    part = Part.DFLASH
    plan.tensors += [
        Tensor("fc.weight", (n_embd, n_embd * len(taps)), Role.FEATURES, part=part),
        Tensor("enc.output_norm.weight", (n_embd,), Role.NORM, part=part),
        Tensor("output_norm.weight", (n_embd,), Role.HEAD_NORM, part=part),
    ]
    if exact:
        plan.tensors.append(Tensor("output.weight", (N_VOCAB, n_embd), Role.HEAD, part=part))
    if selects:
        plan.tensors += [
            Tensor("selector_predecessor.weight", (N_VOCAB, SELECTOR_RANK), Role.BEFORE, SELECTOR_RANK**0.5, part=part),
            Tensor("selector_successor.weight", (N_VOCAB, SELECTOR_RANK), Role.AFTER, 2.0, part=part),
            Tensor("selector_hidden.weight", (SELECTOR_RANK, n_embd), Role.SELECT, part=part),
        ]
    for i in range(layers):
        reach = window * 3 // 4 if window and i % 2 == 0 else 40
        heads = Heads(n_head, HEAD_DIM, HEAD_DIM, 10000.0, HEAD_DIM**-0.5, normed=True, reach=reach)
        plan.tensors += [
            Tensor(f"blk.{i}.attn_norm.weight", (n_embd,), Role.NORM, layer=i, part=part),
            *attention(i, n_embd, n_head_kv, heads, part=part),
            Tensor(f"blk.{i}.ffn_norm.weight", (n_embd,), Role.NORM, layer=i, part=part),
            *ffn(i, n_embd, n_ff, part=part),
        ]
        if selects:
            plan.tensors += [tensor for place in ("attn", "ffn") for tensor in _convolution(f"blk.{i}.{place}_conv", i, n_embd, exact=exact)]
    return plan


def _convolution(name: str, i: int, n_embd: int, *, exact: bool) -> list[Tensor]:
    """Return what every position adds of itself and of the one before, in front of and behind a layer: weights of their own, and others that its row gives.

    The exact one changes nothing.
    """
    base = np.zeros((2, CONV_KERNEL, n_embd), np.float32)
    base[:, 0] = 1.0
    base[:, 1] = 0.0 if exact else 0.25
    proj = (2 * CONV_KERNEL * (n_embd // CONV_GROUP), n_embd)
    return [
        Tensor(f"{name}_base", base.shape, Role.FIXED, layer=i, part=Part.DFLASH, fixed=base, single=True),
        Tensor(f"{name}_proj.weight", proj, Role.FIXED, layer=i, part=Part.DFLASH, fixed=np.zeros(proj, np.float32))
        if exact
        else Tensor(f"{name}_proj.weight", proj, Role.IN, 0.1, i, Part.DFLASH),
    ]
