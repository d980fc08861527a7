"""A loaded model and its vocabulary."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from pyllm._ffi.door import Handle, check, ffi, lib, text_of
from pyllm.errors import LimitError

SPLIT_MODES = ("none", "layer", "row", "tensor")


@dataclass(frozen=True)
class ModelInfo:
    """Facts of a model's header, in llama.cpp's terms. ``size`` is in bytes."""

    architecture: str
    description: str
    n_vocab: int
    n_embd: int
    n_embd_out: int
    n_layer: int
    n_layer_nextn: int
    n_head: int
    n_head_kv: int
    n_ctx_train: int
    n_swa: int
    n_target_layers: int
    block_size: int
    recurrent: bool
    hybrid: bool
    has_encoder: bool
    has_decoder: bool
    n_params: int
    size: int


@dataclass(frozen=True)
class VocabInfo:
    """Special tokens, ``None`` where the vocabulary has none."""

    bos: int | None
    eos: int | None
    eot: int | None
    nl: int | None
    pad: int | None
    mask: int | None
    add_bos: bool
    add_eos: bool


class Model(Handle):
    """Weights and vocabulary of one GGUF file (``pyllm_model``).

    Raises:
        NotFoundError: no such file.
        ModelFormatError: not GGUF, truncated, or an architecture that upstream does not know.
        OutOfMemoryError: the weights do not fit.
    """

    kind = "model"
    free = "pyllm_model_free"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        gpu_layers: int = -1,
        split_mode: str = "layer",
        main_gpu: int = 0,
        mmap: bool = True,
        check_tensors: bool = False,
        vocab_only: bool = False,
        load_mtp: bool = True,
        devices: tuple[str, ...] = (),
    ) -> None:
        params = ffi.new("pyllm_model_params *", lib.pyllm_model_params_default())
        names = ffi.new("char[]", ",".join(devices).encode())
        params.n_gpu_layers = gpu_layers
        params.split_mode = SPLIT_MODES.index(split_mode) if split_mode in SPLIT_MODES else -1
        params.main_gpu = main_gpu
        params.use_mmap = mmap
        params.check_tensors = check_tensors
        params.vocab_only = vocab_only
        params.load_mtp = load_mtp
        params.devices = names
        out = ffi.new("pyllm_model **")
        check(lib.pyllm_model_load(os.fsencode(path), params, out))
        super().__init__(out[0])
        self._info: ModelInfo | None = None
        self._vocab: VocabInfo | None = None

    @property
    def info(self) -> ModelInfo:
        """Facts of the header."""
        if self._info is None:
            info = ffi.new("pyllm_model_info *")
            check(lib.pyllm_model_get_info(self._pointer, info))
            values: dict[str, Any] = {name: getattr(info, name) for name in ModelInfo.__dataclass_fields__}
            values |= {"architecture": text_of(info.architecture), "description": text_of(info.description)}
            self._info = ModelInfo(**values)
        return self._info

    @property
    def vocab(self) -> VocabInfo:
        """Special tokens."""
        if self._vocab is None:
            info = ffi.new("pyllm_vocab_info *")
            check(lib.pyllm_model_get_vocab(self._pointer, info))
            ids = {name: (token if (token := int(getattr(info, name))) >= 0 else None) for name in ("bos", "eos", "eot", "nl", "pad", "mask")}
            self._vocab = VocabInfo(**ids, add_bos=bool(info.add_bos), add_eos=bool(info.add_eos))
        return self._vocab

    def meta(self, key: str) -> str:
        """Text of a metadata key.

        Raises:
            NotFoundError: the model has no such key, or it is an array.
        """
        return self._text(lib.pyllm_model_get_meta, key.encode()).decode("utf-8", "replace")

    def chat_template(self, name: str = "") -> str:
        """The model's jinja chat template.

        Raises:
            NotFoundError: the file carries none.
        """
        return self._text(lib.pyllm_model_get_chat_template, name.encode()).decode("utf-8", "replace")

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Tokens of ``text``; ``add_special`` adds BOS/EOS as the model wants, ``parse_special`` reads control tokens in the text."""
        data = text.encode("utf-8", "surrogatepass")
        capacity = len(data) + 8
        count = ffi.new("size_t *")
        while True:
            tokens = ffi.new("int32_t[]", capacity)
            try:
                check(lib.pyllm_model_tokenize(self._pointer, data, len(data), add_special, parse_special, tokens, capacity, count))
            except LimitError:
                if count[0] <= capacity:
                    raise
                capacity = int(count[0])
                continue
            return list(ffi.unpack(tokens, int(count[0]))) if count[0] else []

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Bytes of one token; not always whole UTF-8 characters. ``special`` renders control tokens too."""
        length = ffi.new("size_t *")
        buffer = ffi.new("char[]", 128)
        check(lib.pyllm_model_token_to_piece(self._pointer, token, special, buffer, 128, length))
        if length[0] >= 128:
            buffer = ffi.new("char[]", int(length[0]) + 1)
            check(lib.pyllm_model_token_to_piece(self._pointer, token, special, buffer, int(length[0]) + 1, length))
        return bytes(ffi.buffer(buffer, int(length[0])))

    def detokenize(self, tokens: list[int], *, special: bool = False) -> str:
        """Text of ``tokens``; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self.piece(token, special=special) for token in tokens).decode("utf-8", "replace")

    def is_eog(self, token: int) -> bool:
        """Whether the token ends a generation."""
        out = ffi.new("bool *")
        check(lib.pyllm_model_token_is_eog(self._pointer, token, out))
        return bool(out[0])

    def _text(self, call: Any, argument: bytes) -> bytes:
        length = ffi.new("size_t *")
        check(call(self._pointer, argument, ffi.NULL, 0, length))
        buffer = ffi.new("char[]", int(length[0]) + 1)
        check(call(self._pointer, argument, buffer, int(length[0]) + 1, length))
        return bytes(ffi.buffer(buffer, int(length[0])))
