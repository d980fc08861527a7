"""The format: what is written comes back, and nothing else is ever accepted."""

from __future__ import annotations

import contextlib
import json
import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm._ffi import CheckpointFile, write_checkpoint_file
from pyllm.errors import ClosedError, InvalidArgumentError, NotFoundError, PyllmError, StateError

FACTS = {"writer": "a test", "model": "0123456789abcdef"}
SECTIONS = {"tokens": bytes(range(100)), "empty": b"", "checkpoint.0.draft-1_x": b"\xff" * 64, "driver": b"d"}
MAGIC = b"\x89pyllm\r\n"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "slot.ckpt"


@pytest.fixture
def whole(path):
    """The bytes of a good file, which lies at ``path``."""
    write_checkpoint_file(path, FACTS, SECTIONS)
    return path.read_bytes()


@pytest.fixture
def xxh3(tmp_path):
    def xxh3(data):
        write_checkpoint_file(tmp_path / "hashed", {}, {"x": data})
        with CheckpointFile(tmp_path / "hashed") as file:
            return file.table[0].checksum

    return xxh3


@pytest.fixture
def crafted(xxh3):
    """A file by the page of the format, with right checksums whatever it says. ``entries``: name, bytes, and what its entry says otherwise."""

    def crafted(header, entries, *, version=1, padding=b"\0", reserved=0, end=b"pyllmend", **lies):
        def aligned(data):
            return data + padding * (-len(data) % 64)

        begin = 64 + len(aligned(header)) + 64 * len(entries)
        table, body = b"", b""
        for name, data, other in entries:
            said = {"offset": begin + len(body), "size": len(data), "checksum": xxh3(data)} | other
            table += struct.pack("<32sQQQQ", name, said["offset"], said["size"], said["checksum"], said.get("reserved", 0))
            body += aligned(data)
        said = {"n": len(entries), "size": begin + len(body) + 16, "length": len(header)} | lies
        front = MAGIC + struct.pack("<IIQQQQQ", version, said["n"], said["size"], said["length"], xxh3(header), xxh3(table), reserved)
        own = struct.pack("<Q", xxh3(front))
        return front + own + aligned(header) + table + body + end + own

    return crafted


def entries_of(sections):
    return [(name.encode(), data, {}) for name, data in sections.items()]


def refused(path, data=None):
    """The reason why ``data``, or what is there, is not accepted: on opening, or when all of it is checked."""
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(StateError) as failure, CheckpointFile(path) as file:
        file.verify()
    assert failure.value.hint
    return failure.value.message


def test_what_was_written_comes_back(path, whole):
    with CheckpointFile(path) as file:
        assert (list(file.facts.items()), file.version, file.size) == (list(FACTS.items()), 1, len(whole))
        assert list(file.sections.items()) == [(name, len(data)) for name, data in SECTIONS.items()]
        assert {name: file.read(name) for name in SECTIONS} == SECTIONS
        file.verify()
        for section in file.table:
            assert section.offset % 64 == 0
            assert whole[section.offset : section.offset + section.size] == SECTIONS[section.name]


def test_the_bytes_are_those_of_the_page(whole, crafted):
    assert whole == crafted(json.dumps(FACTS, separators=(",", ":")).encode(), entries_of(SECTIONS))


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
NAME = st.from_regex(r"[A-Za-z0-9._-]{1,32}", fullmatch=True)


@settings(deadline=None)
@given(st.dictionaries(TEXT.filter(bool), TEXT, max_size=5), st.dictionaries(NAME, st.binary(max_size=300), max_size=8))
def test_anything_comes_back(tmp_path_factory, facts, sections):
    path = tmp_path_factory.getbasetemp() / "anything.ckpt"
    write_checkpoint_file(path, facts, sections)
    with CheckpointFile(path) as file:
        file.verify()
        assert (file.facts, {name: file.read(name) for name in file.sections}) == (facts, sections)


def test_cut_at_every_length(path, whole):
    reasons = set()
    for length in reversed(range(len(whole))):
        os.truncate(path, length)
        reasons.add(refused(path).split(": ", 1)[1])
    assert len(reasons) > 64  # each names the length
    assert "it is empty" in reasons


def test_longer_than_it_was(path, whole):
    assert "bytes of" in refused(path, whole + b"\0")


