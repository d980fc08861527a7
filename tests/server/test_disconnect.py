"""Clients that go away, and requests that cannot be, beside a client that wants its answer."""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
import time
from pathlib import Path

import httpx
import pytest

from pyllm import models
from pyllm.server.binary import find_server
from pyllm.server.client import ServerClient
from pyllm.server.process import ServerProcess
from tests.conftest import prompt_tokens

SLOTS = 3
#: The other client's: long enough to be in the middle of every disconnect.
OTHER = {"prompt": prompt_tokens(9, 40), "n_predict": 120, "temperature": 0, "return_tokens": True, "id_slot": SLOTS - 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Two slots for those who leave and one for the other; a drafter of its own, and no cache in memory that would grow with each request."""
    flags = ["-m", models.make("llama", family="successor"), "-md", models.make("llama-dflash", family="successor"), "--spec-type", "draft-dflash"]
    flags += ["-np", SLOTS, "-c", 512 * SLOTS, "-b", 256, "-ub", 64, "--cache-ram", 0, "--slots", "-t", 1, "-tb", 1]
    reports = tmp_path_factory.mktemp("reports")
    with ServerProcess(find_server(), [str(flag) for flag in flags], env={"PYLLM_CRASH_DIR": str(reports)}) as process:
        yield process
        assert process.alive
    assert not list(reports.iterdir())


def post(server, body: object) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{server.url}/completion", content=content, headers={"Content-Type": "application/json"}, timeout=60, trust_env=False)


def slots(server) -> list[dict]:
    return httpx.get(f"{server.url}/slots", timeout=10, trust_env=False).json()


def all_idle(server) -> bool:
    limit = time.monotonic() + 20
    while any(slot["is_processing"] for slot in slots(server)):
        if time.monotonic() > limit:
            return False
        time.sleep(0.05)
    return True


def resident_kib(server) -> int:
    status = Path(f"/proc/{server._process.pid}/status")
    if not status.exists():
        pytest.skip("this system does not say how much memory a process holds")
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS"))


def leave(server, chance: random.Random) -> None:
    """Ask for a long answer and go at some moment: before it is read, in its prompt, or in the middle of it; sometimes by a reset."""
    body = {"prompt": prompt_tokens(chance.randrange(100), chance.randrange(2, 400)), "n_predict": 100, "stream": chance.random() < 0.7}
    content = json.dumps(body | {"temperature": chance.choice([0, 1]), "id_slot": chance.randrange(SLOTS - 1)}).encode()
    head = f"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall((head + content)[: None if chance.random() < 0.9 else len(head) + len(content) // 2])
        connection.settimeout(chance.uniform(0.001, 0.15))
        try:
            for _ in range(chance.randrange(6)):
                connection.recv(256)
        except TimeoutError:
            pass
        if chance.random() < 0.5:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_clients_that_leave(server):
    chance = random.Random(4)
    lone = post(server, OTHER).json()["tokens"]
    assert len(lone) == OTHER["n_predict"]
    answers, done = [], threading.Event()

    def other() -> None:
        while not done.is_set():
            answers.append(post(server, OTHER | {"cache_prompt": len(answers) % 2 == 0}).json()["tokens"])

    thread = threading.Thread(target=other)
    thread.start()
    try:
        for _ in range(15):
            leave(server, chance)
        before = resident_kib(server)
        limit, left = time.monotonic() + 60, 0
        while left < 30 or (len(answers) < 2 and time.monotonic() < limit):
            leave(server, chance)
            left += 1
    finally:
        done.set()
        thread.join()
    assert len(answers) >= 2
    assert all(answer == lone for answer in answers)
    assert all_idle(server)
    assert resident_kib(server) - before < 16 << 10
    assert post(server, OTHER).json()["tokens"] == lone


def test_a_stream_that_is_left(server):
    with ServerClient(server.url) as client:
        stream = client.stream(prompt_tokens(1, 24), n=400, slot=0)
        for _, chunk in zip(range(5), stream, strict=False):
            assert chunk.completion is None
        stream.close()
    assert all_idle(server)
    assert slots(server)[0]["id_task"] >= 0


def schema(**words: object) -> dict[str, object]:
    return {"json_schema": words}


#: Refused with 400 and a word that says why.
IMPOSSIBLE = {
    "200000 parentheses": ({"grammar": "root ::= " + "(" * 200000 + '"a"' + ")" * 200000}, "grammar"),
    "a chain of rules": ({"grammar": "root ::= a0\n" + "".join(f"a{i} ::= a{i + 1}\n" for i in range(100000)) + 'a100000 ::= "x"'}, "begin with each other"),
    "maximum below minimum": ({"grammar": 'root ::= "a"{5,2}'}, "grammar"),
    "lengths the wrong way round": (schema(type="string", minLength=5, maxLength=1), "grammar"),
    "a deep schema": (b'{"prompt": "a", "json_schema": ' + b'{"type":"array","items":' * 100000 + b"{}" + b"}" * 100000 + b"}", "brackets"),
    "a trigger of no type": ({"grammar": 'root ::= "a"', "grammar_lazy": True, "grammar_triggers": [{"type": 99, "value": "("}]}, "trigger type 99"),
    "penalties over 2^31 tokens": ({"repeat_last_n": 2**31 - 1, "repeat_penalty": 1.1}, "repeat_last_n"),
    "dry over 2^31 tokens": ({"dry_multiplier": 1, "dry_penalty_last_n": 2**31 - 1}, "dry_penalty_last_n"),
    "n_predict below -1": ({"n_predict": -2}, "n_predict"),
    "n_predict is text": ({"n_predict": "x"}, "n_predict"),
    "n_keep": ({"n_keep": -5}, "n_keep"),
    "n_discard": ({"n_discard": -5}, "n_discard"),
    "no completions": ({"n_cmpl": 0}, "n_cmpl"),
    "more completions than slots": ({"n_cmpl": 100}, "n_cmpl"),
    "unknown drafter": ({"speculative.types": "nonsense"}, "speculative.types"),
    "negative depth": ({"speculative.n_max": -1}, "speculative.n_max"),
    "deep draft": ({"speculative.n_max": 10**6}, "speculative.n_max"),
    "depth is text": ({"speculative.n_max": "x"}, "speculative.n_max"),
    "drafts surer than sure": ({"speculative.p_min": 2}, "speculative.p_min"),
    "grammar without end": ({"grammar": "root ::= ("}, "grammar"),
    "grammar without root": ({"grammar": 'a ::= "b"'}, "grammar"),
    "left recursion": ({"grammar": 'root ::= root "a" | "b"'}, "grammar"),
    "undefined rule": ({"grammar": "root ::= foo"}, "grammar"),
    "rules in a circle": ({"grammar": "root ::= a\na ::= b\nb ::= a"}, "grammar"),
    "too many repetitions": ({"grammar": 'root ::= (((("a"{0,2000}){0,2000}){0,2000}){0,2000})'}, "grammar"),
    "schema is a number": ({"json_schema": 5}, "schema"),
    "schema that nothing meets": (schema(type="object", required=["a"], properties={"a": False}), "schema"),
    "unknown type": (schema(type="nonsense"), "schema"),
    "dangling reference": (schema(**{"$ref": "#/a/b"}), "schema"),
    "reference to a network": (schema(**{"$ref": "http://127.0.0.1:1/x"}), "schema"),
    "open character class": (schema(type="string", pattern="^[a$"), "schema"),
    "no choices": (schema(enum=[]), "schema"),
    "negative items": (schema(type="array", items={}, minItems=-5), "schema"),
    "temperature is text": ({"temperature": "hot"}, "temperature"),
    "repeat_penalty 0": ({"repeat_penalty": 0}, "penalty_repeat"),
    "repeat_last_n": ({"repeat_last_n": -5}, "repeat_last_n"),
    "dry_allowed_length": ({"dry_multiplier": 1, "dry_allowed_length": -7}, "dry_allowed_length"),
    "no dry breakers": ({"dry_multiplier": 1, "dry_sequence_breakers": []}, "dry_sequence_breakers"),
    "min_keep": ({"min_keep": -5}, "min_keep"),
    "seed is text": ({"seed": "x"}, "seed"),
    "no prompt": ({"prompt": []}, "prompt"),
    "prompt is a number": ({"prompt": 5}, "prompt"),
    "token outside the vocabulary": ({"prompt": [1, 999999]}, "token"),
    "negative token": ({"prompt": [1, -7]}, "token"),
    "a million tokens": ({"prompt": [300] * 10**6}, "1000000 tokens"),
    "stop is a number": ({"stop": [5]}, "stop"),
    "adaptive_decay": ({"adaptive_decay": 9}, "adaptive_decay"),
    "an image without a projector": ({"prompt": {"prompt_string": "a", "multimodal_data": ["AAAA"]}}, "multimodal"),
    "body is a list": (b"[1]", "array"),
    "body is null": (b"null", "null"),
    "deep body": (b"[" * 50000 + b"]" * 50000, "brackets"),
}

#: Upstream calls these its own failure (500), or changes the value to what it can do (200).
ODD = {
    "no JSON": b'{"prompt":',
    "nothing": b"",
    "bad UTF-8": b'{"prompt": "\xff\xfe"}',
    "temperature NaN": b'{"prompt": [1, 300], "n_predict": 4, "temperature": NaN}',
    "temperature beyond all numbers": b'{"prompt": [1, 300], "n_predict": 4, "temperature": 1e400}',
    "temperature 1e38": {"temperature": 1e38},
    "logit bias NaN": b'{"prompt": [1, 300], "n_predict": 4, "logit_bias": [[300, NaN]]}',
    "bias of no token": {"logit_bias": [[999999, 1.0], [-5, 1.0], [2**40, 1.0]]},
    "bias without a value": {"logit_bias": [[1]]},
    "every token forbidden": {"logit_bias": [[token, False] for token in range(1024)]},
    "a million probabilities": {"n_probs": 10**6},
    "probabilities below 0": {"n_probs": -1},
    "probabilities after sampling": {"n_probs": 10**6, "post_sampling_probs": True, "temperature": 1},
    "seed of 70 bits": {"seed": 2**70},
    "negative seed": {"seed": -2},
    "n_predict of 40 bits": {"n_predict": 2**40, "t_max_predict_ms": 100},
    "no tokens wanted": {"n_predict": 0},
    "empty prompt": {"prompt": ""},
    "a prompt without tokens": {"prompt": [[]]},
    "mirostat": {"mirostat": 1, "mirostat_tau": 0, "mirostat_eta": 1e30, "temperature": 1},
    "unknown sampler": {"samplers": ["nonsense"]},
    "slot that is not": {"id_slot": 99},
    "minimum above maximum": schema(type="integer", minimum=5, maximum=1),
    "a format of chats that is not": {"chat_format": 999},
    "grammar that fits nothing": {"grammar": "root ::= [^\\x00-\\U0010ffff]"},
}
BASE = {"prompt": prompt_tokens(2, 12), "n_predict": 6, "temperature": 0, "return_tokens": True}


def body_of(change: object) -> object:
    return change if isinstance(change, bytes) else BASE | dict(change)


@pytest.fixture(scope="module")
def usual(server) -> list[int]:
    tokens = post(server, BASE).json()["tokens"]
    assert len(tokens) == BASE["n_predict"]
    return tokens


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_cannot_be_is_refused(server, usual, name):
    change, word = IMPOSSIBLE[name]
    answer = post(server, body_of(change))
    assert answer.status_code == 400
    fault = answer.json()["error"]
    assert word in fault["message"]
    assert fault["type"] in {"invalid_request_error", "exceed_context_size_error"}
    assert post(server, BASE).json()["tokens"] == usual


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_ends_nothing(server, usual, name):
    answer = post(server, body_of(ODD[name]))
    if answer.is_error:
        assert answer.json()["error"]["message"]
    else:
        assert "tokens_predicted" in answer.json() or answer.json() == []
    assert server.alive
    assert post(server, BASE).json()["tokens"] == usual
