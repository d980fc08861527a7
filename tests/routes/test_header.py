"""Headers: each layer's attention, for the recipes, for published models, and for files that are none."""

from __future__ import annotations

import contextlib
import re
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm import models
from pyllm.errors import ModelFormatError, NotFoundError, PyllmError, UnsupportedError
from pyllm.routes.header import header_of, read_header
from pyllm.routes.metadata import Metadata, TensorInfo, read_metadata
from tests.routes import tiny_models

# --- recipes and published models -----------------------------------------------------------------------------------------------------------


def summary(header):
    """Kinds by their first letters, and the distinct shapes with attention."""
    return "".join(layer.kind[0] for layer in header.layers), {
        (layer.kind, layer.d_k, layer.d_v, layer.n_head, layer.n_head_kv) for layer in header.layers if layer.has_attention
    }


@pytest.mark.parametrize(
    ("recipe", "kinds", "shapes"),
    [
        ("llama", "gggg", {("global", 64, 64, 8, 2)}),
        ("gemma4", "wwwgwg", {("window", 256, 256, 8, 2), ("global", 512, 512, 8, 2)}),
        ("gemma4-assistant", "wwwg", {("window", 256, 256, 4, 2), ("global", 512, 512, 4, 2)}),
        ("gemma4-12b", "wwwwwg", {("window", 256, 256, 16, 8), ("global", 512, 512, 16, 1)}),
        ("gemma4-31b", "wwwwwg", {("window", 256, 256, 16, 8), ("global", 512, 512, 16, 2)}),
        ("qwen35", "rrrgg", {("global", 256, 256, 12, 2)}),
        ("nemotron-h", "rgnrgn", {("global", 128, 128, 32, 2)}),
        ("nemotron-h-moe", "rgnrgng", {("global", 128, 128, 32, 2)}),
        ("step35", "gwwwwww", {("global", 128, 128, 8, 2), ("window", 128, 128, 8, 2)}),
        ("qwen35-dflash", "ggg", {("global", 128, 128, 4, 2)}),
    ],
)
def test_recipes(recipe, kinds, shapes):
    header = read_header(models.make(recipe))
    assert summary(header) == (kinds, shapes)
    assert header.n_ctx_train == 8192


def test_what_a_header_says_beside_its_layers():
    gemma, assistant, qwen, step, block = (read_header(models.make(name)) for name in ("gemma4", "gemma4-assistant", "qwen35", "step35", "gemma4-dflash"))
    assert (gemma.window, gemma.drafter, gemma.hybrid, gemma.heads) == (32, "", False, ())
    # The last two layers share the KV of the last of their kind before them.
    assert [layer.reads for layer in gemma.layers] == [0, 1, 2, 3, 2, 3]
    assert (assistant.drafter, assistant.heads, len(assistant.trunk)) == ("assistant", (), 4)
    assert (qwen.hybrid, [layer.index for layer in qwen.heads], len(qwen.trunk)) == (True, [4], 4)
    assert [layer.index for layer in step.heads] == [4, 5, 6]
    assert (block.drafter, block.block_size) == ("block", 8)


@pytest.mark.parametrize(
    ("architecture", "kinds", "expected"),
    [
        ("gemma2", "wgwg", {"softcap": True, "window": 32}),
        ("mpt", "gg", {"alibi": True}),
        ("gpt-oss", "wg", {"window": 32}),
        ("deepseek2", "ll", {}),
        ("mimo2", "gww", {"window": 32}),
        ("falcon-h1", "gg", {"hybrid": True}),
    ],
)
def test_other_architectures(architecture, kinds, expected, tmp_path):
    header = read_header(tiny_models.make(architecture, tmp_path / "model.gguf"))
    assert summary(header)[0] == kinds
    facts = {"softcap": False, "alibi": False, "hybrid": False, "window": 0} | expected
    assert {name: getattr(header, name) for name in facts} == facts
    assert all(layer.sinks == (architecture in {"gpt-oss", "mimo2"}) for layer in header.layers)