def test_every_flipped_bit(path, whole):
    accepted = []
    with path.open("r+b", buffering=0) as file:
        for bit in range(8 * len(whole)):
            place, value = bit // 8, whole[bit // 8]
            os.pwrite(file.fileno(), bytes([value ^ 1 << bit % 8]), place)
            try:
                with CheckpointFile(path) as opened:
                    opened.verify()
                accepted.append(bit)
            except StateError:
                pass
            os.pwrite(file.fileno(), bytes([value]), place)
    assert accepted == []
    with CheckpointFile(path) as opened:
        opened.verify()


def test_parts_of_two_files(path, whole):
    write_checkpoint_file(path, FACTS, SECTIONS | {"driver": b"e"})
    other = path.read_bytes()
    assert len(other) == len(whole)
    assert other != whole
    for cut in range(64, len(whole), 64):
        mixed = whole[:cut] + other[cut:]
        assert mixed not in {whole, other}
        refused(path, mixed)


def test_a_newer_format_is_named(path, crafted):
    data = crafted(b'{"writer":"later"}', entries_of({"a": b"1"}), version=3)
    assert "it has format 3, this build reads up to 1" in refused(path, data)
    # Of a later format not even the first bytes have to be where they are now.
    assert "it has format 3" in refused(path, data[:12] + os.urandom(200))
    assert "none that pyllm writes" in refused(path, crafted(b"{}", [], version=0))


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"GGUF" + bytes(100), "it is a GGUF file"),
        (b"qsgg" + bytes(100), "it is a state file of llama.cpp"),
        (b"hello", "does not start with"),
        (bytes(1000), "does not start with"),
        (MAGIC[:3], "cut off after 3 bytes"),
    ],
)
def test_other_files(path, data, word):
    assert word in refused(path, data)


HUGE = [2**64 - 1, 2**63, 2**63 - 1, 2**40, 2**32 - 1]


@pytest.mark.parametrize("value", HUGE)
def test_lies_about_lengths(path, crafted, value):
    entries = entries_of(SECTIONS)
    assert "bytes of" in refused(path, crafted(b"{}", entries, size=value))
    assert "no place" in refused(path, crafted(b"{}", entries, length=value))
    if value < 2**32:
        assert "no place" in refused(path, crafted(b"{}", entries, n=value))
    for which in range(len(entries)):
        for key in ("size", "offset"):
            lying = [(name, data, {key: value} if place == which else {}) for place, (name, data, _) in enumerate(entries)]
            assert f"section {which} (" in refused(path, crafted(b"{}", lying))


@pytest.mark.parametrize("step", [-64, -1, 1, 64])
def test_lies_that_are_nearly_true(path, crafted, step):
    entries = entries_of(SECTIONS)
    header = b'{"model":"x"}' + b" " * 100
    begin = 64 + 128 + 64 * len(entries)
    refused(path, crafted(header, entries, length=len(header) + step))
    assert "no place" in refused(path, crafted(header, entries, length=2**20))
    assert "no place" in refused(path, crafted(header, entries, n=65536))
    refused(path, crafted(header, entries, n=len(entries) + (1 if step > 0 else -1)))
    for which, (name, data, _) in enumerate(entries):
        for other in ({"offset": begin + step}, {"size": max(0, len(data) + step)}):
            if other not in ({"offset": begin}, {"size": len(data)}):
                refused(path, crafted(header, [*entries[:which], (name, data, other), *entries[which + 1 :]]))


@pytest.mark.parametrize(
    ("header", "entries", "word"),
    [
        (b"[]", [], "no JSON object"),
        (b"", [], "no JSON object"),
        (b"[" * 100000, [], "no JSON object"),
        (b'{"a":' * 100000, [], "no JSON object"),
        (b'{"a":1}', [], "`a` is no text"),
        (b'{"a":{"b":"c"}}', [], "`a` is no text"),
        (b'{"":"x"}', [], "without a name"),
        (b'{"a":"x\\u0000y"}', [], "zero character"),
        (b'{"a":"\xff"}', [], "no JSON object"),
        (b"{}", [(b"", b"1", {})], "has 0 characters"),
        (b"{}", [(b"a b", b"1", {})], "something else than letters"),
        (b"{}", [(b"a\0b", b"1", {})], "none of pyllm's"),
        (b"{}", [(b"a", b"1", {"reserved": 1})], "none of pyllm's"),
        (b"{}", [(b"a", b"1", {}), (b"a", b"2", {})], "two sections `a`"),
        (b"{}", [(b"a", b"1", {"checksum": 0})], "of section `a`"),
    ],
    ids=range(15),
)
def test_right_checksums_of_wrong_things(path, crafted, header, entries, word):
    assert word in refused(path, crafted(header, entries))


