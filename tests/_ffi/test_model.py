"""Loading: facts, tokens, and files that are no models."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm import models
from pyllm._ffi import Context, Model
from pyllm.errors import InvalidArgumentError, ModelFormatError, NotFoundError, PyllmError, UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path


def test_facts_of_each_recipe() -> None:
    for recipe in models.recipes():
        with Model(models.make(recipe.name)) as model:
            assert model.info.architecture == recipe.architecture
            assert model.info.n_params > 0
            assert (model.info.block_size > 0) == (recipe.architecture == "dflash")


def test_tokens_round_trip(llama: Model) -> None:
    text = "The quick brown fox, 12 %"
    assert llama.detokenize(llama.tokenize(text, add_special=False)).strip() == text


@settings(deadline=None, max_examples=200)
@given(text=st.text(max_size=200))
def test_any_text_tokenizes_to_known_tokens(text: str) -> None:
    with Model(models.make("llama"), vocab_only=True) as model:
        tokens = model.tokenize(text)
        assert all(0 <= token < model.info.n_vocab for token in tokens)
        assert model.detokenize(tokens, special=True) is not None


def test_a_token_outside_the_vocabulary(llama: Model) -> None:
    for token in (-1, 512, 2**31 - 1):
        with pytest.raises(InvalidArgumentError, match=rf"token {token} is not in \[0, 512\)"):
            llama.piece(token)


def test_metadata(llama: Model) -> None:
    assert llama.meta("general.architecture") == "llama"
    with pytest.raises(NotFoundError, match=r"no metadata key `general\.nonsense`"):
        llama.meta("general.nonsense")
    assert "message" in llama.chat_template()


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="No such file") as caught:
        Model(tmp_path / "none.gguf")
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 this is a zip", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 16])
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "wrong.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFormatError):
        Model(path)


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"not a regular file"):
        Model(tmp_path)


def test_truncated_anywhere(llama_path: Path, tmp_path: Path) -> None:
    data = llama_path.read_bytes()
    path = tmp_path / "short.gguf"
    lengths = sorted({random.Random(0).randrange(len(data)) for _ in range(60)} | {len(data) - 1, 24, 32})
    for length in lengths:
        path.write_bytes(data[:length])
        with pytest.raises(ModelFormatError):
            Model(path)
    path.write_bytes(data)
    Model(path).close()


def test_damaged_headers_never_end_the_process(llama_path: Path, tmp_path: Path) -> None:
    data = bytearray(llama_path.read_bytes())
    path = tmp_path / "damaged.gguf"
    chance = random.Random(1)
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(chance.randrange(1, 8)):
            damaged[chance.randrange(4, 6000)] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            Model(path).close()
        except PyllmError as failure:
            assert failure.message  # noqa: PT017 - a damaged byte may also be harmless


def test_unknown_device(llama_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="no device is named `CUDA7`") as caught:
        Model(llama_path, devices=("CUDA7",))
    assert "CPU" in caught.value.hint


def test_unknown_split_mode(llama_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="split_mode"):
        Model(llama_path, split_mode="diagonal")


def test_a_vocabulary_alone(llama_path: Path) -> None:
    with Model(llama_path, vocab_only=True) as model:
        assert (model.info.architecture, model.info.n_vocab, model.info.n_layer) == ("llama", 512, 0)
        with pytest.raises(UnsupportedError, match="with its vocabulary only"):
            Context(model, n_ctx=64)


@pytest.mark.parametrize("recipe", ["llama-dflash", "gemma4-assistant"])
def test_a_drafter_has_no_context_of_its_own(recipe: str) -> None:
    with Model(models.make(recipe)) as model, pytest.raises(UnsupportedError, match="is a drafter and cannot run without its target"):
        Context(model, n_ctx=64)
