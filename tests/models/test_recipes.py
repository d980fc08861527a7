from __future__ import annotations

import time

import numpy as np
import pytest
from gguf import GGUFReader

from pyllm import models
from pyllm.errors import ConfigError, NotFoundError
from pyllm.models import recipe as recipe_module
from pyllm.models import vocabulary

PAIRS = [(recipe, family) for recipe in models.recipes() for family in recipe.families]
IDS = [f"{recipe.name}-{family}" for recipe, family in PAIRS]


def key(reader, name):
    field = reader.get_field(name)
    return None if field is None else field.contents()


def shapes(reader):
    return {tensor.name: tuple(int(n) for n in tensor.shape) for tensor in reader.tensors}


@pytest.mark.parametrize(("recipe", "family"), PAIRS, ids=IDS)
def test_every_recipe_writes_a_readable_file_in_under_a_second(recipe, family, tmp_path):
    began = time.process_time()
    path = models.make(recipe.name, tmp_path / "model.gguf", family=family)
    assert time.process_time() - began < 1.0
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.gguf"]

    reader = GGUFReader(path)
    arch = recipe.architecture
    assert key(reader, "general.architecture") == arch
    assert key(reader, f"{arch}.context_length") >= 4096
    assert key(reader, "tokenizer.ggml.mask_token_id") == vocabulary.MASK_ID
    names = shapes(reader)
    blocks = {int(name.split(".")[1]) for name in names if name.startswith("blk.")}
    assert blocks == set(range(key(reader, f"{arch}.block_count")))
    for tensor in reader.tensors:
        assert np.isfinite(tensor.data).all(), tensor.name
    if "token_embd.weight" in names:
        width = key(reader, f"{arch}.embedding_length")
        assert names["token_embd.weight"] == (width, len(key(reader, "tokenizer.ggml.tokens")))


@pytest.mark.parametrize(
    ("name", "block", "head_dim", "n_head", "n_head_kv"),
    [
        ("llama", 0, 64, 8, 2),
        ("gemma4", 0, 256, 8, 2),
        ("gemma4", 3, 512, 8, 2),
        ("gemma4-12b", 5, 512, 16, 1),
        ("gemma4-31b", 0, 256, 16, 8),
        ("gemma4-31b", 5, 512, 16, 2),
        ("nemotron-h", 1, 128, 32, 2),
        ("step35", 0, 128, 8, 2),
    ],
)
def test_head_shapes(name, block, head_dim, n_head, n_head_kv, tmp_path):  # noqa: PLR0917
    names = shapes(GGUFReader(models.make(name, tmp_path / "m.gguf")))
    assert names[f"blk.{block}.attn_q.weight"][1] == head_dim * n_head
    assert names[f"blk.{block}.attn_k.weight"][1] == head_dim * n_head_kv


def test_gated_heads_of_qwen35_and_its_nextn_block(tmp_path):
    names = shapes(GGUFReader(models.make("qwen35", tmp_path / "m.gguf")))
    for block in (3, 4):
        assert names[f"blk.{block}.attn_q.weight"][1] == 2 * 12 * 256
        assert names[f"blk.{block}.attn_k.weight"][1] == 2 * 256
    assert "blk.0.ssm_conv1d.weight" in names
    assert names["blk.4.nextn.eh_proj.weight"] == (512, 256)


def test_last_layers_of_gemma4_share_kv_and_its_assistant_has_none(tmp_path):
    reader = GGUFReader(models.make("gemma4", tmp_path / "t.gguf"))
    names = shapes(reader)
    assert key(reader, "gemma4.attention.shared_kv_layers") == 2
    assert [f"blk.{i}.attn_k.weight" in names for i in range(6)] == [True] * 4 + [False] * 2
    # the two shared layers are one of each kind, and so are the two that they share with
    assert key(reader, "gemma4.attention.sliding_window_pattern")[2:] == [True, False, True, False]
    reader = GGUFReader(models.make("gemma4-assistant", tmp_path / "a.gguf"))
    names = shapes(reader)
    assert not [name for name in names if "attn_k" in name or "attn_v" in name]
    assert names["blk.0.attn_q.weight"][1] == 4 * 256
    assert names["blk.3.attn_q.weight"][1] == 4 * 512
    assert key(reader, "gemma4-assistant.embedding_length_out") == 256
    assert key(reader, "gemma4-assistant.embedding_length") != 256


def test_global_layers_of_the_large_gemma4_have_no_values(tmp_path):
    names = shapes(GGUFReader(models.make("gemma4-31b", tmp_path / "m.gguf")))
    assert [f"blk.{i}.attn_v.weight" in names for i in range(6)] == [True] * 5 + [False]


def test_step35_has_three_chained_blocks(tmp_path):
    reader = GGUFReader(models.make("step35", tmp_path / "m.gguf"))
    assert key(reader, "step35.nextn_predict_layers") == 3
    assert sum("nextn.eh_proj" in name for name in shapes(reader)) == 3


