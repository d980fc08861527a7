"""``pyllm slots``: what it prints of whole, damaged and foreign files."""

from __future__ import annotations

import json
import os

import pytest

from pyllm import models
from pyllm._ffi import Model, model_fingerprint, write_checkpoint_file

SECTIONS = {"tokens": bytes(range(12)), "target": bytes(100000), "driver": b""}


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "whole.ckpt"
    write_checkpoint_file(path, {"writer": "a test", "model": "0123456789abcdef", "note": "two\nlines \x1b[31m"}, SECTIONS)
    return path


@pytest.fixture
def damaged(tmp_path, whole):
    path = tmp_path / "damaged.ckpt"
    data = bytearray(whole.read_bytes())
    data[50000] ^= 1
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("command", ["slots", "slots inspect", "slots verify"], ids=lambda command: command.replace(" ", "-"))
def test_help(pyllm, snapshot, command):
    outcome = pyllm(*command.split(), "--help")
    assert (outcome.code, outcome.err) == (0, "")
    snapshot(f"help-{command.replace(' ', '-')}", outcome)


def test_inspect(pyllm, snapshot, whole, damaged):
    good = pyllm("slots", "inspect", whole.name)
    assert (good.code, good.err) == (0, "")
    assert "\x1b" not in good.out
    snapshot("slots-inspect", good)
    bad = pyllm("slots", "inspect", damaged.name)
    assert bad.code == 1
    assert [line.split()[-1] for line in bad.out.splitlines() if line.startswith("section")] == ["whole", "DAMAGED", "whole"]


def test_inspect_as_json(pyllm, whole, damaged):
    data = json.loads(pyllm("slots", "inspect", whole.name, "--json").out)
    assert data["facts"]["note"] == "two\nlines \x1b[31m"
    assert (data["bytes"], data["format"], data["whole"]) == (whole.stat().st_size, 1, True)
    assert {section["name"]: section["bytes"] for section in data["sections"]} == {name: len(value) for name, value in SECTIONS.items()}
    outcome = pyllm("slots", "inspect", damaged.name, "--json")
    assert outcome.code == 1
    assert [section["whole"] for section in json.loads(outcome.out)["sections"]] == [True, False, True]


def test_what_cannot_be_inspected(pyllm, snapshot, whole):
    snapshot("error-slots-missing", pyllm("slots", "inspect", "none.ckpt"))
    os.truncate(whole, 99)
    snapshot("error-slots-cut", pyllm("slots", "inspect", whole.name))


def test_verify(pyllm, snapshot, whole, damaged):
    good = pyllm("slots", "verify", whole.name)
    assert (good.code, good.out, good.err) == (0, "whole.ckpt\twhole\n", "")
    mixed = pyllm("slots", "verify", damaged.name, whole.name, "none.ckpt")
    assert mixed.code == 1
    snapshot("slots-verify", mixed)
    told = json.loads(pyllm("slots", "verify", damaged.name, whole.name, "none.ckpt", "--json").out)
    assert [one["ok"] for one in told] == [False, True, False]


def test_verify_with_a_model(pyllm, tmp_path, whole):
    model = models.make("llama")
    with Model(model, vocab_only=True) as loaded:
        fingerprint = model_fingerprint(loaded)
    write_checkpoint_file(tmp_path / "mine.ckpt", {"model": fingerprint}, SECTIONS)
    assert pyllm("slots", "verify", "mine.ckpt", "-m", model).code == 0
    other = pyllm("slots", "verify", "mine.ckpt", whole.name, "-m", model)
    assert other.code == 1
    assert other.out.splitlines()[0] == "mine.ckpt\twhole"
    assert f"it was saved with model 0123456789abcdef, this one is {fingerprint}" in other.out
    assert "error: model file `none.gguf`" in pyllm("slots", "verify", "mine.ckpt", "-m", "none.gguf").err