def metadata(architecture, tensors=(), /, **values):
    """A header without a file. ``a__b`` stands for ``a.b``."""
    own = {"block_count": 4, "context_length": 4096, "embedding_length": 1024, "attention.head_count": 8}
    named = own | {name.replace("__", "."): value for name, value in values.items()}
    full = {f"{architecture}.{name}": value for name, value in named.items() if value is not None}
    return Metadata(Path("m.gguf"), full | {"general.architecture": architecture}, {name: TensorInfo((1,), 1) for name in tensors})


@pytest.mark.parametrize(
    ("meta", "kinds", "shape"),
    [
        # Head dims follow from the width, KV heads from the heads.
        (metadata("llama"), "gggg", ("global", 128, 128, 8, 8)),
        (metadata("llama", attention__head_count_kv=2, attention__key_length=96), "gggg", ("global", 96, 128, 8, 2)),
        # A window that the architecture does not have.
        (metadata("llama", attention__sliding_window=512), "gggg", ("global", 128, 128, 8, 8)),
        (metadata("gemma3", block_count=7, attention__sliding_window=512), "wwwwwgw", ("window", 128, 128, 8, 8)),
        (metadata("gemma3"), "gggg", ("global", 128, 128, 8, 8)),
        (metadata("gemma3", attention__sliding_window=512, attention__sliding_window_pattern=2), "wgwg", ("window", 128, 128, 8, 8)),
        (metadata("cohere2moe", attention__sliding_window=512), "gwww", ("global", 128, 128, 8, 8)),
        (metadata("llama4"), "wwwg", ("window", 128, 128, 8, 8)),
        (metadata("llama4", attention__sliding_window=0), "gggg", ("global", 128, 128, 8, 8)),
        (metadata("exaone4", attention__sliding_window=512), "gggg", ("global", 128, 128, 8, 8)),
        # DeepSeek V3, Mistral 4, Kimi Linear: a latent cache.
        (
            metadata(
                "deepseek2",
                attention__head_count=128,
                attention__head_count_kv=1,
                attention__key_length=576,
                attention__value_length=512,
                attention__key_length_mla=192,
                attention__value_length_mla=128,
                attention__kv_lora_rank=512,
            ),
            "llll",
            ("latent", 576, 512, 128, 1),
        ),
        (
            metadata(
                "mistral4",
                attention__head_count=32,
                attention__head_count_kv=1,
                attention__key_length=320,
                attention__value_length=256,
                attention__key_length_mla=128,
                attention__value_length_mla=128,
                attention__kv_lora_rank=256,
            ),
            "llll",
            ("latent", 320, 256, 32, 1),
        ),
        # Without the converted heads it is plain attention.
        (metadata("deepseek2", attention__key_length=192, attention__value_length=128), "gggg", ("global", 192, 128, 8, 8)),
        (metadata("jamba", attention__head_count_kv=[0, 0, 8, 0]), "rrgr", ("global", 128, 128, 8, 8)),
        (metadata("qwen3next", block_count=5, full_attention_interval=2), "rgrgr", ("global", 128, 128, 8, 8)),
        (metadata("qwen35", attention__recurrent_layers=[True, False, False, True]), "rggr", ("global", 128, 128, 8, 8)),
        (metadata("deci", attention__head_count=[8, 0, 8, 8], attention__head_count_kv=[8, 0, 0, 4]), "gnng", ("global", 128, 128, 8, 8)),
    ],
)
def test_keys_and_defaults(meta, kinds, shape):
    header = header_of(meta)
    first = next(layer for layer in header.layers if layer.has_attention)
    assert (summary(header)[0], (first.kind, first.d_k, first.d_v, first.n_head, first.n_head_kv)) == (kinds, shape)


def test_a_recurrent_model_has_no_attention():
    assert summary(header_of(metadata("mamba2"))) == ("rrrr", set())


