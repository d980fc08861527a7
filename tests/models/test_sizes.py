from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, quants

from pyllm import models
from pyllm.models import noise
from pyllm.models import recipe as recipe_module

SIZED = [recipe.name for recipe in models.recipes() if "60m" in recipe.sizes and recipe.kind == "target"]


def n_weights(path):
    return sum(int(tensor.n_elements) for tensor in GGUFReader(path).tensors)


@pytest.mark.parametrize("name", SIZED)
def test_sixty_million_weights(name, tmp_path):
    path = models.make(name, tmp_path / "m.gguf", family="successor", size="60m")
    assert 50e6 < n_weights(path) < 90e6
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize(("name", "architecture"), [("llama", "llama"), ("step35", "step35"), ("qwen35", "qwen35")])
def test_eight_billion_have_a_real_models_shape(name, architecture):
    plan = recipe_module.find(name).blueprint("successor", size="8b")
    assert plan.architecture == architecture
    assert plan.n_embd == 4096
    assert 6e9 < sum(int(np.prod(tensor.shape)) for tensor in plan.tensors) < 9.5e9
    assert plan.metadata["attention.head_count_kv"] in {4, 8}


@pytest.mark.parametrize(
    ("name", "heads", "kv", "dims"),
    [("gemma4-31b", 32, [16] * 5 + [4], (512, 256)), ("qwen35", 24, 4, (256, None)), ("gemma4-31b-assistant", 16, [16] * 3 + [4], (512, 256))],
)
def test_a_slice_has_a_real_models_attention(name, heads, kv, dims):
    plan = recipe_module.find(name).blueprint("successor", size="slice")
    assert plan.metadata["attention.head_count"] == heads
    found = plan.metadata["attention.head_count_kv"]
    assert found == kv if isinstance(kv, int) else found[-len(kv) :] == kv
    assert (plan.metadata["attention.key_length"], plan.metadata.get("attention.key_length_swa")) == dims
    assert plan.metadata["context_length"] == 131072
    if name != "gemma4-31b-assistant":
        assert plan.n_embd in {5120, 5376}
        assert 3e9 < sum(int(np.prod(tensor.shape)) for tensor in plan.tensors) < 7e9


def test_drafters_are_small_beside_their_targets(tmp_path):
    target = n_weights(models.make("llama", tmp_path / "t.gguf", family="successor", size="60m"))
    assert n_weights(models.make("llama-dflash", tmp_path / "d.gguf", family="successor", size="60m")) < target / 10
    assert n_weights(models.make("llama-draft", tmp_path / "d.gguf", family="successor")) < target / 10
    for name in ("step35", "qwen35"):
        reader = GGUFReader(models.make(name, tmp_path / "m.gguf", family="successor", size="60m"))
        heads = [int(tensor.name.split(".")[1]) for tensor in reader.tensors if "nextn.eh_proj" in tensor.name]
        first = sum(int(t.n_elements) for t in reader.tensors if t.name.startswith(f"blk.{heads[0]}."))
        assert first < sum(int(t.n_elements) for t in reader.tensors) / 10


@pytest.mark.parametrize("tensor_type", ["f16", "q8_0", "q4_0"])
def test_layers_are_dense_and_in_the_type_asked_for(tensor_type, tmp_path):
    path = models.make("llama", tmp_path / "m.gguf", family="successor", size="60m", tensor_type=tensor_type)
    wanted = GGMLQuantizationType[tensor_type.upper()]
    seen = set()
    for tensor in GGUFReader(path).tensors:
        if tensor.name in {"token_embd.weight", "output.weight"}:
            assert tensor.tensor_type == GGMLQuantizationType.F16
        elif "norm" not in tensor.name:
            assert tensor.tensor_type == wanted
            values = quants.dequantize(tensor.data, wanted)
            assert (values != 0).mean() > 0.8
            assert np.isfinite(values).all()
            seen.add(values[0, :64].tobytes())
    # no two tensors begin alike
    assert len(seen) == 16 * 7


def test_a_padded_vocabulary(tmp_path):
    reader = GGUFReader(models.make("llama", tmp_path / "m.gguf", family="successor", size="60m", n_vocab=32768))
    shapes = {tensor.name: tuple(int(n) for n in tensor.shape) for tensor in reader.tensors}
    assert shapes["token_embd.weight"] == shapes["output.weight"] == (512, 32768)
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    assert len(tokens) == len(set(tokens)) == 32768
    drafter = GGUFReader(models.make("llama-dflash", tmp_path / "d.gguf", family="successor", size="60m", n_vocab=32768))
    assert next(tuple(int(n) for n in tensor.shape) for tensor in drafter.tensors if tensor.name == "output.weight") == (512, 32768)


def test_noise_is_as_strong_as_asked_and_the_same_each_time():
    for kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0):
        values = quants.dequantize(noise.Noise(3e-4, 5).data((300, 512), kind), kind)
        assert values.shape == (300, 512)
        assert values.std() == pytest.approx(3e-4, rel=0.15)
        again = noise.Noise(3e-4, 5).data((300, 512), kind)
        assert (again == noise.Noise(3e-4, 5).data((300, 512), kind)).all()
        assert (again != noise.Noise(3e-4, 6).data((300, 512), kind)).any()


def test_noise_repeats_in_no_column():
    rows = noise.Noise(1.0, 0).data((2048, 4096), GGMLQuantizationType.F16).reshape(2048, 4096)
    assert len(np.unique(rows[:, :32], axis=0)) == 2048


def test_layers_of_a_larger_size(tmp_path):
    path = models.make("llama", tmp_path / "m.gguf", family="successor", size="60m", layers=1)
    assert n_weights(path) < n_weights(models.make("llama", tmp_path / "n.gguf", family="successor", size="60m", layers=2)) < 10e6
