"""Writes a blueprint with its weights into a GGUF file."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import gguf
import numpy as np

from pyllm.models import vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pyllm.models.blueprint import Array, Blueprint, Tensor, Value


def write(path: Path, name: str, blueprint: Blueprint, weights: Iterable[tuple[Tensor, Array]], *, half: bool) -> None:
    """Write one file; a reader sees either no file or a complete one.

    Args:
        path: where the file goes; its folder is made when it is missing.
        name: ``general.name``.
        blueprint: metadata.
        weights: each tensor with its values in the tensor's shape.
        half: matrices in F16 instead of F32; vectors and whatever a tensor marks ``single`` stay F32.

    Raises:
        OSError: the folder cannot be written to.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        writer = gguf.GGUFWriter(temporary, blueprint.architecture)
        writer.add_name(name)
        for key, value in blueprint.metadata.items():
            _put(writer, f"{blueprint.architecture}.{key}", value)
        _put_vocabulary(writer, blueprint)
        for tensor, values in weights:
            narrow = half and len(tensor.shape) > 1 and not tensor.single
            kind = np.float16 if narrow else np.float32
            writer.add_tensor(tensor.name, np.ascontiguousarray(values.reshape(tensor.shape), kind))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
