"""A process that saves conversations of an engine, for tests that limit or kill it: ``saver.py MODE PATH …`` prints JSON."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyllm
from pyllm import models
from pyllm.errors import PyllmError

if TYPE_CHECKING:
    from collections.abc import Callable

GREEDY: dict[str, Any] = {"max_tokens": 24, "temperature": 0}
#: A short and a long conversation, which share nothing but BOS.
PROMPTS = {"A": [1, *range(280, 320)], "B": [1, *range(479, 279, -1)]}


def engine() -> pyllm.LLM:
    """Without a store of evicted conversations, which would know more than a restored slot."""
    spec = {"types": "dflash", "n_max": 3, "depth_control": False}
    return pyllm.LLM(models.make("llama"), draft=models.make("llama-dflash"), spec=spec, slots=2, ctx=1024, threads=1, cache_bytes=0)


def talk(llm: pyllm.LLM, which: str) -> list[int]:
    """Begin conversation ``which`` in a slot of its own; returns all that was said."""
    return [*PROMPTS[which], *llm.generate(PROMPTS[which], slot="AB".index(which), **GREEDY).tokens]


def following(llm: pyllm.LLM, slot: int, said: list[int]) -> tuple[Any, ...]:
    """What a slot that holds ``said`` says next, how it drafts, and how much it need not compute."""
    result = llm.generate([*said, 290, 291], slot=slot, **GREEDY)
    return result.tokens, result.draft, result.usage.cached_tokens


def beside(path: Path) -> list[str]:
    """Other files of the folder."""
    return [entry.name for entry in path.parent.iterdir() if entry != path]


def beside_folder(path: Path, name: object) -> Path:
    """A file that is none of those of the folder."""
    return path.parent.with_name(f"{name}.pyllm")


def attempt(path: Path, make_tight: Callable[[int], None]) -> dict[str, object]:
    """Save B over A's file, where ``make_tight`` leaves less room than the bytes it is given; what happened, and what works then."""
    with engine() as llm:
        said = [talk(llm, which) for which in "AB"]
        llm.save(1, path)
        n_bytes = path.stat().st_size
        llm.save(0, path)
        kept = [llm.checkpoint(slot) for slot in (0, 1)]
        stayed = [following(llm, slot, said[slot]) for slot in (0, 1)]
        for slot in (0, 1):
            llm.restore(kept[slot], slot)
        whole = path.read_bytes()
        make_tight(n_bytes)
        try:
            llm.save(1, path)
            failure = None
        except PyllmError as refused:
            failure = {"type": type(refused).__name__, "message": refused.message, "hint": refused.hint}
        told: dict[str, object] = {"failure": failure, "unchanged": path.read_bytes() == whole, "left": beside(path)}
        told["goes on"] = following(llm, 1, said[1]) == stayed[1]
        llm.restore(path, 1)
        told["restored"] = following(llm, 1, said[0]) == stayed[0]
        llm.save(0, path)
        told["saves again"] = path.read_bytes() == whole
        llm.check_integrity()
    return told


def limited(path: Path) -> dict[str, object]:
    """Under a limit on the size of files, and with the signal that comes with it at its default, which ends a process."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    return attempt(path, lambda n_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes - 1, n_bytes - 1)))


def full(path: Path) -> dict[str, object]:
    """On a disk with a block less than it takes."""

    def fill(n_bytes: int) -> None:
        disk = os.statvfs(path.parent)
        n_free = -(-n_bytes // disk.f_bsize) - 1
        with (path.parent / "ballast").open("wb") as file:
            file.truncate(0)
            for _ in range(disk.f_bavail - n_free):
                file.write(bytes(disk.f_bsize))

    return attempt(path, fill)


def save_for_ever(path: Path, tell: int) -> None:
    """A and B in turn, from their own files; what one of them takes is told once both were saved."""
    with engine() as llm:
        for slot in (0, 1):
            llm.restore(beside_folder(path, "AB"[slot]), slot)
        begin = time.perf_counter()
        for slot in (0, 1):
            llm.save(slot, path)
        os.write(tell, f"{(time.perf_counter() - begin) / 2}\n".encode())
        while True:
            for slot in (0, 1):
                llm.save(slot, path)


def killed(path: Path, rounds: int) -> dict[str, object]:
    """Kill a child at a random moment while it saves; what is there after each time is kept beside the folder, by number."""
    with engine():
        pass  # what only a process's first engine pays for
    assert threading.active_count() == 1, "a child would miss the others"
    moments = random.Random(rounds)
    n_cut, most = 0, 0
    for number in range(rounds):
        hear, tell = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                save_for_ever(path, tell)
            finally:
                os._exit(1)
        os.close(tell)
        with os.fdopen(hear) as told:
            once = float(told.readline())
        time.sleep(moments.uniform(0, 4 * once))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        left = beside(path)
        n_cut += bool(left)
        most = max(most, len(left))
        shutil.copy(path, beside_folder(path, number))
    return {"cut": n_cut, "most": most}


if __name__ == "__main__":
    modes: dict[str, Callable[..., dict[str, object]]] = {"limited": limited, "full": full, "killed": killed}
    print(json.dumps(modes[sys.argv[1]](Path(sys.argv[2]), *map(int, sys.argv[3:]))))
