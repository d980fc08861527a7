"""Servers as subjects: a binary started here, or one that runs elsewhere."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from pyllm.errors import ServerError, UnsupportedError
from pyllm.repro.subject import Answer, Fault, Sent
from pyllm.server import RefusedError, ServerChunk, ServerClient, ServerCompletion, ServerProcess, server_version
from pyllm.server.log import exit_reason

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_TERMINATED = -15  # by our own SIGTERM, before the server had a handler for it


class RemoteSubject:
    """A server that somebody else started, at ``url``. It can be asked, not restarted."""

    def __init__(self, url: str, *, limit: float) -> None:
        self.url = url
        self.limit = limit
        self.target = url
        self._client: ServerClient | None = None

    @property
    def client(self) -> ServerClient:
        """The connection.

        Raises:
            ServerError: before :meth:`start`.
        """
        if self._client is None:
            raise ServerError(f"there is no connection to {self.url}", "start the subject first")
        return self._client

    @property
    def command(self) -> str:
        """Nothing to start."""
        return ""

    def start(self) -> None:
        """Connect."""
        self._client = ServerClient(self.url, timeout=self.limit)
        if not self._client.health():
            raise ServerError(f"no server is ready at {self.url}", "start one, or give the path of a binary to --against")

    def run(self, requests: Sequence[Sent]) -> list[Answer]:
        """One connection for each request, all at once."""
        client = self.client
        with ThreadPoolExecutor(max_workers=len(requests)) as pool:
            return list(pool.map(lambda sent: answer(client, sent), requests))

    def tokenize(self, text: str) -> list[int]:
        """Tokens of a prompt's text."""
        return self.client.tokenize(text)

    def check(self) -> None:
        """A server has no integrity check of its own; its health is looked at."""
        if not self.client.health() and not self.died():
            raise ServerError(f"the server at {self.client.url} does not answer /health", "its log says more")

    def save(self, slot: int, name: str) -> None:
        """Through ``/slots``; the server needs ``--slot-save-path``."""
        self.client.save_slot(slot, name)

    def restore(self, slot: int, name: str) -> None:
        """Through ``/slots``; the server needs ``--slot-save-path``."""
        self.client.restore_slot(slot, name)

    def fork(self, slot: int, to: int) -> None:
        """Not something that a server is asked; the runner skips such scenarios."""
        raise UnsupportedError(f"slot {slot} cannot be forked to {to} over HTTP", "use the engine level")

    def path(self, name: str) -> Path:
        """A server that was not started here keeps its files where it wants."""
        raise UnsupportedError(f"the file `{name}` of the server at {self.client.url} is not here", "give --against the path of its binary")

    def stop(self) -> str:
        """Close the connection; the server is not ours to end."""
        if self._client is not None:
            self._client.close()
        return ""

    def kill(self) -> None:
        """The same."""
        self.stop()

    def died(self, within: float = 0.0) -> str:  # noqa: ARG002 - an answer comes or does not
        """Unknown from outside: that nobody answers any more."""
        if self._client is None or self._client.health():
            return ""
        return f"the server at {self.url} no longer answers"

    def log(self) -> list[str]:
        """It is kept where the server runs."""
        return []


class ServerSubject(RemoteSubject):
    """A server binary with its flags, started here."""

    def __init__(self, binary: Path, flags: Sequence[str], *, limit: float, log_file: Path) -> None:
        super().__init__("", limit=limit)
        self.binary = binary
        self.flags = list(flags)
        self.log_file = log_file
        self._process: ServerProcess | None = None

    @property
    def command(self) -> str:
        """The command line, ready to paste."""
        return "" if self._process is None else self._process.command_line

    def start(self) -> None:
        """Start it and wait until its model is loaded."""
        version = server_version(self.binary)
        self.target = f"{self.binary}" if version is None else f"{self.binary} ({version.version}, llama.cpp {version.upstream})"
        self._process = ServerProcess(self.binary, self.flags, log=self.log_file)
        self._process.start(limit=self.limit)
        self.url = self._process.url
        self._client = ServerClient(self.url, timeout=self.limit)

    def path(self, name: str) -> Path:
        """Beside the log: there --slot-save-path points."""
        return self.log_file.parent / name

    def save(self, slot: int, name: str) -> None:
        """Through ``/slots``."""
        if "--slot-save-path" not in self.flags:
            raise UnsupportedError(f"slot {slot} cannot be saved: the server has no --slot-save-path", "give the flag")
        super().save(slot, name)

    def stop(self) -> str:
        """SIGTERM; a server that then crashes, or does not end, is a finding."""
        super().stop()
        before = self.died()
        if self._process is None or before:
            return before
        code = self._process.stop()
        if code in {0, None, _TERMINATED}:
            return ""
        return f"the server ended with {exit_reason(code or 0)} when it was asked to stop"

    def kill(self) -> None:
        """SIGKILL."""
        super().stop()
        if self._process is not None:
            self._process.stop(grace=0)

    def died(self, within: float = 0.0) -> str:
        """The signal or exit code of a server that ended by itself."""
        code = None if self._process is None else self._process.wait(within)
        return "" if code is None else f"the server ended: {exit_reason(code)}"

    def log(self) -> list[str]:
        """Its last lines."""
        return [] if self._process is None else self._process.tail(200)


def answer(client: ServerClient, sent: Sent) -> Answer:
    """One request; whatever goes wrong becomes a fault."""
    chunks: list[ServerChunk] = []
    try:
        if not sent.stream and sent.after is None:
            return _answer(client.completion(sent.prompt, **_options(sent)))
        for chunk in client.stream(sent.prompt, **_options(sent)):
            chunks.append(chunk)
            if sent.after is not None and sum(len(piece.tokens) for piece in chunks) >= sent.after:
                return Answer(_tokens(chunks), finish="cancelled")
    except RefusedError as failure:
        return Answer(_tokens(chunks), fault=Fault("RefusedError", failure.message, failure.defect, failure.status))
    except ServerError as failure:
        return Answer(_tokens(chunks), fault=Fault("ServerError", failure.message, defect=True))
    last = chunks[-1].completion if chunks else None
    if last is None:
        return Answer(_tokens(chunks), fault=Fault("ServerError", "the stream ended without its last event", defect=True))
    return _answer(last)


def _options(sent: Sent) -> dict[str, Any]:
    return {
        "n": sent.n,
        "temperature": sent.temperature,
        "seed": sent.seed,
        "stop": sent.stop,
        "slot": sent.slot,
        "cache": sent.cache,
        "depth": sent.depth,
        "images": sent.images,
    }


def _tokens(chunks: Sequence[ServerChunk]) -> tuple[int, ...]:
    return tuple(token for chunk in chunks for token in chunk.tokens)


def _answer(done: ServerCompletion) -> Answer:
    return Answer(done.tokens, done.text, done.finish, done.cached_tokens, done.drafted, done.accepted, done.slot)
