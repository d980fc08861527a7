"""What a scenario is played on: one interface over an engine and a server."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Sent:
    """One request as it was sent.

    ``after`` leaves it when so many tokens have come; ``cache`` False computes its whole prompt; ``depth`` bounds its drafts. ``images`` are files in base64,
    and the prompt is a text with ``pyllm.server.client.IMAGE`` in the place of each.
    """

    prompt: str | tuple[int, ...]
    n: int
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stream: bool = False
    slot: int | None = None
    after: int | None = None
    cache: bool = True
    depth: int | None = None
    images: tuple[str, ...] = ()

    @property
    def greedy(self) -> bool:
        """Whether its answer is determined by the prompt."""
        return self.temperature == 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Sent:
        """From :meth:`as_dict`'s JSON."""
        prompt = values["prompt"]
        return cls(
            **(values | {"prompt": prompt if isinstance(prompt, str) else tuple(prompt), "stop": tuple(values["stop"]), "images": tuple(values["images"])})
        )


@dataclass(frozen=True)
class Fault:
    """A request that was not answered. ``name`` is the exception's class, ``status`` the HTTP code where there is one.

    ``defect`` tells a refusal from a failure: a 5xx answer that is no orderly refusal, an internal error, a hang or a lost connection.
    """

    name: str
    text: str
    defect: bool
    status: int | None = None


@dataclass(frozen=True)
class Answer:
    """What came back. ``tokens`` are the generated ones; of a failed request those that came before."""

    tokens: tuple[int, ...] = ()
    text: str = ""
    finish: str = ""
    cached: int = 0
    drafted: int = 0
    accepted: int = 0
    slot: int = -1
    fault: Fault | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Answer:
        """From :meth:`as_dict`'s JSON."""
        fault = values["fault"]
        return cls(**(values | {"tokens": tuple(values["tokens"]), "fault": None if fault is None else Fault(**fault)}))


class Subject(Protocol):
    """An engine or a server, started with a scenario's files and settings.

    Every call may raise :class:`~pyllm.errors.PyllmError`; ``died`` tells afterwards whether the process is gone.
    """

    @property
    def target(self) -> str:
        """What it is: a path or a URL, with its version where it says one."""

    @property
    def command(self) -> str:
        """How to start the same by hand."""

    def start(self) -> None:
        """Start it and load the model."""

    def run(self, requests: Sequence[Sent]) -> list[Answer]:
        """Send requests at once and wait for all of them. A request that fails is an answer with a fault."""

    def tokenize(self, text: str) -> list[int]:
        """Tokens of a prompt's text."""

    def check(self) -> None:
        """What can be checked between two steps, from outside."""

    def save(self, slot: int, name: str) -> None:
        """Write a slot's state to a file of the scenario's folder."""

    def restore(self, slot: int, name: str) -> None:
        """Read a slot's state from a file of the scenario's folder."""

    def fork(self, slot: int, to: int) -> None:
        """Let another slot hold the same conversation."""

    def path(self, name: str) -> Path:
        """Where the file of a saved slot is."""

    def stop(self) -> str:
        """End it in an orderly way. Returns how it ended when that was not orderly, else an empty text."""

    def kill(self) -> None:
        """End it by force; silent when it has ended."""

    def died(self, within: float = 0.0) -> str:
        """How its process ended by itself, now or within so many seconds, else an empty text."""

    def log(self) -> list[str]:
        """The last lines it wrote."""
