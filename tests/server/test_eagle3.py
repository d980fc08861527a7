"""What an EAGLE-3 drafter knows of a slot: nothing of what the slot held before. Its memory is in a slot's file; upstream drives it, with patches of ours."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import pytest

from pyllm import models
from pyllm.server.binary import find_server
from pyllm.server.client import ServerClient
from pyllm.server.process import ServerProcess
from tests.conftest import prompt_tokens
from tests.server.test_rows import held, memory, same

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def serve(folder: Path, *flags: object, slots: int = 1) -> Iterator[ServerClient]:
    words = ["-m", models.make("llama", seed=4), "-md", models.make("llama-eagle3", seed=4), "--spec-type", "draft-eagle3", "--spec-draft-n-max", 3]
    sizes = ["-np", slots, "-c", 512 * slots, "-b", 128, "-ub", 64, "-t", 1, "-tb", 1, "--slot-save-path", folder]
    with ServerProcess(find_server(), [str(word) for word in [*words, *sizes, *flags]]) as process, ServerClient(process.url) as client:
        yield client


def test_it_drafts_and_changes_no_text(tmp_path):
    flags = ["-np", 1, "-c", 512, "-t", 1, "-tb", 1]
    with ServerProcess(find_server(), [str(flag) for flag in ["-m", models.make("llama", seed=4), *flags]]) as plain, ServerClient(plain.url) as client:
        expected = client.completion(prompt_tokens(0, 30), n=60).tokens
    with serve(tmp_path) as client:
        answer = client.completion(prompt_tokens(0, 30), n=60)
    assert answer.tokens == expected
    assert answer.drafted > 100


def test_a_used_slot_is_like_a_fresh_one(tmp_path):
    prompt = prompt_tokens(0, 30)
    with serve(tmp_path) as client:
        fresh = memory(client, tmp_path, prompt)
        client.completion(prompt_tokens(7, 40), n=8, slot=0, cache=False)
        assert same(memory(client, tmp_path, prompt, cache=False), fresh)
        # one other token is seen: the comparison is not blind
        assert not same(memory(client, tmp_path, [*prompt[:28], prompt[28] + 1, prompt[29]], cache=False), fresh)


def test_a_prompt_in_several_batches(tmp_path):
    """The row at the end of a batch was overwritten before the next batch had used it."""
    prompt = prompt_tokens(0, 200)
    with serve(tmp_path, "-b", 256) as client:
        whole = memory(client, tmp_path, prompt)
    with serve(tmp_path, "-b", 64) as client:
        assert same(memory(client, tmp_path, prompt), whole)


@pytest.mark.parametrize("n", [1, 8])
def test_a_prompt_that_leaves_the_conversation(tmp_path, n):
    """A cell holds the token behind it: that of the last shared position was the old conversation's."""
    before, prompt = prompt_tokens(0, 60), [*prompt_tokens(0, 60)[:30], *prompt_tokens(7, 30)[1:]]
    with serve(tmp_path) as client:
        fresh = memory(client, tmp_path, prompt)
    with serve(tmp_path) as client:
        client.completion(before, n=n, slot=0)
        assert client.completion(prompt, n=1, slot=0).cached_tokens == 29
        assert same(held(client, tmp_path), fresh)


def test_a_conversation_that_goes_on(tmp_path):
    """The row behind the last token of the answer is still there: nothing is computed again for it."""
    first = prompt_tokens(0, 40)
    with serve(tmp_path) as client:
        answer = client.completion(first, n=12, slot=0)
        more = [*first, *answer.tokens[:-1], *prompt_tokens(5, 20)[1:]]
        again = client.completion(more, n=1, slot=0)
        stayed = held(client, tmp_path)
        assert again.cached_tokens == len(first) + 11
    with serve(tmp_path) as client:
        assert same(memory(client, tmp_path, more), stayed)


def test_the_prompt_cache_brings_the_row_back(tmp_path):
    first = prompt_tokens(0, 60)
    with serve(tmp_path) as client:
        more = [*first, *client.completion(first, n=16, slot=0).tokens[:-1], *prompt_tokens(5, 20)[1:]]
        stayed = memory(client, tmp_path, more)
    # the slot is taken by another conversation, once of the same length: its last row stands where the first one's does
    for salt, length in ((7, 60), (8, 40)):
        with serve(tmp_path) as client:
            client.completion(first, n=16)
            client.completion(prompt_tokens(salt, length), n=16)
            assert client.completion(more, n=1).cached_tokens > 60
            assert same(held(client, tmp_path), stayed)


def test_completions_of_one_prompt_share_its_rows(tmp_path):
    """The second slot had the row of a conversation of its own. How sure a random drafter is depends on its whole memory, and so does the length of a draft."""
    prompt = prompt_tokens(0, 50)
    with serve(tmp_path, "--spec-draft-p-min", 0.5, slots=2) as client:
        client.completion(prompt_tokens(3, 50), n=4, slot=0)
        client.completion(prompt_tokens(4, 50), n=4, slot=1)
        body = {"prompt": prompt, "n_predict": 24, "temperature": 0, "n_cmpl": 2, "return_tokens": True, "cache_prompt": False}
        answers = httpx.post(f"{client.url}/completion", json=body, timeout=60, trust_env=False).json()
    assert answers[0]["tokens"] == answers[1]["tokens"]
    drafted = [(answer["timings"].get("draft_n"), answer["timings"].get("draft_n_accepted")) for answer in answers]
    assert drafted[0] == drafted[1]
    assert 0 < drafted[0][0] < 60  # of 66


def test_limits_of_a_request(tmp_path):
    body = {"prompt": prompt_tokens(0, 30), "n_predict": 60, "temperature": 0, "return_tokens": True}
    limits = [{}, {"speculative.n_max": 1}, {"speculative.n_max": 0}, {"speculative.p_min": 0.7}, {"speculative.p_min": 1.0}]
    with serve(tmp_path) as client:
        answers = [httpx.post(f"{client.url}/completion", json=body | limit, timeout=60, trust_env=False).json() for limit in limits]
    assert len({tuple(answer["tokens"]) for answer in answers}) == 1
    usual, one, none, sure, certain = [answer["timings"].get("draft_n", 0) for answer in answers]
    assert 2 * one < usual
    assert none == 0
    assert certain < sure < usual