def test_shared_kv():
    shared = header_of(metadata("gemma3n", block_count=30, attention__sliding_window=512))
    assert [layer.reads for layer in shared.layers[18:24]] == [18, 19, 18, 18, 18, 18]
    assert shared.layers[24].kind == "global"
    assert shared.layers[24].reads == 19


def test_an_indexer_bounds_the_rows_that_a_query_sees():
    keys = {f"attention__{name}": value for name, value in {"key_length": 576, "value_length": 512, "key_length_mla": 192, "value_length_mla": 128}.items()}
    header = header_of(
        metadata("deepseek32", attention__head_count=128, attention__head_count_kv=1, attention__kv_lora_rank=512, attention__indexer__top_k=2048, **keys)
    )
    assert {(layer.kind, layer.top_k) for layer in header.layers} == {("latent", 2048)}


def test_heads_that_are_not_in_the_file_are_not_there():
    counted = {"block_count": 5, "nextn_predict_layers": 1}
    assert header_of(metadata("qwen35", **counted)).heads == ()
    assert len(header_of(metadata("qwen35", ["blk.4.nextn.eh_proj.weight"], **counted)).heads) == 1


@pytest.mark.parametrize(
    ("meta", "error", "says"),
    [
        (metadata("llama", block_count=None), ModelFormatError, "`m.gguf` has no `llama.block_count`"),
        (metadata("llama", context_length=None), ModelFormatError, "has no `llama.context_length`"),
        (metadata("llama", block_count=0), ModelFormatError, "is 0, outside 1 … 512"),
        (metadata("llama", block_count="4"), ModelFormatError, "is '4', not a int"),
        (metadata("llama", nextn_predict_layers=5), ModelFormatError, "is 5, outside 0 … 4"),
        (metadata("llama", attention__head_count_kv=3), ModelFormatError, "layer 0 of `m.gguf` has 8 query heads over 3 KV heads"),
        (metadata("llama", attention__head_count=[8, 8]), ModelFormatError, "a list of 2 for 4 layers"),
        (metadata("llama", attention__head_count=-8), ModelFormatError, "is -8, not a count for each layer"),
        (metadata("llama", attention__key_length=2048), ModelFormatError, "key_length 2048, outside 1 … 1024"),
        (metadata("llama", embedding_length=None), ModelFormatError, "key_length 0, outside"),
        (metadata("gemma4", attention__sliding_window=512), ModelFormatError, "has no list `gemma4.attention.sliding_window_pattern`"),
        (metadata("gemma4"), ModelFormatError, "has no `gemma4.attention.sliding_window`"),
        (
            metadata("gemma4", attention__sliding_window=512, attention__sliding_window_pattern=[True] * 4, attention__shared_kv_layers=3),
            ModelFormatError,
            "leaves no KV to share",
        ),
        (metadata("qwen35", full_attention_interval=0), ModelFormatError, "is 0, not a number of layers"),
        (metadata("deepseek2", attention__key_length_mla=192, attention__value_length_mla=128), ModelFormatError, "has no `deepseek2.attention.kv_lora_rank`"),
        (metadata("bert"), UnsupportedError, "keeps no KV cache"),
        (metadata("deepseek4"), UnsupportedError, "cannot be told from its header"),
        (metadata("grok"), UnsupportedError, "runs without flash attention"),
        (Metadata(Path("m.gguf"), {}, {}), ModelFormatError, "names no architecture"),
    ],
)
def test_metadata_that_cannot_be(meta, error, says):
    with pytest.raises(error, match=re.escape(says)):
        header_of(meta)


# --- files ----------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A small model with its vocabulary."""
    return tiny_models.make("mpt", tmp_path_factory.mktemp("header") / "model.gguf")


def test_the_package_reads_the_same(file):
    meta, reader = read_metadata(file), gguf.GGUFReader(file)
    for name, field in reader.fields.items():
        if name.startswith("GGUF."):
            continue
        value = field.contents()
        if isinstance(value, list) and value and isinstance(value[0], str):
            assert name not in meta.values
        else:
            assert meta.values[name] == pytest.approx(value)
    assert {name: info.shape for name, info in meta.tensors.items()} == {tensor.name: tuple(tensor.shape.tolist()) for tensor in reader.tensors}


