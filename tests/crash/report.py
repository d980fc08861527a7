"""Children that die on purpose, and the reports that they leave."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import signal
    from pathlib import Path

#: Decodes two sequences of the tiny model and says on stdout which nodes it issued; then `die` runs.
PROGRAM = """
import ctypes, faulthandler, json, os, signal, sys, threading
from pyllm._ffi import Batch, Context, Model, crash

def decode(context):
    with Batch(context) as batch:
        batch.add(0, 0, [1, 300, 301, 302, 303], "last")
        batch.add(1, 0, [1, 310, 311], "all")
        context.decode(batch)

model, folder = Model(sys.argv[1]), sys.argv[2]
context = Context(model, n_ctx=512, n_batch=64, n_ubatch=64, n_seq_max=2, trace=True)
BEFORE
decode(context)
print(json.dumps([[node.name, node.q, node.k, node.v] for node in context.trace()]), flush=True)
DIE
"""
ENABLE = 'crash.enable_crash_report(folder, "slots: 2\\nmodel: llama")'


@dataclass(frozen=True)
class Death:
    """``returncode`` is minus the signal's number; ``report`` is None where there is none."""

    returncode: int
    stdout: str
    stderr: str
    files: tuple[Path, ...]

    @property
    def signal(self) -> int:
        return -self.returncode

    @property
    def report(self) -> Report:
        (file,) = self.files
        return Report.read(file)


@dataclass(frozen=True)
class Report:
    """The parts of a report: the lines of its head by name, and the lines of each section under its heading."""

    head: dict[str, str]
    sections: dict[str, list[str]]

    @classmethod
    def read(cls, file: Path) -> Report:
        """Raises where a part is missing or the file was not ended."""
        text = file.read_text(encoding="utf-8")
        head, *sections, end = text.rstrip("\n").split("\n\n")
        assert end == "end of report"
        assert head.startswith("pyllm crash report 1\n")
        lines = re.sub(r"\n  ", r"\\n", head).splitlines()[1:]
        named = {heading.split(":")[0]: body for heading, *body in (section.splitlines() for section in sections)}
        assert list(named) == ["batches", "attention", "log", "backtrace"]
        return cls(dict(line.split(": ", 1) for line in lines), named)


def die(model: Path, folder: Path, how: str, *, before: str = ENABLE, flags: tuple[str, ...] = ()) -> Death:
    """Run a child that ends by ``how``, a few lines of Python, after a decode."""
    program = PROGRAM.replace("BEFORE", before).replace("DIE", how)
    child = subprocess.run([sys.executable, *flags, "-c", program, str(model), str(folder)], capture_output=True, text=True, timeout=120, check=False)
    files = tuple(sorted(folder.glob("pyllm-crash-*"))) if folder.is_dir() else ()
    return Death(child.returncode, child.stdout, child.stderr, files)


def send(number: signal.Signals) -> str:
    """The child sends itself a signal."""
    return f"os.kill(os.getpid(), {int(number)})"
