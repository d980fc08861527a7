"""llama-server's HTTP API."""

from __future__ import annotations

import pytest

from pyllm.errors import ServerError
from pyllm.server import RefusedError, ServerClient, ServerProcess
from pyllm.server.client import IMAGE


@pytest.fixture
def client(fake_binary):
    with (
        ServerProcess(fake_binary, ["--spec-type", "x", "-m", "a.gguf"]) as server,
        ServerClient(server.url, timeout=5) as client,
    ):
        yield client


def test_completion(client):
    done = client.completion([5, 6], n=3, slot=2)
    assert done.tokens == (7, 8, 9)
    assert (done.finish, done.prompt_tokens, done.slot) == ("length", 2, 2)
    assert (done.drafted, done.accepted, done.cached_tokens) == (4, 3, 0)


def test_a_stream_ends_with_the_whole(client):
    chunks = list(client.stream([5], n=3))
    assert [chunk.tokens for chunk in chunks] == [(6,), (7,), (8,), ()]
    assert chunks[-1].completion is not None
    assert chunks[-1].completion.tokens == (6, 7, 8)
    assert chunks[-1].completion.text == "xxx"


def test_the_small_calls(client):
    assert client.health()
    assert client.tokenize("ab") == [97, 98]
    assert client.properties() == {"model_path": "a.gguf", "media_marker": "<media>"}
    assert client.metrics() == {"llamacpp:prompt_tokens_total": 7.0, "llamacpp:n_busy_slots_per_decode": 1.5}


def test_images_in_a_prompt(client):
    """In the place of each the server finds its own marker; its next token is one more than the last."""
    assert client.completion(f"ab{IMAGE}", n=1, images=["x" * 40]).tokens == (41,)
    assert list(client.stream(f"{IMAGE}ab", n=2, images=["x" * 40]))[-1].completion.tokens == (99, 100)


def test_a_refusal_carries_status_and_text(client):
    with pytest.raises(RefusedError, match="exceeds the available context") as caught:
        client.completion([1] * 200, n=1)
    assert (caught.value.status, caught.value.kind) == (400, "exceed_context_size_error")
    with pytest.raises(RefusedError) as caught:
        list(client.stream([1] * 200, n=1))
    assert caught.value.status == 400
    for call in (client.save_slot, client.restore_slot):
        with pytest.raises(RefusedError, match="no such slot file"):
            call(0, "x")


@pytest.mark.parametrize(
    ("status", "kind", "defect"),
    [
        (400, "exceed_context_size_error", False),
        (501, "not_supported_error", False),
        (503, "unavailable_error", False),
        (500, "server_error", True),
        (502, "", True),
    ],
)
def test_declining_is_no_defect(status, kind, defect):
    assert RefusedError(status, kind, "x").defect is defect


@pytest.mark.parametrize(
    ("answer", "says"),
    [("die", "ended the connection"), ("hang", "no answer within 0.3 s"), ("500", "internal trouble")],
)
def test_a_server_in_trouble(fake_binary, answer, says):
    flags = ["--spec-type", "x", "--answer", answer]
    with (
        ServerProcess(fake_binary, flags) as server,
        ServerClient(server.url, timeout=0.3 if answer == "hang" else 10) as client,
        pytest.raises(ServerError, match=says),
    ):
        client.completion([1], n=1)


def test_nobody_there():
    with ServerClient("http://127.0.0.1:9", timeout=1) as client:
        assert not client.health()
        with pytest.raises(ServerError, match="no server answers"):
            client.completion("x", n=1)
