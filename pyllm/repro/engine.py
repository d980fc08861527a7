"""The engine as a subject: a child process, so that a crash is a finding and not the end of the run."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
import threading
from queue import Empty, SimpleQueue
from typing import IO, TYPE_CHECKING, Any

from pyllm import errors
from pyllm.repro.subject import Answer, Sent
from pyllm.server.log import exit_reason

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pyllm.config import EngineConfig


class EngineSubject:
    """An engine with ``config`` in a child.

    ``limit`` is the seconds that each call may take; what the child says goes to ``log_file``.
    """

    def __init__(self, config: EngineConfig, *, limit: float, log_file: Path) -> None:
        self.config = config
        self.limit = limit
        self.log_file = log_file
        self.target = "engine"
        self._child: subprocess.Popen[str] | None = None
        self._replies: SimpleQueue[str | None] = SimpleQueue()
        self._reader: threading.Thread | None = None

    @property
    def command(self) -> str:
        """The same engine, as Python."""
        text = ", ".join(f"{name}={value!r}" for name, value in self._settings().items())
        return shlex.join(["python", "-c", f"import pyllm; llm = pyllm.LLM({text})"])

    def _settings(self) -> dict[str, Any]:
        return self.config.model_dump(mode="json", exclude_unset=True, exclude_none=True)

    def start(self) -> None:
        """Start the child and load the engine in it."""
        with self.log_file.open("ab") as talk:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "pyllm.repro.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=talk,
                text=True,
                start_new_session=True,
            )
        self._replies = SimpleQueue()
        self._reader = threading.Thread(target=self._read, args=(self._child.stdout, self._replies), name="pyllm-engine-replies", daemon=True)
        self._reader.start()
        self.target = str(self._ask("open", settings=self._settings()))

    @staticmethod
    def _read(stream: IO[str], replies: SimpleQueue[str | None]) -> None:
        for line in stream:
            replies.put(line)
        replies.put(None)

    def _ask(self, what: str, **values: Any) -> Any:
        child = self._child
        if child is None or child.stdin is None:
            raise errors.ClosedError("the engine's process was not started", "start it first")
        try:
            child.stdin.write(json.dumps({"do": what, **values}) + "\n")
            child.stdin.flush()
            line = self._replies.get(timeout=self.limit)
        except Empty:
            raise errors.ServerError(
                f"the engine gave no answer to `{what}` within {self.limit:g} s",
                "it hangs, or the scenario's limit is too short",
            ) from None
        except BrokenPipeError:
            line = None
        if line is None:
            child.wait()
            raise errors.ServerError(f"the engine's process ended: {exit_reason(child.returncode)}", "its log says more")
        reply = json.loads(line)
        fault = reply.get("error")
        if fault is None:
            return reply["value"]
        kind = getattr(errors, fault["name"], None)
        if isinstance(kind, type) and issubclass(kind, errors.PyllmError):
            raise kind(fault["text"], fault["hint"])
        raise errors.InternalError(f"{fault['name']}: {fault['text']}", "this is a defect of pyllm")

    def run(self, requests: Sequence[Sent]) -> list[Answer]:
        """Submit all at once and wait for all."""
        return [Answer.of(values) for values in self._ask("run", requests=[sent.as_dict() for sent in requests])]

    def tokenize(self, text: str) -> list[int]:
        """Tokens of a prompt's text."""
        return [int(token) for token in self._ask("tokenize", text=text)]

    def check(self) -> None:
        """The engine's integrity check."""
        self._ask("check")

    def save(self, slot: int, name: str) -> None:
        """Write a slot's conversation to a file beside the log."""
        self._ask("save", slot=slot, path=str(self.path(name)))

    def restore(self, slot: int, name: str) -> None:
        """Read a slot's conversation from a file beside the log."""
        self._ask("restore", slot=slot, path=str(self.path(name)))

    def fork(self, slot: int, to: int) -> None:
        """Let another slot hold the same conversation."""
        self._ask("fork", slot=slot, to=to)

    def path(self, name: str) -> Path:
        """Where a saved slot's file is."""
        return self.log_file.parent / name

    def stop(self) -> str:
        """Close the engine and end the child; says how it ended when that was a crash."""
        if self._child is None or self._child.poll() is not None:
            return self.died()
        try:
            self._ask("close")
        except errors.PyllmError as failure:
            return failure.message
        finally:
            self._end(10.0)
        return self.died()

    def kill(self) -> None:
        """End the child by force."""
        self._end(0)

    def _end(self, grace: float) -> None:
        child = self._child
        if child is None:
            return
        if child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
        try:
            child.wait(grace)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if self._reader is not None:
            self._reader.join(2.0)
        if child.stdout is not None:
            child.stdout.close()

    def died(self, within: float = 0.0) -> str:
        """The signal or exit code of a child that ended by itself."""
        if self._child is None:
            return ""
        try:
            code: int | None = self._child.wait(within)
        except subprocess.TimeoutExpired:
            code = None
        return "" if code in {None, 0} else f"the engine's process ended: {exit_reason(code or 0)}"

    def log(self) -> list[str]:
        """The last lines of its log file."""
        if not self.log_file.exists():
            return []
        return self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-200:]