def test_block_drafter_reads_existing_layers_and_shares_the_embeddings(tmp_path):
    for recipe in models.recipes():
        if recipe.spec != "dflash":
            continue
        reader = GGUFReader(models.make(recipe.name, tmp_path / "d.gguf"))
        target = GGUFReader(models.make(recipe.targets[0], tmp_path / "t.gguf"))
        taps = key(reader, "dflash.target_layers")
        arch = key(target, "general.architecture")
        assert max(taps) < key(target, f"{arch}.block_count")
        width = key(target, f"{arch}.embedding_length")
        assert shapes(reader)["fc.weight"] == (width * len(taps), width)
        assert "token_embd.weight" not in shapes(reader)


def test_targets_and_drafters_name_each_other():
    by_name = {recipe.name: recipe for recipe in models.recipes()}
    assert len(by_name) == len(models.recipes())
    for recipe in models.recipes():
        for spec, drafter in recipe.drafters:
            if drafter is not None:
                assert by_name[drafter].spec == spec
                assert recipe.name in by_name[drafter].targets
        for target in recipe.targets:
            assert (recipe.spec, recipe.name) in by_name[target].drafters
        assert (recipe.kind == "drafter") == bool(recipe.targets) == (recipe.spec is not None)


def test_same_seed_same_bytes_and_another_seed_others(tmp_path):
    for family in ("random", "successor"):
        first = models.make("llama", tmp_path / "a.gguf", family=family, seed=3).read_bytes()
        assert models.make("llama", tmp_path / "b.gguf", family=family, seed=3).read_bytes() == first
        assert models.make("llama", tmp_path / "c.gguf", family=family, seed=4).read_bytes() != first


