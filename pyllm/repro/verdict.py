"""What came of a scenario at one level."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pyllm.repro.scenario import Level

LEVELS: tuple[Level, ...] = ("plan", "engine", "server")
Status = Literal["pass", "fail", "skipped"]


class CheckError(Exception):
    """A check that did not hold, inside a run. ``step`` counts from 1; 0 is the start, None the whole."""

    def __init__(self, what: str, *, expected: str = "", got: str = "", step: int | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.expected = expected
        self.got = got
        self.step = step


@dataclass(frozen=True)
class Failure:
    """Why a level failed, with what is needed to look further."""

    what: str
    step: int | None = None
    expected: str = ""
    got: str = ""
    log: tuple[str, ...] = ()
    command: str = ""


@dataclass(frozen=True)
class Verdict:
    """One scenario at one level.

    ``reason`` says why it was skipped; ``not_run`` what of the report another machine has to show. ``drafted`` and
    ``accepted`` count tokens; they are information, never the reason of a verdict.
    """

    scenario: str
    level: Level
    status: Status
    reason: str = ""
    not_run: tuple[str, ...] = ()
    failure: Failure | None = None
    seconds: float = 0.0
    requests: int = 0
    compared: int = 0
    drafted: int = 0
    accepted: int = 0
    target: str = ""
    oracle: str = ""
    steps: tuple[dict[str, Any], ...] = field(default=())
    sentence: str = ""
    nodes: tuple[dict[str, Any], ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
