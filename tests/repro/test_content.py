"""Prompts with images: what is sent, and the scenario that needs them."""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from pyllm.errors import ScenarioError
from pyllm.repro import Runner, load
from pyllm.repro.content import COLOURS, Image, Piece, joined
from pyllm.repro.play import Play
from pyllm.repro.server import ServerSubject
from pyllm.repro.verdict import CheckError
from pyllm.server.client import IMAGE

SCENARIO = Path(__file__).parents[2] / "repro" / "speculation" / "text-behind-images.yaml"
PICTURE = "{image: {width: 3, height: 2, colour: red}}"


def pixels(png: bytes) -> np.ndarray:
    """What a file shows, shape ``[height, width, 3]``; every chunk has to have its checksum."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, rest = {}, png[8:]
    while rest:
        (length,) = struct.unpack(">I", rest[:4])
        kind, data, (check,) = rest[4:8], rest[8 : 8 + length], struct.unpack(">I", rest[8 + length : 12 + length])
        assert check == zlib.crc32(kind + data)
        chunks[kind], rest = data, rest[12 + length :]
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, depth, colours = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, colours) == (8, 2)
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + 3 * width)
    assert not lines[:, 0].any()
    return lines[:, 1:].reshape(height, width, 3)


@pytest.mark.parametrize(("colour", "expected"), [*COLOURS.items(), ("#0a80ff", (10, 128, 255))])
def test_an_image_of_one_colour(colour, expected):
    shown = pixels(Image(width=5, height=3, colour=colour).png())
    assert shown.shape == (3, 5, 3)
    assert (shown == expected).all()


def test_random_images_are_their_seed():
    first, again, other = (Image(width=4, height=4, seed=seed).png() for seed in (1, 1, 2))
    assert first == again != other
    assert len(np.unique(pixels(first))) > 10


def test_texts_and_images_in_their_order():
    image = Image(width=1, height=1, colour="blue")
    text, images = joined((Piece(text="a"), Piece(image=image), Piece(text="b"), Piece(image=image)))
    assert text == f"a{IMAGE}b{IMAGE}"
    assert [base64.b64decode(each) for each in images] == [image.png()] * 2


def test_a_text_cannot_hold_what_stands_for_an_image():
    with pytest.raises(ValidationError, match="stands for an image"):
        Piece(text=f"a{IMAGE}")


def _seeing(text: str) -> str:
    return text.replace("skip:", "projector: {seed: 3}\nskip:")


def test_the_engine_takes_none(write):
    steps = f"  - prompt: {{content: [{PICTURE}], n: 1}}\n"
    assert load(write(steps, change=_seeing)).projector is not None
    with pytest.raises(ScenarioError, match="the engine takes no images"):
        load(write(steps, change=lambda text: _seeing(text).replace("skip: {engine: a fake has no engine}", "engine: {slots: 1}")))


def test_what_a_server_gets(write, fake_binary, tmp_path):
    """The marker is the server's own; a conversation with an image is not continued as tokens."""
    steps = f"""\
  - prompt: {{content: [{{text: ab}}, {PICTURE}], n: 2, slot: 0}}
  - prompt: {{content: [{{text: ab}}], n: 2, slot: 0, stream: true}}
  - prompt: {{continues: true, tokens: [7], n: 1, slot: 0}}
  - prompt: {{content: [{PICTURE}, {{text: ab}}], n: 2, slot: 0, stream: true}}
  - prompt: {{continues: true, tokens: [7], n: 1, slot: 0}}
"""
    scenario = load(write(steps, change=_seeing))
    subject = ServerSubject(fake_binary, ["-m", "x", "--spec-type", "draft-mtp"], limit=10, log_file=tmp_path / "log")
    subject.start()
    play = Play(scenario, subject, ())
    with pytest.raises(CheckError, match="cannot be put in front as tokens") as caught:
        play.run()
    subject.kill()
    assert caught.value.step == 5
    size = len(base64.b64encode(Image(width=3, height=2, colour="red").png()))
    assert [record.answer.tokens for record in play.records] == [(size + 1, size + 2), (99, 100), (8,), (99, 100)]


def test_text_behind_images(tmp_path):
    """B17, through the real server: its drafts behind images are those behind none."""
    scenario = load(SCENARIO)
    verdict = Runner(logs=tmp_path).run(scenario, "server", SCENARIO.parent)
    assert (verdict.status, verdict.failure) == ("pass", None)
    assert (verdict.requests, verdict.compared) == (5, 5)
    assert verdict.drafted == verdict.accepted > 100
    assert Runner().run(scenario, "engine", SCENARIO.parent).reason == "the engine takes no images"