@given(st.data())
def test_a_file_that_is_cut_off_says_so(file, data):
    whole = file.read_bytes()
    end = data.draw(st.integers(0, gguf.GGUFReader(file).data_offset))
    cut = file.with_name("cut.gguf")
    cut.write_bytes(whole[:end])
    with pytest.raises(ModelFormatError, match=r"is cut off|is not a GGUF file"):
        read_header(cut)


@given(st.data())
def test_a_damaged_file_is_an_error_of_ours(file, data):
    content = bytearray(file.read_bytes())
    # The vocabulary, which nothing here reads, is most of the header.
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 700) | st.integers(0, len(content) // 2))] = data.draw(st.integers(0, 255))
    damaged = file.with_name("damaged.gguf")
    damaged.write_bytes(content)
    # Whatever else it raised would be a defect.
    with contextlib.suppress(PyllmError):
        read_header(damaged)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it has 0 bytes"),
        (b"GGUF", "it has 4 bytes"),
        (b"not a model, but long enough", "does not start with `GGUF`"),
        (struct.pack("<IIQQ", 0x46554747, 1, 0, 0), "of GGUF version 1, not 2 or 3"),
        (struct.pack("<I", 0x46554747) + struct.pack(">IQQ", 3, 0, 0), "of version 3 for big-endian machines"),
        (struct.pack("<IIQQ", 0x46554747, 3, 0, 2**60), "claims to have 1152921504606846976 keys"),
        (struct.pack("<IIQQQ", 0x46554747, 3, 0, 1, 2**60), "is cut off"),
        (struct.pack("<IIQQQ", 0x46554747, 3, 0, 1, 1) + b"k" + struct.pack("<I", 77), "there is no type 77 of metadata"),
        (struct.pack("<IIQQQ", 0x46554747, 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 9, 1), "an array of arrays"),
        (struct.pack("<IIQQQ", 0x46554747, 3, 0, 1, 1) + b"k" + struct.pack("<IIQQ", 9, 8, 1, 99), "is cut off"),
        (struct.pack("<IIQQQ", 0x46554747, 3, 1, 0, 1) + b"t" + struct.pack("<I", 9), "has 9 dimensions"),
        (struct.pack("<IIQQ", 0x46554747, 3, 0, 0), "names no architecture"),
    ],
)
def test_files_that_are_no_models(content, says, tmp_path):
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ModelFormatError, match=says) as caught:
        read_header(tmp_path / "m.gguf")
    assert caught.value.hint


def test_a_missing_file(tmp_path):
    with pytest.raises(NotFoundError, match="No such file"):
        read_header(tmp_path / "none.gguf")
    with pytest.raises(NotFoundError, match="directory"):
        read_header(tmp_path)


def test_a_split_model_is_read_as_one(tmp_path):
    def write(number, tensors):
        writer = gguf.GGUFWriter(tmp_path / f"m-{number:05d}-of-00002.gguf", "llama")
        writer.add_uint16("split.count", 2)
        if number == 1:
            for key, value in {"block_count": 2, "context_length": 512, "embedding_length": 64, "attention.head_count": 4}.items():
                writer.add_uint32(f"llama.{key}", value)
        for name in tensors:
            writer.add_tensor(name, np.zeros(4, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    write(1, ["token_embd.weight"])
    with pytest.raises(NotFoundError, match=r"m-00002-of-00002\.gguf"):
        read_header(tmp_path / "m-00001-of-00002.gguf")
    write(2, ["blk.1.attn_sinks.weight"])
    assert [layer.sinks for layer in read_header(tmp_path / "m-00001-of-00002.gguf").layers] == [False, True]
    with pytest.raises(NotFoundError, match="is part of a model that is split into 2 files"):
        read_header(tmp_path / "m-00002-of-00002.gguf")
