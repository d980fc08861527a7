"""``eagle3``: drafts token by token from layer inputs of its target (tensor layout: ``src/models/eagle3.cpp``).

The target's layer inputs of a token go through ``fc``; what comes out is paired with the embedding of the *next* token, and the one layer reads
both side by side. Drafting goes on from its own stream. Token embeddings and the head are the target's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pyllm.errors import ConfigError
from pyllm.models.architectures.block import attention, ffn
from pyllm.models.blueprint import Blueprint, Heads, Part, Role, Tensor, Value

if TYPE_CHECKING:
    from collections.abc import Callable

N_HEAD, N_HEAD_KV, HEAD_DIM, N_FF = 4, 2, 128, 128
TAPS = (1, 2, 3)
_READS = {Role.QUERY, Role.KEY, Role.VALUE}


def blueprint(target_plan: Callable[[int, int | None], Blueprint], width: int = 1, layers: int | None = None) -> Blueprint:
    """Return a drafter for the target of ``target_plan``.

    Raises:
        ConfigError: another number of layers than one.

    """
    if layers not in {None, 1}:
        raise ConfigError(f"an eagle3 drafter has one layer, not {layers}", "leave it out")
    n_embd = target_plan(width, None).n_embd
    metadata: dict[str, Value] = {
        "vocab_size": 512,
        "context_length": 8192,
        "embedding_length": n_embd,
        "block_count": 1,
        "feed_forward_length": N_FF * width,
        "attention.head_count": N_HEAD,
        "attention.head_count_kv": N_HEAD_KV,
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.dimension_count": HEAD_DIM,
        "rope.freq_base": 10000.0,
        "target_layers": list(TAPS),
        "target_hidden_size": n_embd,
    }
    plan = Blueprint("eagle3", metadata, n_embd=n_embd, n_embd_target=n_embd, ballast=True)
    part = Part.EAGLE3
    heads = Heads(N_HEAD, HEAD_DIM, HEAD_DIM, 10000.0, HEAD_DIM**-0.5, interleaved=True)
    wide = [
        replace(tensor, shape=(tensor.shape[0], 2 * n_embd)) if tensor.role in _READS else tensor
        for tensor in attention(0, n_embd, N_HEAD_KV, heads, part=part)
    ]
    plan.tensors += [
        Tensor("fc.weight", (n_embd, n_embd * len(TAPS)), Role.FEATURES, 0.5, part=part),
        Tensor("output_norm.weight", (n_embd,), Role.HEAD_NORM, part=part),
        Tensor("blk.0.attn_norm.weight", (n_embd,), Role.NORM, layer=0, part=part),
        Tensor("blk.0.attn_norm_2.weight", (n_embd,), Role.NORM, layer=0, part=part),
        *wide,
        Tensor("blk.0.ffn_norm.weight", (n_embd,), Role.NORM, layer=0, part=part),
        *ffn(0, n_embd, N_FF * width, part=part),
    ]
    return plan
