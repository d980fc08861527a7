"""What pyllm-server keeps about a conversation, and whom a failure reaches."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from gguf import GGUFReader

from pyllm import models
from pyllm.server.binary import find_server
from pyllm.server.client import RefusedError, ServerClient
from pyllm.server.process import ServerProcess
from tests.conftest import prompt_tokens

if TYPE_CHECKING:
    from pathlib import Path


def start(*flags: object, **settings: Any) -> ServerProcess:
    return ServerProcess(find_server(), [str(flag) for flag in flags], **settings)


def complete(server: ServerProcess, prompt: list[int], n: int, **extra: Any) -> httpx.Response:
    """A greedy completion with fields that the client does not have."""
    body = {"prompt": prompt, "n_predict": n, "temperature": 0, "return_tokens": True, **extra}
    return httpx.post(f"{server.url}/completion", json=body, timeout=60, trust_env=False)


# ------------------------------------------------------------------ rollback


def test_ngrams_on_a_hybrid_need_no_checkpoints():
    """Without snapshots the recurrent state was copied to the host before every verification."""
    target = models.make("qwen35", family="successor", seed=3)
    sizes = ["-np", 2, "-c", 1024, "-b", 256, "-ub", 64]
    drafting = ["--spec-type", "ngram-map-k", "--spec-ngram-map-k-size-n", 2, "--spec-ngram-map-k-size-m", 48]
    prompt = prompt_tokens(0, 24)
    log: list[str] = []
    with start("-m", target, *sizes) as plain, ServerClient(plain.url) as client:
        expected = client.completion(prompt, n=300).tokens
    with start("-m", target, *sizes, *drafting, "-lv", 5, echo=log.append) as server, ServerClient(server.url) as client:
        answer = client.completion(prompt, n=300)
    assert answer.tokens == expected
    assert answer.accepted > 100
    assert not [line for line in log if "created speculative checkpoint" in line]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_target_without_snapshots_replays_to_the_same_text(seed):
    """Drafts that are accepted in part go back to a checkpoint and are verified again, with two slots at once."""
    target = models.make("falcon-h1", seed=seed)
    prompts = [prompt_tokens(salt, 24) * 2 for salt in (0, 1)]
    log: list[str] = []
    with start("-m", target, "-np", 1, "-c", 512, "-b", 128) as plain, ServerClient(plain.url) as client:
        expected = [client.completion(prompt, n=60).tokens for prompt in prompts]
    drafting = ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", 1, "--spec-ngram-simple-size-m", 6]
    with start("-m", target, "-np", 2, "-c", 1024, "-b", 128, *drafting, "-lv", 5, echo=log.append) as server, ServerClient(server.url) as client:
        got: dict[int, tuple[int, ...]] = {}
        threads = [threading.Thread(target=lambda slot=slot: got.update({slot: client.completion(prompts[slot], n=60, slot=slot).tokens})) for slot in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [got[0], got[1]] == expected
    assert [line for line in log if "restoring speculative checkpoint" in line]


# ------------------------------------------------------------------ drafts of a request


@pytest.fixture(scope="module")
def drafting_server():
    target, draft = models.make("llama", family="successor"), models.make("llama-dflash", family="successor")
    with start(
        "-m", target, "-md", draft, "--spec-type", "draft-dflash", "--spec-draft-n-max", 4, "-np", 2, "-c", 1024, "-b", 256, "-t", 1, "-tb", 1
    ) as server:
        yield server


def steps(answer: dict[str, Any]) -> int:
    """Verifications of an answer: its tokens after the first are the accepted ones and one of each verification or plain step."""
    return len(answer["tokens"]) - answer["timings"].get("draft_n_accepted", 0)


def test_depth_of_a_request(drafting_server):
    answers = [complete(drafting_server, prompt_tokens(0, 24), 41, **{"speculative.n_max": depth}).json() for depth in range(5)]
    assert len({tuple(answer["tokens"]) for answer in answers}) == 1
    assert "draft_n" not in answers[0]["timings"]
    # the prompt gives one token, this drafter is always right: n + 1 tokens per step, and a plain step for a lone last one
    assert [steps(answer) for answer in answers] == [41, 21, 15, 11, 9]
    assert [answer["generation_settings"]["speculative.n_max"] for answer in answers] == [0, 1, 2, 3, 4]


def test_a_request_without_a_depth_drafts_as_the_server(drafting_server):
    answer = complete(drafting_server, prompt_tokens(1, 24), 41).json()
    assert steps(answer) == 9


def test_one_request_drafts_and_its_neighbour_does_not(drafting_server):
    answers: dict[int, dict[str, Any]] = {}

    def ask(depth: int) -> None:
        answers[depth] = complete(drafting_server, prompt_tokens(depth, 24), 61, **{"speculative.n_max": depth}).json()

    threads = [threading.Thread(target=ask, args=(depth,)) for depth in (0, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "draft_n" not in answers[0]["timings"]
    assert answers[4]["timings"]["draft_n_accepted"] > 40


def test_short_drafts_are_not_used(drafting_server):
    answer = complete(drafting_server, prompt_tokens(2, 24), 41, **{"speculative.n_min": 4}).json()
    # the last drafts are bounded by what is still to be generated, and then too short
    assert answer["timings"]["draft_n"] % 4 == 0


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"speculative.n_max": 5}, "5 is not a whole number of tokens in [0, 4]"),
        ({"speculative.n_max": -1}, "-1 is not a whole number"),
        ({"speculative.n_max": 1.5}, "1.5 is not a whole number"),
        ({"speculative.n_max": 2**32}, "4294967296 is not a whole number"),
        ({"speculative.n_max": "2"}, '"2" is not a whole number'),
        ({"speculative.n_min": 3, "speculative.n_max": 2}, "3 is not a whole number of tokens in [0, 2]"),
        ({"speculative.p_min": 1.5}, "1.5 is not a probability in [0, 1]"),
        ({"speculative.p_min": -0.1}, "-0.1 is not a probability"),
        ({"speculative.p_min": "0.5"}, "is not a probability"),
        ({"speculative.types": "draft-mtp"}, "--spec-type"),
    ],
)
def test_drafts_that_cannot_be(drafting_server, fields, says):
    answer = complete(drafting_server, prompt_tokens(0, 24), 4, **fields)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "value", "way_out"),
    [
        (
            {"speculative.types": "draft-mtp"},
            '"draft-mtp" is not what drafts here',
            "it has `draft-dflash`; leave it out, or start the server with another --spec-type",
        ),
        ({"speculative.types": "no-such"}, '"no-such" is not what drafts here', "it has `draft-dflash`"),
        ({"speculative.types": ["draft-dflash"]}, '["draft-dflash"] is not what drafts here', "it has `draft-dflash`"),
        ({"speculative.n_max": 99}, "99 is not a whole number of tokens in [0, 4]", "started to draft 4 at once"),
        ({"json_schema": {"enum": []}}, "enum", ""),
    ],
)
def test_a_refusal_leaves_its_neighbour_alone(drafting_server, fields, value, way_out):
    """A drafter that the server does not have, among others."""
    prompt = prompt_tokens(4, 24)
    expected = complete(drafting_server, prompt, 400).json()["tokens"]
    beside: list[list[int]] = []
    neighbour = threading.Thread(target=lambda: beside.append(complete(drafting_server, prompt, 400).json()["tokens"]))
    neighbour.start()
    for _ in range(3):
        answer = complete(drafting_server, prompt_tokens(5, 24), 4, **fields)
        assert answer.status_code == 400
        message = answer.json()["error"]["message"]
        assert value in message
        assert way_out in message
    neighbour.join()
    assert beside == [expected]
    # the one that there is may be named
    assert complete(drafting_server, prompt_tokens(0, 24), 4, **{"speculative.types": "draft-dflash"}).status_code == 200


def test_a_server_without_a_drafter_says_so():
    with start("-m", models.make("llama"), "-np", 1, "-c", 256) as server:
        answer = complete(server, prompt_tokens(0, 24), 4, **{"speculative.types": "draft-mtp"})
        assert answer.status_code == 400
        assert '"draft-mtp" is not what drafts here' in answer.json()["error"]["message"]
        assert "it has none" in answer.json()["error"]["message"]
        assert complete(server, prompt_tokens(0, 24), 4).status_code == 200


def test_p_min_of_a_request():
    """How sure a random drafter is differs from token to token: with a limit it drafts less."""
    flags = ["-md", models.make("llama-dflash"), "--spec-type", "draft-dflash", "--spec-draft-n-max", 4, "-np", 1, "-c", 512, "-t", 1, "-tb", 1]
    with start("-m", models.make("llama"), *flags) as server:
        answers = [complete(server, prompt_tokens(3, 24), 60, **{"speculative.p_min": limit}).json() for limit in (0.0, 0.5, 1.0)]
        usual = complete(server, prompt_tokens(3, 24), 60).json()
    assert {tuple(answer["tokens"]) for answer in answers} == {tuple(usual["tokens"])}
    drafted = [answer["timings"].get("draft_n", 0) for answer in answers]
    assert drafted[0] == usual["timings"]["draft_n"]
    assert drafted[0] > drafted[1] >= drafted[2]
    assert [answer["generation_settings"]["speculative.p_min"] for answer in answers] == [0.0, 0.5, 1.0]


def test_settings_of_an_answer_can_be_sent_back(drafting_server):
    settings = complete(drafting_server, prompt_tokens(0, 24), 4, **{"speculative.n_max": 3}).json()["generation_settings"]
    again = complete(drafting_server, prompt_tokens(0, 24), 4, **{name: value for name, value in settings.items() if name.startswith("speculative.")})
    assert again.status_code == 200


# ------------------------------------------------------------------ not a number


def with_nan(source: Path, out: Path, token: int) -> Path:
    """The file with NaN in the embedding of ``token``: whatever has it in its context has no logits."""
    out.write_bytes(source.read_bytes())
    reader = GGUFReader(out, "r+")
    embedding = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    assert embedding.data.dtype in {np.dtype(np.float32), np.dtype(np.float16)}
    embedding.data[token] = np.nan
    reader.data.flush()
    return out


@pytest.mark.parametrize("spec", [[], ["--spec-type", "ngram-map-k", "--spec-ngram-map-k-size-n", 2, "--spec-ngram-map-k-size-m", 4]])
def test_a_target_that_computes_nan(tmp_path, spec):
    """It used to be answered 200 with the last token of the vocabulary."""
    target = with_nan(models.make("llama", family="successor"), tmp_path / "nan.gguf", 500)
    sound = prompt_tokens(0, 24)
    with start("-m", target, "-np", 2, "-c", 512, "-b", 64, *spec) as server, ServerClient(server.url) as client:
        expected = client.completion(sound, n=60, slot=0).tokens
        beside: list[tuple[int, ...]] = []
        neighbour = threading.Thread(target=lambda: beside.append(client.completion(sound, n=60, slot=1).tokens))
        neighbour.start()
        with pytest.raises(RefusedError) as caught:
            client.completion([*sound, 500, 301], n=60, slot=0)
        neighbour.join()
        assert caught.value.status == 500
        assert "is NaN" in caught.value.message
        assert beside == [expected]
        assert client.completion(sound, n=60, slot=0).tokens == expected
