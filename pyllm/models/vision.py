"""A tiny image encoder for any model: a CLIP tower with LLaVA's projector (tensor layout: ``tools/mtmd/clip.cpp``, ``models/llava.cpp``).

An image becomes :data:`N_ROWS` rows that look like token embeddings of the model it is for: that of one token, and on top what the pixels say, as large
as ``strength`` times a token embedding's spread. So the model's norms see what they are used to, and its text depends on the image.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np

from pyllm.errors import ConfigError
from pyllm.models import vocabulary

if TYPE_CHECKING:
    from pyllm.models.blueprint import Array

IMAGE_SIZE, PATCH_SIZE = 32, 8
N_ROWS = (IMAGE_SIZE // PATCH_SIZE) ** 2
N_EMBD, N_HEAD, N_FF, N_LAYER = 32, 2, 64, 2


def projector(model: str | Path, out: str | Path, *, seed: int = 0, strength: float = 1.0) -> Path:
    """Write the image encoder of ``model``, what ``--mmproj`` takes, to ``out``.

    Raises:
        ConfigError: a model without token embeddings, as drafters are.

    """
    embedding = _embedding(Path(model))
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(out, "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    numbers = {
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "embedding_length": N_EMBD,
        "feed_forward_length": N_FF,
        "block_count": N_LAYER,
        "projection_dim": embedding.shape[1],
        "attention.head_count": N_HEAD,
    }
    for name, number in numbers.items():
        writer.add_uint32(f"clip.vision.{name}", number)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.5] * 3)
    writer.add_array("clip.vision.image_std", [0.5] * 3)
    for name, values in _tower(rng).items():
        writer.add_tensor(name, values)
    for name, values in _projection(rng, embedding, strength).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(out)


def _embedding(model: Path) -> Array:
    """Return the token embeddings of a file, shape ``(n_vocab, n_embd)``."""
    for tensor in gguf.GGUFReader(model).tensors:
        if tensor.name == "token_embd.weight":
            values: Array = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            return values
    raise ConfigError(f"`{model}` has no token embeddings, so nothing can look like them", "give the target's file, not the drafter's")


def _matrix(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Return a matrix whose output is about as large as its input."""
    weight: Array = rng.standard_normal((rows, columns), np.float32)
    weight *= columns**-0.5
    return weight


def _tower(rng: np.random.Generator) -> dict[str, Array]:
    ones, zeros = np.ones(N_EMBD, np.float32), np.zeros(N_EMBD, np.float32)
    patches = _matrix(rng, N_EMBD, 3 * PATCH_SIZE**2).reshape(N_EMBD, 3, PATCH_SIZE, PATCH_SIZE)
    tensors = {"v.patch_embd.weight": patches, "v.position_embd.weight": 0.5 * _matrix(rng, N_ROWS, 1).repeat(N_EMBD, axis=1)}
    for i in range(N_LAYER):
        block = {f"attn_{kind}.weight": _matrix(rng, N_EMBD, N_EMBD) for kind in ("q", "k", "v", "out")}
        block |= {"ffn_up.weight": _matrix(rng, N_FF, N_EMBD), "ffn_down.weight": _matrix(rng, N_EMBD, N_FF)}
        block |= {f"{norm}.{what}": ones if what == "weight" else zeros for norm in ("ln1", "ln2") for what in ("weight", "bias")}
        tensors |= {f"v.blk.{i}.{name}": values for name, values in block.items()}
    return tensors


def _projection(rng: np.random.Generator, embedding: Array, strength: float) -> dict[str, Array]:
    n_embd = embedding.shape[1]
    pieces = embedding[vocabulary.FIRST_PIECE_ID : vocabulary.FIRST_PIECE_ID + vocabulary.N_PIECES]
    # what all tokens have in common is left alone
    spread = strength * pieces.std(axis=0).astype(np.float32)
    return {
        "mm.0.weight": _matrix(rng, N_FF, N_EMBD),
        "mm.0.bias": np.zeros(N_FF, np.float32),
        "mm.2.weight": _matrix(rng, n_embd, N_FF) * spread[:, None],
        "mm.2.bias": pieces[0].astype(np.float32),
    }
