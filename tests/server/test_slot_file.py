"""Slots that are saved and restored through pyllm-server: nothing is forgotten, nothing else is believed."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from pyllm import models
from pyllm.server.binary import find_server
from pyllm.server.client import RefusedError, ServerClient
from pyllm.server.process import ServerProcess
from tests.conftest import prompt_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pyllm.server.client import ServerCompletion

DENSE = ["--spec-type", "draft-dflash", "--spec-draft-n-max", 4]
HYBRID = ["--spec-type", "draft-mtp", "--spec-draft-n-max", 3]


def dense(seed: int = 0, error_rate: float = 0.3) -> list[object]:
    draft = models.make("llama-dflash", family="successor", seed=seed, error_rate=error_rate)
    return ["-m", models.make("llama", family="successor", seed=seed), "-md", draft, *DENSE]


@contextmanager
def serve(folder: Path, *flags: object, binary: Path | None = None) -> Iterator[ServerClient]:
    words = [str(flag) for flag in (*flags, "-b", 256, "-ub", 64, "--slot-save-path", folder)]
    with ServerProcess(binary or find_server(), words) as process, ServerClient(process.url) as client:
        yield client


def drafts(answer: ServerCompletion) -> tuple[tuple[int, ...], int, int]:
    return answer.tokens, answer.drafted, answer.accepted


def conversation(client: ServerClient, folder: Path) -> tuple[list[int], ServerCompletion]:
    """Talk in slot 0, save it to `one`, and go on: what is said next, and its answer by a slot that was never left."""
    prompt = prompt_tokens(0, 60)
    answer = client.completion(prompt, n=40, slot=0)
    client.save_slot(0, "one")
    assert (folder / "one").is_file()
    more = [*prompt, *answer.tokens, *prompt_tokens(5, 8)[1:]]
    return more, client.completion(more, n=30, slot=0)


def test_a_restored_slot_drafts_as_if_it_had_never_been_left(tmp_path):
    """The draft context kept the conversation in between, which ends every request here."""
    with serve(tmp_path, *dense(), "-np", 2, "-c", 1024) as client:
        more, stayed = conversation(client, tmp_path)
        client.completion(prompt_tokens(3, 20), n=4, slot=0)
        client.restore_slot(0, "one")
        back = client.completion(more, n=30, slot=0)
        assert drafts(back) == drafts(stayed)
        assert back.cached_tokens == stayed.cached_tokens >= 99
        assert back.accepted > 10


def test_another_process_and_another_slot(tmp_path):
    with serve(tmp_path, *dense(), "-np", 2, "-c", 1024) as client:
        more, stayed = conversation(client, tmp_path)
    with serve(tmp_path, *dense(), "-np", 4, "-c", 1024) as client:
        client.completion(prompt_tokens(3, 80), n=4, slot=1)
        assert client.restore_slot(1, "one")["n_restored"] == 99
        assert drafts(client.completion(more, n=30, slot=1)) == drafts(stayed)


def test_a_hybrid_keeps_its_checkpoints(tmp_path):
    """Without them the whole prompt was computed again after a restore that the prompt leaves early."""
    target = models.make("qwen35", family="successor", error_rate=0.3, seed=6)
    prompt = prompt_tokens(0, 60)
    with serve(tmp_path, "-m", target, *HYBRID, "-np", 2, "-c", 1024) as client:
        answer = client.completion(prompt, n=40, slot=0)
        client.save_slot(0, "one")
        more = [*prompt, *answer.tokens[:-5], *prompt_tokens(5, 8)[1:]]
        stayed = client.completion(more, n=30, slot=0)
        client.completion(prompt_tokens(3, 20), n=4, slot=0)
        client.restore_slot(0, "one")
        back = client.completion(more, n=30, slot=0)
    assert back.cached_tokens == stayed.cached_tokens > 40
    assert drafts(back) == drafts(stayed)


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif how == "foreign":
        path.write_bytes(b"ggsq" + bytes(400))
    elif how == "newer":
        data[8] = 7
        path.write_bytes(data)
    else:
        path.write_bytes(b"")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slots")
    with serve(folder, *dense(), "-np", 2, "-c", 1024) as client:
        conversation(client, folder)
    return (folder / "one").read_bytes()


def refused(client: ServerClient, says: str) -> None:
    """Slot 0 holds something, declines the file, and works on without what it held."""
    held = client.completion(prompt_tokens(4, 30), n=5, slot=0)
    with pytest.raises(RefusedError) as caught:
        client.restore_slot(0, "one")
    assert caught.value.status == 400
    assert says in caught.value.message
    again = client.completion(prompt_tokens(4, 30), n=5, slot=0)
    assert again.tokens == held.tokens
    assert again.cached_tokens == 0


@pytest.mark.parametrize(
    ("how", "says"),
    [("cut", "bytes"), ("flipped", "damaged"), ("foreign", "checkpoint"), ("newer", "it has format 7, this build reads up to 1"), ("empty", "bytes")],
    ids=lambda value: value.split()[0],
)
def test_damaged_files(tmp_path, saved, how, says):
    (tmp_path / "one").write_bytes(saved)
    damage(tmp_path / "one", how)
    with serve(tmp_path, *dense(), "-np", 2, "-c", 1024) as client:
        refused(client, says)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([*dense(seed=9), "-np", 2, "-c", 1024], "model is `"),
        ([*dense(error_rate=0.5), "-np", 2, "-c", 1024], "drafters is `"),
        ([*dense()[:2], "-np", 2, "-c", 1024], "drafters is `"),
        ([*dense(), "-np", 2, "-c", 1024, "-ctk", "q8_0"], "kv_types is `f16/f16`, here it is `q8_0/f16`"),
        ([*dense(), "-np", 2, "-c", 1024, "-fa", "off"], "the slot's cache cannot take"),
        ([*dense(), "-np", 2, "-c", 1024, "--kv-unified", "--kv-unified-per-slot", 90], "holds 99 tokens, the slot has room for 90"),
    ],
    ids=["model", "drafter", "no drafter", "kv type", "other layout", "too small"],
)
def test_files_of_others(tmp_path, saved, flags, says):
    (tmp_path / "one").write_bytes(saved)
    with serve(tmp_path, *flags) as client:
        refused(client, says)


def test_a_file_that_is_not_there(tmp_path):
    with serve(tmp_path, *dense(), "-np", 2, "-c", 1024) as client:
        refused(client, "one")


def test_a_folder_that_cannot_be_written(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    with serve(folder, *dense(), "-np", 2, "-c", 1024) as client:
        answer = client.completion(prompt_tokens(4, 30), n=5, slot=0)
        folder.rmdir()
        with pytest.raises(RefusedError) as caught:
            client.save_slot(0, "one")
        assert not caught.value.defect
        assert "gone" in caught.value.message
        assert client.completion(prompt_tokens(4, 30), n=5, slot=0).tokens == answer.tokens


def test_over_the_limit_on_file_sizes(tmp_path, saved):
    """The signal that comes with it ends a process at its default, which a server's is."""
    folder, binary = tmp_path / "slots", tmp_path / "limited-server"
    folder.mkdir()
    blocks = -(-len(saved) // 512)  # what `saved` needs, and less than a longer conversation does
    binary.write_text(f'#!/bin/sh\nulimit -f {blocks}\nexec "{find_server()}" "$@"\n')
    binary.chmod(0o755)
    with serve(folder, *dense(), "-np", 2, "-c", 1024, "-t", 1, "-tb", 1, binary=binary) as client:
        more, stayed = conversation(client, folder)
        assert (folder / "one").read_bytes() == saved
        with pytest.raises(RefusedError) as caught:
            client.save_slot(0, "one")
        assert not caught.value.defect
        message = caught.value.message
        assert re.search(
            rf"one` cannot be written: File too large behind byte \d+, the limit is {512 * blocks}: raise the limit on file sizes \(ulimit -f\)", message
        )
        assert (folder / "one").read_bytes() == saved
        assert [entry.name for entry in folder.iterdir()] == ["one"]
        known = [*more, *stayed.tokens, *prompt_tokens(7, 8)[1:]]
        after = client.completion(known, n=20, slot=0)
        assert after.cached_tokens == len(more) + 29
        assert client.completion(known, n=20, slot=1, cache=False).tokens == after.tokens
        client.restore_slot(0, "one")
        assert drafts(client.completion(more, n=30, slot=0)) == drafts(stayed)
        client.restore_slot(0, "one")
        client.save_slot(0, "two")
    assert sorted(entry.name for entry in folder.iterdir()) == ["one", "two"]
