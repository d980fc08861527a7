"""A process that writes checkpoint files, for tests that limit, race or kill it: ``rewriter.py MODE PATH …`` prints JSON."""

from __future__ import annotations

import functools
import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

from pyllm._ffi import CheckpointFile, write_checkpoint_file
from pyllm.errors import PyllmError

MIB = 2**20


@functools.cache
def content(which: str, mib: int = 2) -> tuple[dict[str, str], dict[str, bytes]]:
    """Facts and sections that have nothing in common for two letters."""
    noise = random.Random(which)
    return {"which": which}, {"target": noise.randbytes(mib * MIB), "tokens": noise.randbytes(1000), f"only.{which}": b"1"}


def write(path: Path, which: str, mib: int = 2) -> None:
    write_checkpoint_file(path, *content(which, mib))


def found(path: Path, mib: int = 2) -> str:
    """Which content the file has; all of it is compared."""
    with CheckpointFile(path) as file:
        file.verify()
        facts, sections = content(file.facts["which"], mib)
        same = file.facts == facts and {name: file.read(name) for name in file.sections} == sections
    return facts["which"] if same else "mixed"


def beside(path: Path) -> list[str]:
    """Other files of the folder."""
    return [entry.name for entry in path.parent.iterdir() if entry != path]


def attempt(path: Path, mib: int) -> dict[str, object]:
    """Write ``mib`` over a file of 1 MiB that fits; tell what happened and what is there then."""
    write(path, "A", 1)
    try:
        write(path, "B", mib)
        failure = None
    except PyllmError as refused:
        failure = {"type": type(refused).__name__, "message": refused.message, "hint": refused.hint}
    first, left = found(path, 1), beside(path)
    write(path, "C", 1)
    blocked = signal.SIGXFSZ in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return {"failure": failure, "found": first, "left": left, "then": found(path, 1), "blocked": blocked}


def limited(path: Path) -> dict[str, object]:
    """Under a limit on the size of files, and with the signal that comes with it at its default, which ends a process."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, 2 * MIB))
    return attempt(path, 4)


def full(path: Path) -> dict[str, object]:
    """On a disk with less than 8 MiB."""
    return attempt(path, 8)


def killed(path: Path, rounds: int) -> dict[str, object]:
    """Kill a child at a random moment while it writes A and B in turn; what is there after each time."""
    contents = [content("A"), content("B")]
    begin = time.perf_counter()
    for values in contents * 2:
        write_checkpoint_file(path, *values)
    once = (time.perf_counter() - begin) / 4
    moments = random.Random(rounds)
    outcomes: dict[str, int] = {}
    n_cut, most = 0, 0
    for number in range(rounds):
        child = os.fork()
        if child == 0:
            while True:
                number += 1  # noqa: PLW2901 - the child's own
                write_checkpoint_file(path, *contents[number % 2])
        time.sleep(moments.uniform(0, 3 * once))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        left = beside(path)
        n_cut += bool(left)
        most = max(most, len(left))
        try:
            outcome = found(path)
        except PyllmError as failure:
            outcome = failure.message
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    write_checkpoint_file(path, *contents[0])
    return {"outcomes": outcomes, "cut": n_cut, "most": most, "left": beside(path)}


def racing(path: Path, rounds: int) -> dict[str, object]:
    """Two processes write A and B to one path while this one reads it."""
    write(path, "A", 1)
    children = []
    for which in "AB":
        child = os.fork()
        if child == 0:
            try:
                for _ in range(rounds):
                    write(path, which, 1)
            except PyllmError as failure:
                print(failure.message, file=sys.stderr)
                os._exit(1)
            os._exit(0)
        children.append(child)
    outcomes: dict[str, int] = {}
    codes = []
    while children:
        outcome = found(path, 1)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            children.remove(child)
            codes.append(status)
    return {"outcomes": outcomes, "codes": codes, "left": beside(path)}


if __name__ == "__main__":
    modes = {"limited": limited, "full": full, "killed": killed, "racing": racing}
    print(json.dumps(modes[sys.argv[1]](Path(sys.argv[2]), *map(int, sys.argv[3:]))))
