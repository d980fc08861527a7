"""The draft memory that pyllm-server builds: it may not tell what the slot held before. A slot's file shows it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pyllm import models
from pyllm._ffi import CheckpointFile
from pyllm.server.binary import find_server
from pyllm.server.client import ServerClient
from pyllm.server.process import ServerProcess
from tests.conftest import prompt_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@contextmanager
def serve(folder: Path, recipe: str, *flags: str) -> Iterator[ServerClient]:
    words = [*flags, "-m", models.make(recipe, seed=4), "--spec-type", "draft-mtp", "--spec-draft-n-max", 3, "-np", 1, "-c", 512, "-b", 128, "-ub", 64]
    with ServerProcess(find_server(), [*map(str, words), "--slot-save-path", str(folder)]) as process, ServerClient(process.url) as client:
        yield client


def memory(client: ServerClient, folder: Path, prompt: Sequence[int], *, cache: bool = True) -> np.ndarray:
    """The draft memory after ``prompt``, as halves: keys, values and, equal where the layout is, what is around them."""
    client.completion(prompt, n=1, slot=0, cache=cache)
    return held(client, folder)


def held(client: ServerClient, folder: Path) -> np.ndarray:
    client.save_slot(0, "one")
    with CheckpointFile(folder / "one") as file:
        return np.frombuffer(file.read("draft.0"), np.float16).astype(np.float32)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two memories differ by no more than the rounding of batches that were cut elsewhere."""
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=0.02, atol=0.02, equal_nan=True))


@pytest.mark.parametrize("recipe", ["qwen35", "step35"])
def test_a_used_slot_is_like_a_fresh_one(tmp_path, recipe):
    """The first token of a prompt used to be paired with a hidden row of the prompt before."""
    prompt = prompt_tokens(0, 30)
    with serve(tmp_path, recipe) as client:
        fresh = memory(client, tmp_path, prompt)
        client.completion(prompt_tokens(7, 40), n=8, slot=0, cache=False)
        assert np.array_equal(memory(client, tmp_path, prompt, cache=False), fresh, equal_nan=True)


def test_a_prompt_that_leaves_the_conversation(tmp_path):
    """The row before the first new token is not known any more; the target computes it again."""
    before, prompt = prompt_tokens(0, 60), [*prompt_tokens(0, 60)[:30], *prompt_tokens(7, 30)[1:]]
    with serve(tmp_path, "step35", "--swa-full") as client:
        fresh = memory(client, tmp_path, prompt)
        # one other token is seen: the comparison is not blind
        assert not same(memory(client, tmp_path, [*prompt[:30], prompt[30] + 1, *prompt[31:]], cache=False), fresh)
    with serve(tmp_path, "step35", "--swa-full") as client:
        client.completion(before, n=8, slot=0)
        # 30 tokens are shared, and the last of them is computed again
        assert client.completion(prompt, n=1, slot=0).cached_tokens == 29
        assert same(held(client, tmp_path), fresh)


@pytest.mark.parametrize("recipe", ["qwen35", "step35"])
def test_the_prompt_cache_brings_the_rows_back(tmp_path, recipe):
    first = prompt_tokens(0, 60)
    with serve(tmp_path, recipe) as client:
        more = [*first, *client.completion(first, n=16, slot=0).tokens, *prompt_tokens(5, 20)[1:]]
        stayed = memory(client, tmp_path, more)
    with serve(tmp_path, recipe) as client:
        client.completion(first, n=16)
        client.completion(prompt_tokens(7, 60), n=8)  # the slot is taken by another conversation, which has little in common
        client.completion(more, n=1)
        back = memory(client, tmp_path, more)
    assert same(back, stayed)
