"""From a scenario to a verdict per level."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pyllm.errors import ConfigError, InternalError, PyllmError, ServerError
from pyllm.repro import flags as command
from pyllm.repro.collection import engine_file
from pyllm.repro.engine import EngineSubject
from pyllm.repro.engines import load_engine
from pyllm.repro.files import model_path, projector_path, text_tokens
from pyllm.repro.machine import Machine, engine_machine, server_machine
from pyllm.repro.oracle import compare
from pyllm.repro.plan import judge
from pyllm.repro.play import Play
from pyllm.repro.server import RemoteSubject, ServerSubject
from pyllm.repro.verdict import CheckError, Failure, Verdict
from pyllm.server import ServerClient, find_server
from pyllm.server.log import telling_lines

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyllm.config import EngineConfig
    from pyllm.repro.scenario import Beyond, Level, Scenario
    from pyllm.repro.subject import Subject

#: Verbs that a level cannot do, and why.
_MISSING: dict[tuple[Level, str], str] = {
    ("server", "fork"): "llama-server has no request that forks a slot",
}


@dataclass
class Runner:
    """Plays scenarios.

    ``against`` is the URL of a running server or the path of a server binary, None the installed one. ``logs`` keeps
    the log files. ``talk`` hears what is being done: scenario, level, text.
    """

    against: str | None = None
    logs: Path | None = None
    talk: Callable[[str, Level, str], None] = lambda _scenario, _level, _text: None
    _machines: dict[str, Machine] = field(default_factory=dict, init=False)

    @property
    def url(self) -> str | None:
        """The URL of a running server, None when a binary is started."""
        return self.against if self.against is not None and "://" in self.against else None

    def run(self, scenario: Scenario, level: Level, beside: Path) -> Verdict:
        """One scenario at one level. ``beside`` is the folder of its file. An error of the subject is a failure.

        Raises:
            NotFoundError: no server binary, or no model file.
            ScenarioError: the selector that a plan names is not understood.
        """
        reason = self._reason_to_skip(scenario, level)
        if reason:
            return Verdict(scenario.name, level, "skipped", reason)
        if level == "plan" and scenario.plan is not None:
            self.talk(scenario.name, level, "deciding")
            return judge(scenario, scenario.plan, load_engine(engine_file(scenario.plan.engine, beside)))
        machine = self._machine(level)
        verdict = Verdict(
            scenario.name,
            level,
            "pass",
            not_run=tuple(f"{part.shows} ({lack})" for part in scenario.beyond if (lack := machine.lacks(part.needs))),
        )
        lacks = next((lack for need in scenario.requires if (lack := machine.lacks(need))), "")
        if lacks:
            return replace(verdict, status="skipped", reason=lacks)
        with ExitStack() as stack:
            folder = self.logs if self.logs is not None else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pyllm-repro-")))
            folder.mkdir(parents=True, exist_ok=True)
            parts = tuple(part for part in scenario.beyond if not machine.lacks(part.needs))
            return _Run(self, scenario, level, beside, folder, parts).verdict(verdict)

    def _reason_to_skip(self, scenario: Scenario, level: Level) -> str:  # noqa: PLR0911 - one reason after another
        if level in scenario.skip:
            return scenario.skip[level]
        if level == "plan" and scenario.plan is None:
            return "no attention plan in this scenario"
        if level != "server" and self.against is not None:
            return "--against names a server"
        for verb in sorted(scenario.verbs()):
            missing = _MISSING.get((level, verb))
            if missing:
                return missing.format(verb=verb)
        if self.url is not None and "restart" in scenario.verbs():
            return "`restart` needs a server that is started here, --against is a URL"
        if self.url is not None and scenario.expect.start == "refused":
            return "the scenario is about the start of a server, --against is a URL"
        return ""

    def _machine(self, level: Level) -> Machine:
        if level not in self._machines:
            if level == "engine":
                self._machines[level] = engine_machine()
            else:
                self._machines[level] = Machine(None) if self.url is not None else server_machine(find_server(self.against))
        return self._machines[level]


@dataclass
class _Run:
    """One scenario at one level, with its subject, its oracle and its logs."""

    runner: Runner
    scenario: Scenario
    level: Level
    beside: Path
    folder: Path
    parts: tuple[Beyond, ...]

    def __post_init__(self) -> None:
        self.begin = time.monotonic()
        self.model = model_path(self.scenario.model, self.beside)
        self.draft = None if self.scenario.draft is None else model_path(self.scenario.draft, self.beside)
        self.projector = None if self.scenario.projector is None else projector_path(self.scenario.projector, self.model, self._file("-projector.gguf"))

    def verdict(self, verdict: Verdict) -> Verdict:  # noqa: PLR0911 - one reason after another
        """Play, compare, judge."""
        url = self.runner.url
        if self.level == "server" and url is not None:
            reason = self._foreign(url)
            if reason:
                return replace(verdict, status="skipped", reason=reason)
        try:
            subject = self._subject()
        except ConfigError as failure:
            # Only a scenario that expects its refusal carries settings that are refused before anything starts.
            return self._refused_settings(verdict, failure)
        play = Play(self.scenario, subject, self._vocabulary(), self._talk)
        try:
            if self.scenario.expect.start == "refused":
                self._refused(subject)
                return self._finish(verdict, play)
            self._start(subject)
            play.run()
            self._silent(subject)
        except CheckError as failure:
            return replace(self._finish(verdict, play), status="fail", failure=_failure(failure, subject))
        finally:
            subject.kill()
        plain, what = self._oracle()
        self.runner.talk(self.scenario.name, self.level, "decoding alone, without speculation")
        try:
            plain.start()
            compared = compare(play.records, plain)
        except CheckError as failure:
            return replace(self._finish(verdict, play), status="fail", failure=_failure(failure, subject), oracle=what)
        except PyllmError as failure:
            broken = CheckError(f"the oracle ({what}) failed: {failure.message}", expected="plain decoding works", got=failure.message)
            return replace(self._finish(verdict, play), status="fail", failure=_failure(broken, plain), oracle=what)
        finally:
            plain.kill()
        return replace(self._finish(verdict, play), compared=compared, oracle=what)

    def _start(self, subject: Subject) -> None:
        self._talk(0, len(self.scenario.steps))
        try:
            subject.start()
        except PyllmError as failure:
            raise CheckError(failure.message, expected="a start", got=subject.died() or failure.message, step=0) from failure

    def _silent(self, subject: Subject) -> None:
        never = self.scenario.expect.never
        if never is None or not isinstance(subject, ServerSubject):
            return
        with subject.log_file.open(encoding="utf-8", errors="replace") as lines:
            count = sum(never in line for line in lines)
        if count:
            raise CheckError(f"its log says `{never}`", expected="never", got=f"{count} times")

    def _refused(self, subject: Subject) -> None:
        says = self.scenario.expect.says or ""
        expected = f"a refusal{f' that says {says!r}' if says else ''}"
        try:
            subject.start()
        except InternalError as failure:
            raise CheckError(failure.message, expected=expected, got="an internal error", step=0) from failure
        except PyllmError as failure:
            died = subject.died()
            if "signal" in died or (isinstance(failure, ServerError) and not died):
                raise CheckError(failure.message, expected=expected, got=died or failure.message, step=0) from failure
            if says not in failure.message and says not in "\n".join(subject.log()):
                raise CheckError("the refusal says something else", expected=expected, got=failure.message, step=0) from failure
            return
        raise CheckError("it started", expected=expected, got="a start", step=0)

    def _refused_settings(self, verdict: Verdict, failure: ConfigError) -> Verdict:
        says = self.scenario.expect.says or ""
        if says in failure.message:
            return verdict
        wrong = Failure("the refusal says something else", 0, f"a refusal that says {says!r}", failure.message)
        return replace(verdict, status="fail", failure=wrong)

    def _talk(self, step: int, steps: int) -> None:
        self.runner.talk(self.scenario.name, self.level, f"step {step} of {steps}" if step else "starting")

    def _finish(self, verdict: Verdict, play: Play) -> Verdict:
        answers = [record.answer for record in play.records]
        return replace(
            verdict,
            seconds=round(time.monotonic() - self.begin, 3),
            requests=len(answers),
            drafted=sum(answer.drafted for answer in answers),
            accepted=sum(answer.accepted for answer in answers),
            target=play.subject.target,
            steps=tuple(play.steps),
        )

    def _vocabulary(self) -> tuple[int, ...]:
        prompts = [prompt for step in self.scenario.steps for prompt in (*(step.prompt or ()), *((step.cancel,) if step.cancel else ()))]
        proves = any(step.cancel is not None or step.expect.error is not None for step in self.scenario.steps)
        return text_tokens(self.model) if proves or any(prompt.random is not None for prompt in prompts) else ()

    def _subject(self) -> Subject:
        if self.level == "engine":
            return self._engine(self.scenario.engine_config(self.model, self.draft, self.parts), "")
        url = self.runner.url
        if url is not None:
            return RemoteSubject(url, limit=self.scenario.limit)
        return self._server(self._flags(), "")

    def _oracle(self) -> tuple[Subject, str]:
        if self.level == "server" and self.runner.url is None:
            return self._server(command.without_drafter(self._flags()), "-alone"), "the same binary without its drafter flags"
        config = self.scenario.engine_config(self.model, self.draft, self.parts)
        plain = config.model_copy(update={"draft": None, "spec": None, "slots": 1})
        return self._engine(plain, "-alone"), "the engine with one slot, without speculation"

    def _engine(self, config: EngineConfig, suffix: str) -> EngineSubject:
        return EngineSubject(config, limit=self.scenario.limit, log_file=self._log(suffix))

    def _server(self, flags: list[str], suffix: str) -> ServerSubject:
        return ServerSubject(find_server(self.runner.against), flags, limit=self.scenario.limit, log_file=self._log(suffix))

    def _log(self, suffix: str) -> Path:
        file = self._file(f"{suffix}.log")
        file.write_bytes(b"")
        return file

    def _file(self, suffix: str) -> Path:
        return self.folder / f"{self.scenario.name.replace('/', '-')}-{self.level}{suffix}"

    def _flags(self) -> list[str]:
        words = self.scenario.server_flags(self.model, self.draft, self.parts, self.projector)
        return [*words, "--slot-save-path", str(self.folder)] if self.scenario.verbs() & {"save", "restore"} else words

    def _foreign(self, url: str) -> str:
        """Why a server elsewhere cannot stand for the scenario's: it has another model."""
        with ServerClient(url, timeout=self.scenario.limit) as client:
            properties = client.properties()
        served = Path(str(properties.get("model_path", ""))).name
        flags = " ".join(self._flags())
        if self.scenario.projector is not None and not properties.get("modalities", {}).get("vision"):
            return f"{url} sees no images, the scenario has some: start it with `{flags}`"
        if served == self.model.name:
            return ""
        return f"{url} serves `{served}`, the scenario needs `{self.model.name}`: start it with `{flags}`"


def _failure(failure: CheckError, subject: Subject) -> Failure:
    return Failure(
        failure.what,
        failure.step,
        failure.expected,
        failure.got,
        tuple(telling_lines(subject.log(), 8)),
        subject.command,
    )
