"""How a file takes another one's place: all at once, or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyllm._ffi import CheckpointFile, write_checkpoint_file
from pyllm.errors import InvalidArgumentError, LimitError, NotFoundError

REWRITER = [sys.executable, str(Path(__file__).with_name("rewriter.py"))]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "slot.ckpt"


@pytest.fixture
def rewriter(path):
    path.parent.mkdir()

    def run(mode, *args, before=()):
        done = subprocess.run([*before, *REWRITER, mode, str(path), *map(str, args)], capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_over_the_limit_on_file_sizes(rewriter):
    told = rewriter("limited")
    assert told["failure"]["type"] == "LimitError"
    assert "File too large" in told["failure"]["message"]
    assert "ulimit -f" in told["failure"]["hint"]
    assert told["found"] == "A"
    assert told["left"] == []
    assert (told["then"], told["blocked"]) == ("C", False)


def test_on_a_full_disk(path, rewriter):
    mount = f'mount -t tmpfs -o size=6m tmpfs "{path.parent}" && exec "$@"'
    tried = subprocess.run(["unshare", "-m", "sh", "-c", mount, "sh", "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {tried.stderr.strip()}")
    told = rewriter("full", before=["unshare", "-m", "sh", "-c", mount, "sh"])
    assert told["failure"]["type"] == "LimitError"
    assert "No space left on device" in told["failure"]["message"]
    assert "free some space" in told["failure"]["hint"]
    assert told["found"] == "A"
    assert told["left"] == []
    assert told["then"] == "C"


def test_killed_while_it_writes(rewriter):
    told = rewriter("killed", 200)
    assert set(told["outcomes"]) == {"A", "B"}
    assert sum(told["outcomes"].values()) == 200
    assert told["cut"] >= 50  # or the test did not hit what it is about
    assert (told["most"], told["left"]) == (1, [])


def test_two_writers_and_a_reader(rewriter):
    told = rewriter("racing", 60)
    assert told["codes"] == [0, 0]
    assert set(told["outcomes"]) == {"A", "B"}
    assert told["left"] == []


def test_what_others_left_behind(tmp_path):
    path = tmp_path / "a.ckpt"
    names = {
        "dead": "a.ckpt.tmp-4194305-0123456789abcdef",
        "reused": f"a.ckpt.tmp-{os.getpid()}-0123456789abcdef",
        "alive": "a.ckpt.tmp-4194305-fedcba9876543210",
        "of another": "b.ckpt.tmp-4194305-0123456789abcdef",
        "not ours": "a.ckpt.tmp-notes",
        "nearly ours": "a.ckpt.tmp-12-0123456789abcdeg",
    }
    for name in names.values():
        (tmp_path / name).write_bytes(b"")
    with (tmp_path / names["alive"]).open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        write_checkpoint_file(path, {}, {})
    left = {entry.name for entry in tmp_path.iterdir()}
    assert left == {path.name, names["alive"], names["of another"], names["not ours"], names["nearly ours"]}


def test_a_link_stays_one(tmp_path):
    real = tmp_path / "elsewhere" / "real.ckpt"
    real.parent.mkdir()
    write_checkpoint_file(real, {"which": "old"}, {})
    (tmp_path / "link").symlink_to(real)
    write_checkpoint_file(tmp_path / "link", {"which": "new"}, {})
    assert (tmp_path / "link").is_symlink()
    with CheckpointFile(real) as file:
        assert file.facts == {"which": "new"}
    assert [entry.name for entry in real.parent.iterdir()] == ["real.ckpt"]


def test_who_may_read_it_stays(tmp_path):
    path = tmp_path / "a.ckpt"
    write_checkpoint_file(path, {}, {})
    path.chmod(0o640)
    write_checkpoint_file(path, {"a": "b"}, {})
    assert path.stat().st_mode & 0o777 == 0o640


def test_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_checkpoint_file("a.ckpt", {"a": "b"}, {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ckpt"]


def test_what_is_no_place_for_a_file(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "folder", tmp_path / "pipe", "/dev/null"):
        with pytest.raises(InvalidArgumentError, match="no regular file"):
            write_checkpoint_file(path, {}, {})
    for path in (tmp_path / "none" / "a", tmp_path / "pipe" / "a"):
        with pytest.raises(NotFoundError, match="cannot be written") as failure:
            write_checkpoint_file(path, {}, {})
        assert "folder that exists" in failure.value.hint
    with pytest.raises(InvalidArgumentError, match="empty"):
        write_checkpoint_file("", {}, {})
    with pytest.raises(LimitError, match="File name too long"):
        write_checkpoint_file(tmp_path / ("x" * 250), {}, {})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "pipe"]


def test_a_folder_that_may_not_be_written(tmp_path):
    path = tmp_path / "a.ckpt"
    write_checkpoint_file(path, {"which": "old"}, {})
    tmp_path.chmod(0o555)
    mine = os.geteuid()
    with contextlib.ExitStack() as stack:
        stack.callback(tmp_path.chmod, 0o755)
        if mine == 0:
            os.seteuid(65534)
            stack.callback(os.seteuid, mine)
        with pytest.raises(LimitError, match="Permission denied") as failure:
            write_checkpoint_file(path, {"which": "new"}, {})
    assert "may be written to" in failure.value.hint
    with CheckpointFile(path) as file:
        assert file.facts == {"which": "old"}
