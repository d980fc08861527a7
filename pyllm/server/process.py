"""A server as a child process."""

from __future__ import annotations

import atexit
import contextlib
import os
import shlex
import signal
import subprocess
import threading
import time
import weakref
from collections import deque
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pyllm.errors import ServerError
from pyllm.server.client import ServerClient
from pyllm.server.log import exit_reason, telling_lines
from pyllm.server.port import check_port, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_POLL = 0.05  # seconds between two looks at a starting server

#: Ends the group when this process goes away without a word, however it ends: the pipe closes, `read` fails.
_WARDEN = 'read -r word || kill -s KILL -- "-$0"'


class ServerProcess:
    """One server child, in a process group of its own. A context manager: entering starts it, leaving ends it.

    ``args`` are the binary's flags without ``--host`` and ``--port``, which are added; ``port`` None takes a free one.
    Its output is appended to the file ``log`` and given, line by line, to ``echo``; the last lines are kept for
    :meth:`tail`. ``env`` is added to the environment.

    The child does not outlive this process, not even one that is killed.
    """

    def __init__(
        self,
        binary: str | os.PathLike[str],
        args: Sequence[str],
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        log: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        echo: Callable[[str], None] | None = None,
    ) -> None:
        self.binary = Path(binary)
        self.host = host
        if port is not None:
            check_port(host, port)
        self.port = port if port is not None else free_port(host)
        self.log = None if log is None else Path(log)
        self.command = [str(self.binary), *args, "--host", host, "--port", str(self.port)]
        self._env = dict(env or {})
        self._echo = echo
        self._lines: deque[str] = deque(maxlen=2000)
        self._process: subprocess.Popen[bytes] | None = None
        self._warden: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Root of its HTTP API, as this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"http://{host}:{self.port}"

    @property
    def command_line(self) -> str:
        """The command, ready to paste."""
        return shlex.join([*(f"{name}={value}" for name, value in self._env.items()), *self.command])

    @property
    def alive(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """Its exit code, minus the number of the signal that ended it, or None while it runs."""
        return None if self._process is None else self._process.poll()

    def start(self, *, limit: float = 120.0, progress: Callable[[float], None] | None = None) -> ServerProcess:
        """Start it and wait until its model is loaded. ``progress`` gets the seconds waited so far.

        Raises:
            ServerError: it cannot be started, ends while starting, or is not ready within ``limit`` seconds; nothing is
                left running.
        """
        if self._process is not None:
            raise ServerError(f"server `{self.binary.name}` was already started", "make a new ServerProcess")
        check_port(self.host, self.port)
        try:
            self._spawn()
            self._await_health(limit, progress)
        except BaseException:
            self.stop(grace=0)
            raise
        return self

    def _spawn(self) -> None:
        try:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=os.environ | self._env,
                start_new_session=True,
            )
        except OSError as failure:
            raise ServerError(
                f"server `{self.binary}` cannot be started: {failure.strerror}",
                "give the path of a llama-server or pyllm-server for this machine",
            ) from failure
        group = str(self._process.pid)
        self._warden = subprocess.Popen(["/bin/sh", "-c", _WARDEN, group], stdin=subprocess.PIPE, start_new_session=True)
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), name="pyllm-server-log", daemon=True)
        self._reader.start()
        _running.add(self)

    def _read(self, stream: IO[bytes]) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(stream)
            file = stack.enter_context(self.log.open("ab")) if self.log is not None else None
            for raw in stream:
                if file is not None:
                    file.write(raw)
                    file.flush()
                line = raw.decode("utf-8", "replace").rstrip("\r\n")
                self._lines.append(line)
                if self._echo is not None:
                    self._echo(line)

    def _await_health(self, limit: float, progress: Callable[[float], None] | None) -> None:
        begin = time.monotonic()
        with ServerClient(self.url) as client:
            while not client.health():
                if not self.alive:
                    raise self.death("while starting")
                waited = time.monotonic() - begin
                if waited > limit:
                    last = "\n".join(f"  {line}" for line in self.tail(4))
                    raise ServerError(
                        f"server `{self.binary.name}` was not ready after {limit:g} s\n{last}",
                        "give it more time, or a smaller model or context",
                    )
                if progress is not None:
                    progress(waited)
                time.sleep(_POLL)
        if not self.alive:
            raise self.death("while starting")

    def death(self, when: str = "") -> ServerError:
        """How it ended, as an error: exit code or signal, and the log lines that matter."""
        if self._reader is not None:
            self._reader.join(2.0)
        how = exit_reason(self.returncode or 0)
        lines = "".join(f"\n  {line}" for line in telling_lines(list(self._lines)))
        return ServerError(
            f"server `{self.binary.name}` ended{' ' + when if when else ''}: {how}{lines}",
            f"run it by hand: `{self.command_line}`",
        )

    def tail(self, lines: int = 20) -> list[str]:
        """Its last lines of output."""
        return list(self._lines)[-lines:]

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for its end and return :attr:`returncode`; None when ``timeout`` seconds pass first."""
        if self._process is None:
            return None
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        if self._reader is not None:
            self._reader.join(2.0)
        return self._process.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to the whole group; silent when it has ended."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def stop(self, grace: float = 5.0) -> int | None:
        """SIGTERM, ``grace`` seconds, SIGKILL. Returns :attr:`returncode`; stopping twice is silent."""
        if self._process is None:
            return None
        if self._process.poll() is None and grace > 0:
            self.send_signal(signal.SIGTERM)
            self.wait(grace)
        self.send_signal(signal.SIGKILL)
        self._process.wait()
        if self._warden is not None:
            self._dismiss(self._warden)
            self._warden = None
        if self._reader is not None:
            self._reader.join(2.0)
        _running.discard(self)
        return self._process.returncode

    @staticmethod
    def _dismiss(warden: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(BrokenPipeError):
            warden.communicate(b"done\n")

    @contextlib.contextmanager
    def forward_signals(self) -> Iterator[list[int]]:
        """While inside, SIGINT and SIGTERM go to the child instead of this process. Main thread only.

        Gives the list of the signals that were sent.
        """
        numbers = (signal.SIGINT, signal.SIGTERM)
        sent: list[int] = []

        def forward(number: int, _: object) -> None:
            sent.append(number)
            self.send_signal(number)

        before = [signal.signal(number, forward) for number in numbers]
        try:
            yield sent
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def __enter__(self) -> ServerProcess:  # noqa: PYI034 - typing has no Self before 3.11
        return self if self._process is not None else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


_running: weakref.WeakSet[ServerProcess] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    for server in list(_running):
        server.stop(grace=1.0)
