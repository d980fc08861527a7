"""Writes a blueprint with its weights into a GGUF file."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
from gguf import quants

from pyllm.models import vocabulary
from pyllm.models.blueprint import Role
from pyllm.models.noise import Kind, Noise

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy.typing as npt

    from pyllm.models.blueprint import Array, Blueprint, Tensor, Value


TYPES = ("f16", "q8_0", "q4_0")
"""Types that matrices can be asked for in."""

_KINDS = {"f32": Kind.F32, "f16": Kind.F16, "q8_0": Kind.Q8_0, "q4_0": Kind.Q4_0}


def write(path: Path, name: str, blueprint: Blueprint, weights: Iterable[tuple[Tensor, Array | Noise]], matrices: str) -> None:
    """Write one file, tensor by tensor; a reader sees either no file or a complete one.

    Args:
        path: where the file goes; its folder is made when it is missing.
        name: ``general.name``.
        blueprint: metadata, and the names and shapes of the tensors.
        weights: each tensor of the blueprint, in its order, with its values in the tensor's shape.
        matrices: their type. Vectors and whatever a tensor marks ``single`` are F32. In a quantised file the
            embeddings and the head are F16.

    Raises:
        OSError: the folder cannot be written to.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    writer = gguf.GGUFWriter(temporary, blueprint.architecture)
    try:
        writer.add_name(name)
        for key, value in blueprint.metadata.items():
            _put(writer, f"{blueprint.architecture}.{key}", value)
        _put_vocabulary(writer, blueprint)
        kinds = [_kind(tensor, matrices) for tensor in blueprint.tensors]
        for tensor, kind in zip(blueprint.tensors, kinds, strict=True):
            n_bytes = int(np.prod(quants.quant_shape_to_byte_shape(tensor.shape, kind)))
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), n_bytes, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for kind, (tensor, values) in zip(kinds, weights, strict=True):
            writer.write_tensor_data(_data(tensor, values, kind))
        writer.close()
        temporary.replace(path)
    finally:
        writer.close()
        temporary.unlink(missing_ok=True)


def _kind(tensor: Tensor, matrices: str) -> Kind:
    if len(tensor.shape) == 1 or tensor.single:
        return Kind.F32
    kind = _KINDS[matrices]
    if kind.name.startswith("Q") and tensor.role in {Role.EMBED, Role.HEAD}:
        return Kind.F16
    return kind


def _data(tensor: Tensor, values: Array | Noise, kind: Kind) -> npt.NDArray[Any]:
    if isinstance(values, Noise):
        return values.data(tensor.shape, kind)
    packed: npt.NDArray[Any] = quants.quantize(np.ascontiguousarray(values.reshape(tensor.shape), np.float32), kind)
    return np.ascontiguousarray(packed)


def _put(writer: gguf.GGUFWriter, key: str, value: Value) -> None:
    if isinstance(value, bool):  # before int: a bool is an int
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _put_vocabulary(writer: gguf.GGUFWriter, blueprint: Blueprint) -> None:
    words = vocabulary.standard(blueprint.n_vocab, reverse=blueprint.reverse_vocabulary)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(list(words.tokens))
    writer.add_token_scores(list(words.scores))
    writer.add_token_types(list(words.types))
    writer.add_unk_token_id(vocabulary.UNKNOWN_ID)
    writer.add_bos_token_id(vocabulary.BOS_ID)
    writer.add_eos_token_id(vocabulary.EOS_ID)
    writer.add_pad_token_id(vocabulary.PADDING_ID)
    writer.add_mask_token_id(vocabulary.MASK_ID)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(vocabulary.CHAT_TEMPLATE)