def test_cache_is_keyed_by_content(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = models.make("llama")
    assert path.parent == tmp_path / "pyllm" / "models"
    written = path.stat().st_mtime_ns
    assert models.make("llama") == path
    assert path.stat().st_mtime_ns == written
    others = {
        models.make("llama", seed=1),
        models.make("llama", layers=2),
        models.make("llama", width=2),
        models.make("llama", family="successor"),
        models.make("llama-dflash", family="successor"),
        models.make("llama-dflash", family="successor", error_rate=0.5),
        models.make("llama-dflash", family="successor", error_rate=[0.5, 0.5]),
        models.make("llama-dflash", family="successor", nan_after="always"),
        models.make("llama-dflash", family="successor", nan_after=300),
        models.make("llama", n_vocab=600),
    }
    assert len(others | {path}) == 11
    assert models.make("llama-dflash", family="successor", error_rate=[0.5]) in others


@pytest.mark.parametrize("name", ["llama", "gemma4", "gemma4-assistant", "qwen35", "llama-dflash"])
def test_width_multiplies_the_stream(name, tmp_path):
    narrow = models.make(name, tmp_path / "1.gguf")
    wide = models.make(name, tmp_path / "2.gguf", width=2)
    arch = recipe_module.find(name).architecture
    for item in ("embedding_length", "feed_forward_length"):
        assert key(GGUFReader(wide), f"{arch}.{item}") == 2 * key(GGUFReader(narrow), f"{arch}.{item}")


@pytest.mark.parametrize(("name", "layers"), [("llama", 1), ("gemma4", 9), ("gemma4-31b", 12), ("qwen35", 8), ("nemotron-h", 3)])
def test_layers(name, layers, tmp_path):
    reader = GGUFReader(models.make(name, tmp_path / "m.gguf", layers=layers))
    arch = recipe_module.find(name).architecture
    nextn = key(reader, f"{arch}.nextn_predict_layers") or 0
    assert key(reader, f"{arch}.block_count") == layers + nextn


def test_successor_block_drafter_has_a_head_for_each_position_it_drafts(tmp_path):
    reader = GGUFReader(models.make("llama-dflash", tmp_path / "m.gguf", family="successor"))
    assert key(reader, "dflash.attention.head_count") >= key(reader, "dflash.block_size") - 1
    assert key(reader, "dflash.block_count") == 2
    assert key(reader, "dflash.block_size") - 1 == recipe_module.find("llama-dflash").depth


def test_a_convolution_without_bias_would_crash_the_graph(tmp_path):
    for name in ("falcon-h1", "nemotron-h"):
        names = shapes(GGUFReader(models.make(name, tmp_path / "m.gguf")))
        for weight in [name for name in names if name.endswith("ssm_conv1d.weight")]:
            assert names[weight.replace("weight", "bias")] == names[weight][1:]


def test_every_layer_of_falcon_h1_has_attention_and_a_recurrent_state(tmp_path):
    names = shapes(GGUFReader(models.make("falcon-h1", tmp_path / "m.gguf")))
    for block in range(3):
        assert f"blk.{block}.attn_q.weight" in names
        assert f"blk.{block}.ssm_in.weight" in names


def test_sliding_window_of_a_block_drafter(tmp_path):
    for family, pattern in (("random", [True, False, True]), ("successor", [True, False])):
        reader = GGUFReader(models.make("llama-dflash-swa", tmp_path / "m.gguf", family=family))
        assert key(reader, "dflash.attention.sliding_window") == 16
        assert key(reader, "dflash.attention.sliding_window_pattern") == pattern
    assert key(GGUFReader(models.make("llama-dflash", tmp_path / "m.gguf")), "dflash.attention.sliding_window") is None


def test_unknown_recipe_suggests_the_nearest(tmp_path):
    with pytest.raises(NotFoundError) as caught:
        models.make("gema4", tmp_path / "m.gguf")
    assert "'gema4'" in caught.value.message
    assert "did you mean 'gemma4'?" in caught.value.hint
    assert "qwen35-dflash" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "arguments", "value", "way_out"),
    [
        ("llama", {"family": "successor", "error_rate": 1.5}, "1.5, outside 0 … 1", "share of tokens"),
        ("llama", {"family": "successor", "error_rate": float("nan")}, "nan", "share of tokens"),
        ("llama", {"error_rate": 0.5}, "0.5", "successor"),
        ("llama", {"width": 0}, "0, outside 1 … 64", "leave it out"),
        ("llama", {"width": 65}, "65, outside 1 … 64", "leave it out"),
        ("llama", {"layers": 0}, "0, outside 1 … 64", "leave it out"),
        ("llama", {"seed": -1}, "-1, outside", "any whole number"),
        ("llama", {"family": "gaussian"}, "'gaussian'", "random"),
        ("llama-other-vocab", {"family": "successor"}, "successor", "random"),
        ("qwen35", {"layers": 6}, "not 6", "nearest is 8"),
        ("nemotron-h", {"layers": 4}, "not 4", "M*-"),
        ("gemma4", {"layers": 3}, "not 3", "4 or more"),
        ("step35", {"layers": 1}, "not 1", "least"),
        ("gemma4-assistant", {"layers": 1}, "not 1", "least"),
        ("llama-dflash", {"family": "successor", "layers": 1}, "not 1", "second drafts"),
        ("llama-dflash", {"family": "successor", "error_rate": []}, "empty", "one for each"),
        ("llama-dflash", {"family": "successor", "error_rate": [0.1, -0.2]}, "-0.2, outside 0 … 1", "share of tokens"),
        ("llama-dflash", {"family": "successor", "error_rate": [0.1] * 8}, "8 values, but llama-dflash drafts 7", "fewer"),
        ("step35", {"family": "successor", "error_rate": [0.1] * 4}, "4 values, but step35 drafts 3", "fewer"),
        ("qwen35", {"family": "successor", "error_rate": [0.1, 0.2]}, "same head", "block drafter"),
        ("gemma4-assistant", {"family": "successor", "error_rate": [0.1, 0.2]}, "same head", "block drafter"),
        ("llama-draft", {"family": "successor", "error_rate": [0.1, 0.2]}, "same head", "block drafter"),
        ("llama-dflash", {"family": "successor", "nan_after": 512}, "512, neither", "piece_id"),
        ("llama-dflash", {"family": "successor", "nan_after": "never"}, "'never', neither", "piece_id"),
        ("llama-dflash", {"nan_after": 300}, "300", "'always'"),
        ("llama", {"size": "70b"}, "no size '70b'", "tiny, 60m, 8b"),
        ("gemma4", {"family": "successor", "size": "8b"}, "no size '8b'", "tiny"),
        ("llama", {"size": "60m"}, "random", "successor"),
        ("llama", {"family": "successor", "size": "60m", "tensor_type": "q6_k"}, "'q6_k', not one of", "leave it out"),
        ("llama", {"family": "successor", "tensor_type": "q8_0"}, "not quantised", "60m"),
        ("llama", {"n_vocab": 511}, "511, but the vocabulary has 512", "or more"),
        ("llama", {"n_vocab": 1 << 19}, "outside", "leave it out"),
    ],
)
def test_values_outside_their_limits(name, arguments, value, way_out, tmp_path):
    with pytest.raises(ConfigError) as caught:
        models.make(name, tmp_path / "m.gguf", **arguments)
    assert value in caught.value.message
    assert way_out in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_other_vocabulary_differs_in_size_and_words(tmp_path):
    ours = key(GGUFReader(models.make("llama", tmp_path / "a.gguf")), "tokenizer.ggml.tokens")
    theirs = key(GGUFReader(models.make("llama-other-vocab", tmp_path / "b.gguf")), "tokenizer.ggml.tokens")
    assert len(ours) == vocabulary.N_VOCAB != len(theirs)
    assert ours != theirs[: len(ours)]


def test_vocabulary():
    words = vocabulary.standard()
    assert words.n_vocab == len(set(words.tokens)) == len(words.scores) == len(words.types)
    assert words.tokens[vocabulary.STALE_ID] == "<stale>"
    for character in " !aZ~":
        token = vocabulary.piece_id(character)
        assert words.tokens[token] == ("\u2581" if character == " " else character)
    with pytest.raises(ValueError, match="tuple"):
        vocabulary.piece_id("é")
