"""B17: an image before the text that a drafter continues. Upstream's MTP skips an image's rows, and with one position axis failed at the gap."""

from __future__ import annotations

import base64
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from pyllm import models
from pyllm.repro.content import Image
from pyllm.server.binary import find_server
from pyllm.server.client import ServerClient
from pyllm.server.process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: One position axis and chained heads; a shared KV cache; M-RoPE; a block drafter; EAGLE-3.
KINDS = [
    ("step35", None, "draft-mtp"),
    ("gemma4", "gemma4-assistant", "draft-mtp"),
    ("qwen35", None, "draft-mtp"),
    ("llama", "llama-dflash", "draft-dflash"),
    ("llama", "llama-eagle3", "draft-eagle3"),
]


def png(seed: int) -> bytes:
    """A square image of random pixels."""
    return Image(width=40, height=40, seed=seed).png()


def ask(url: str, *parts: str | bytes, n: int = 40, **fields: Any) -> tuple[str, int, int]:
    """The greedy answer to texts and images, and how many tokens of it were drafted and accepted."""
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(part).decode()}"}}
        for part in parts
    ]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": n, "temperature": 0, **fields}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    whole = answer.json()
    return whole["choices"][0]["message"]["content"], whole["timings"].get("draft_n", 0), whole["timings"].get("draft_n_accepted", 0)


@contextmanager
def serve(folder: Path, target: Path, *flags: object) -> Iterator[str]:
    projector = models.projector(target, folder / "mmproj.gguf")
    words = ["-m", target, "--mmproj", projector, *flags, "-c", 2048, "-t", 1, "-tb", 1]
    with ServerProcess(find_server(), [str(word) for word in words]) as process:
        yield process.url
        assert process.alive


def drafting(draft: str | None, kind: str, **family: Any) -> list[object]:
    return [*(["-md", models.make(draft, **family)] if draft else []), "--spec-type", kind, "--spec-draft-n-max", 3]


@pytest.mark.parametrize(("target", "draft", "kind"), KINDS)
def test_text_behind_images(tmp_path, target, draft, kind):
    """The text depends on the image, and is the one without drafts; the slot is used again for other images and none."""
    questions: list[tuple[str | bytes, ...]] = [
        (png(0), "Hello there"),
        (png(1), "Hello there"),
        ("See: ", png(0), "Hello there"),
        ("See: ", png(0), " and ", png(1), "Hello there"),
        ("See: ", png(0), " and ", png(2), "Hello there"),
        ("Hello there",),
    ]
    with serve(tmp_path, models.make(target), "-np", 1) as url:
        expected = [ask(url, *parts)[0] for parts in questions]
    assert len(set(expected)) == len(questions)
    with serve(tmp_path, models.make(target), "-np", 1, *drafting(draft, kind)) as url:
        answers = [ask(url, *parts) for parts in questions]
    assert [text for text, _, _ in answers] == expected
    assert min(drafted for _, drafted, _ in answers) > 60


@pytest.mark.parametrize(("target", "draft", "kind"), KINDS[:-1])
def test_an_image_costs_no_drafts(tmp_path, target, draft, kind):
    """A drafter that is right without an image is right behind one, beside a neighbour that has none."""
    family: dict[str, Any] = {"family": "successor"}
    flags = ["-np", 2, "--metrics", *drafting(draft, kind, **family)]
    with serve(tmp_path, models.make(target, **family), *flags) as url, ServerClient(url) as client:
        usual = ask(url, "Hello there", id_slot=0)
        assert usual[1] == usual[2] > 25
        beside: list[tuple[str, int, int]] = []
        neighbour = threading.Thread(target=lambda: beside.append(ask(url, "Hello there", n=400, id_slot=1)))
        neighbour.start()
        assert ask(url, "See: ", png(0), "Hello there", id_slot=0) == usual
        assert ask(url, png(1), "Hello there", id_slot=0) == usual
        neighbour.join()
        assert beside[0][1] == beside[0][2] > 250
        # no decode of the drafter failed and was got over
        assert client.metrics()[f'llamacpp:drafter_failures_total{{drafter="{kind}"}}'] == 0
