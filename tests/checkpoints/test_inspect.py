"""Which model a file belongs to, and what a report says of it."""

from __future__ import annotations

import os
import random
import shutil
import time

import pytest

from pyllm import models
from pyllm._ffi import Model, model_fingerprint, write_checkpoint_file
from pyllm.checkpoints.inspect import inspect
from pyllm.errors import NotFoundError, StateError

MIB = 2**20
SECTIONS = {"tokens": b"12345678", "target": bytes(1000)}


def fingerprint(path):
    with Model(path, vocab_only=True) as model:
        return model_fingerprint(model)


@pytest.fixture
def enlarge(llama_path, tmp_path):
    """A copy of a model with as many bytes behind it that no tensor uses."""

    def enlarge(size, name="large.gguf"):
        path = tmp_path / name
        shutil.copy(llama_path, path)
        os.truncate(path, path.stat().st_size + size)
        return path

    return enlarge


def test_models_of_one_recipe_differ_by_their_weights(llama_path, tmp_path):
    paths = [models.make("llama", tmp_path / f"{seed}.gguf", seed=seed) for seed in range(4)]
    assert len({path.stat().st_size for path in paths}) == 1
    assert len({fingerprint(path) for path in paths}) == 4
    shutil.copy(paths[1], tmp_path / "copy.gguf")
    assert fingerprint(tmp_path / "copy.gguf") == fingerprint(paths[1])


@pytest.mark.parametrize("size", [0, 1, 4096, MIB - 1, MIB + 1, 2 * MIB, 3 * MIB])
def test_every_byte_of_a_small_file_counts(llama_path, tmp_path, size):
    path, other = tmp_path / "model.gguf", tmp_path / "other"
    shutil.copy(llama_path, path)
    with Model(path, vocab_only=True) as model:
        # The fingerprint is of the bytes alone: these are easier to make than a model of any size.
        other.write_bytes(random.Random(size).randbytes(size))
        other.replace(path)
        first = model_fingerprint(model)
        with path.open("r+b", buffering=0) as file:
            for place in random.Random(1).sample(range(size), min(size, 50)):
                byte = os.pread(file.fileno(), 1, place)[0]
                os.pwrite(file.fileno(), bytes([byte ^ 1]), place)
                assert model_fingerprint(model) != first, place
                os.pwrite(file.fileno(), bytes([byte]), place)
        assert model_fingerprint(model) == first
        os.truncate(path, size + 1)
        assert model_fingerprint(model) != first


def test_what_is_sampled_of_a_large_model(enlarge):
    path = enlarge(64 * MIB)
    size = path.stat().st_size
    step = (size - 2 * MIB - 4096) / 255
    first = fingerprint(path)

    def changed_at(place):
        with path.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"\1", place)
            try:
                return fingerprint(path) != first
            finally:
                os.pwrite(file.fileno(), b"\0", place)

    for number in range(242, 50, -13):  # in what was added: it is zero
        begin = MIB + int(number * step)
        assert changed_at(begin + 1)
        assert changed_at(begin + 4094)
        assert not changed_at(begin + 4097 + 1000)  # between two samples
    assert changed_at(size - MIB)
    assert changed_at(size - 1)
    assert fingerprint(enlarge(64 * MIB + 1, "longer.gguf")) != first


def test_a_model_as_large_as_any_takes_no_time(enlarge):
    path = enlarge(60 * 2**30)  # a hole: it takes no place on the disk
    with Model(path, vocab_only=True) as model:
        begin = time.perf_counter()
        model_fingerprint(model)
        assert time.perf_counter() - begin < 1  # reading all of it would take 10 and more


def test_all_parts_of_a_split_model_count(llama_path, tmp_path):
    # The parts are not loaded: the model is open when its name gets two neighbours.
    path = tmp_path / "m-00001-of-00003.gguf"
    shutil.copy(llama_path, path)
    with Model(path, vocab_only=True) as model:
        with pytest.raises(NotFoundError, match="m-00002-of-00003"):
            model_fingerprint(model)
        (tmp_path / "m-00002-of-00003.gguf").write_bytes(b"two")
        (tmp_path / "m-00003-of-00003.gguf").write_bytes(b"three")
        first = model_fingerprint(model)
        (tmp_path / "m-00003-of-00003.gguf").write_bytes(b"threE")
        assert model_fingerprint(model) not in {first, fingerprint(llama_path)}


def test_a_model_that_was_moved(llama_path, tmp_path):
    path = tmp_path / "moved.gguf"
    shutil.copy(llama_path, path)
    with Model(path, vocab_only=True) as model:
        path.unlink()
        with pytest.raises(NotFoundError, match="No such file") as failure:
            model_fingerprint(model)
    assert failure.value.hint


def test_the_report_of_a_whole_file(tmp_path):
    path = tmp_path / "a.ckpt"
    write_checkpoint_file(path, {"model": "0011", "b": "c"}, SECTIONS)
    report = inspect(path)
    assert report.whole
    assert (report.path, report.size, report.version, report.facts) == (path, path.stat().st_size, 1, {"model": "0011", "b": "c"})
    assert [(section.name, section.size) for section in report.sections] == [("tokens", 8), ("target", 1000)]
    assert report.problems() == report.problems("0011") == []
    assert report.problems("0012") == ["it was saved with model 0011, this one is 0012"]


def test_the_report_of_a_damaged_file(tmp_path):
    path = tmp_path / "a.ckpt"
    write_checkpoint_file(path, {}, SECTIONS)
    place = inspect(path).sections[1].offset
    with path.open("r+b") as file:
        file.seek(place + 999)
        file.write(b"x")
    report = inspect(path)
    assert not report.whole
    assert report.damaged == ("target",)
    assert report.problems("0011") == ["the checksum of section `target` differs", "it was saved with model not said, this one is 0011"]
    os.truncate(path, 100)
    with pytest.raises(StateError, match="bytes of"):
        inspect(path)
