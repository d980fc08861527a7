"""Image encoders for the tiny models."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGUFReader

from pyllm import models
from pyllm.errors import ConfigError
from pyllm.models import vision


@pytest.mark.parametrize("recipe", ["llama", "qwen35"])
def test_its_rows_are_the_models(recipe, tmp_path):
    target = models.make(recipe)
    reader = GGUFReader(models.projector(target, tmp_path / "mmproj.gguf"))
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    embedding = next(tensor for tensor in GGUFReader(target).tensors if tensor.name == "token_embd.weight")
    width = int(embedding.shape[0])
    assert reader.fields["clip.vision.projection_dim"].contents() == width
    assert tensors["mm.2.weight"].shape == (width, vision.N_FF)
    assert all(np.isfinite(values).all() for values in tensors.values())
    # what every token has is not the image's: with no pixel does that dimension change
    pieces = embedding.data.astype(np.float32)[270:300]
    common = pieces.std(axis=0) == 0
    assert common.any()
    assert (tensors["mm.2.weight"][common] == 0).all()
    assert (tensors["mm.2.bias"][common] == pieces[0][common]).all()


def test_same_seed_same_bytes(tmp_path):
    first, again, other = (models.projector(models.make("llama"), tmp_path / f"{i}.gguf", seed=seed).read_bytes() for i, seed in enumerate((1, 1, 2)))
    assert first == again != other


def test_a_drafter_has_no_embeddings(tmp_path):
    with pytest.raises(ConfigError, match="has no token embeddings") as caught:
        models.projector(models.make("llama-dflash"), tmp_path / "mmproj.gguf")
    assert "target's file" in caught.value.hint
    assert not list(tmp_path.iterdir())