def test_what_a_flipped_bit_alone_does_not_show(path, crafted):
    assert "none that pyllm writes" in refused(path, crafted(b"{}", [], reserved=1))
    assert "are not zero" in refused(path, crafted(b"{}", [], padding=b"\1"))
    filled = b'{"a":"' + b"x" * 56 + b'"}'
    assert len(filled) == 64
    assert "are not zero" in refused(path, crafted(filled, [(b"a", b"1", {})], padding=b"\1"))
    assert "end mark" in refused(path, crafted(b"{}", [], end=b"pyllmEND"))
    good = crafted(b"{}", [])
    assert "first bytes differs" in refused(path, good[:56] + bytes(8) + good[64:-8] + bytes(8))


def test_what_is_no_file(tmp_path):
    with pytest.raises(NotFoundError, match="No such file"):
        CheckpointFile(tmp_path / "none")
    with pytest.raises(NotFoundError, match="Not a directory"):
        CheckpointFile("/dev/null/none")
    with pytest.raises(StateError, match="no regular file"):
        CheckpointFile(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StateError, match="no regular file"):
        CheckpointFile(tmp_path / "pipe")
    with pytest.raises(InvalidArgumentError, match="zero character"):
        CheckpointFile("a\0b")


def test_a_file_that_may_not_be_read(path, whole):
    path.chmod(0)
    mine = os.geteuid()
    with contextlib.ExitStack() as stack:
        if mine == 0:
            os.seteuid(65534)
            stack.callback(os.seteuid, mine)
        with pytest.raises(StateError, match="Permission denied") as failure:
            CheckpointFile(path)
    assert "permissions" in failure.value.hint


@pytest.mark.parametrize(
    ("facts", "sections", "word"),
    [
        ({}, {"": b""}, "has 0 characters"),
        ({}, {"x" * 33: b""}, "has 33 characters"),
        ({}, {"a/b": b""}, "something else than letters"),
        ({}, {"ä": b""}, "something else than letters"),
        ({}, {"a\0": b""}, "zero character"),
        ({"": "x"}, {}, "no name"),
        ({"a": "x\0y"}, {}, "zero character"),
        ({"a": "\udc80"}, {}, "not UTF-8"),
        ({"a": "x" * (17 << 20)}, {}, "the limit is 16777216"),
        ({}, {str(number): b"" for number in range(65537)}, "65537 sections"),
    ],
    ids=range(10),
)
def test_what_no_file_may_hold(path, whole, facts, sections, word):
    with pytest.raises(InvalidArgumentError, match=word):
        write_checkpoint_file(path, facts, sections)
    assert path.read_bytes() == whole


def test_sections_that_are_not_there(path, whole):
    with CheckpointFile(path) as file:
        with pytest.raises(StateError, match="no section `sampler`") as failure:
            file.read("sampler")
        assert "tokens, empty" in failure.value.hint
        with pytest.raises(StateError, match="no section `sampler`"):
            file.verify("sampler")


def test_each_damaged_section_is_named(path, whole):
    with CheckpointFile(path) as file:
        places = {section.name: section.offset for section in file.table}
    data = bytearray(whole)
    data[places["tokens"]] ^= 1
    data[places["driver"]] ^= 1
    path.write_bytes(data)
    with CheckpointFile(path) as file:
        assert file.facts == FACTS
        with pytest.raises(StateError, match="of section `tokens`, `driver`"):
            file.verify()
        with pytest.raises(StateError, match="section `tokens` differs"):
            file.read("tokens")
        assert file.read("checkpoint.0.draft-1_x") == SECTIONS["checkpoint.0.draft-1_x"]


def test_a_file_that_shrinks_while_it_is_open(path, whole):
    with CheckpointFile(path) as file:
        os.truncate(path, file.table[0].offset + 10)
        with pytest.raises(StateError, match="since it was opened"):
            file.read("tokens")
        with pytest.raises(StateError):
            file.verify()


def test_an_open_file_does_not_change_when_another_takes_its_place(path, whole):
    with CheckpointFile(path) as file:
        write_checkpoint_file(path, {}, {"tokens": b"new"})
        assert file.read("tokens") == SECTIONS["tokens"]
    with pytest.raises(ClosedError):
        file.read("tokens")
    with CheckpointFile(path) as file:
        assert file.read("tokens") == b"new"


@settings(deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_noise_is_refused(tmp_path_factory, data, marked):
    path = tmp_path_factory.getbasetemp() / "noise.ckpt"
    path.write_bytes(MAGIC + struct.pack("<I", 1) + data if marked else data)
    with pytest.raises(PyllmError) as failure:
        CheckpointFile(path)
    assert type(failure.value) is StateError
