"""Engines that take turns: each in a process of its own, and only the one whose turn it is computes."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from typing import TYPE_CHECKING, Any

from pyllm.config import SamplingParams
from pyllm.engine.core import Core
from pyllm.engine.request import Request
from pyllm.engine.scheduler import Scheduler
from pyllm.engine.warm_up import warm_up
from pyllm.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection
    from types import TracebackType

    from typing_extensions import Self

    from pyllm.config import EngineConfig

#: Seconds of a turn. Long beside a step, which a turn does not cut; short beside the minutes within which a machine's speed drifts.
TURN = 0.2


class Player:
    """A scheduler that steps only within a turn. It lives in the process of its engine."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._requests: list[Request] = []

    def n_vocab(self) -> int:
        """Of the target."""
        return self.scheduler.core.model.info.n_vocab

    def begin(self, prompts: Sequence[list[int]], max_tokens: int) -> None:
        """Queue a greedy request for each prompt; they are admitted in the first step of the next turn."""
        params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True, cache_prompt=False)
        self._requests = [Request(prompt, params, "") for prompt in prompts]
        for request in self._requests:
            self.scheduler.add(request)

    def turn(self, seconds: float) -> float:
        """Step, at least once, until ``seconds`` are over or nothing is left to do; what it took. The last step is never cut."""
        begin, took = time.perf_counter(), 0.0
        while self.scheduler.busy and took < seconds:
            self.scheduler.step()
            took = time.perf_counter() - begin
        return took

    def busy(self) -> bool:
        """Whether some request has not ended."""
        return self.scheduler.busy

    def tokens(self) -> list[tuple[int, ...]]:
        """What each request wrote.

        Raises:
            PyllmError: what ended a request.
        """
        return [request.result(timeout=0).tokens for request in self._requests]

    def drafting(self) -> dict[str, Any]:
        """``LLM.stats()["draft"]``."""
        return self.scheduler.drafting.stats()


class Engine:
    """A process with an engine for ``config``, which computes when it is asked to. ``ask`` calls a method of its :class:`Player`.

    Two engines of one process would share its OpenMP threads: with more of them than cores their barriers sleep, which no user's engine does.

    Raises:
        PyllmError: what making the engine raises.
    """

    def __init__(self, config: EngineConfig) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_live, args=(config, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._answer()

    def ask(self, method: str | Callable[..., Any], *arguments: Any) -> Any:
        """Call a method of the player, or a function with its scheduler.

        Raises:
            PyllmError: what the call raised.
            InternalError: the process has ended.
        """
        with contextlib.suppress(OSError):  # the answer says that nobody listens
            self._pipe.send((method, arguments))
        return self._answer()

    def _answer(self) -> Any:
        try:
            value, failure = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise InternalError(f"an engine's process ended with {self._process.exitcode}", "its last words stand above") from None
        if failure is not None:
            raise failure
        return value

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None) -> None:
        self._pipe.close()
        self._process.join()


def _live(config: EngineConfig, pipe: Connection) -> None:
    try:
        core = Core(config)
        scheduler = Scheduler(core, config)
        warm_up(scheduler)
    except Exception as failure:  # noqa: BLE001 - it belongs to whoever waits for the engine
        pipe.send((None, failure))
        return
    player = Player(scheduler)
    answer: tuple[Any, Exception | None] = (None, None)
    with contextlib.suppress(EOFError, OSError):  # nobody asks any more
        while True:
            pipe.send(answer)
            method, arguments = pipe.recv()
            try:
                answer = (getattr(player, method)(*arguments) if isinstance(method, str) else method(scheduler, *arguments), None)
            except Exception as failure:  # noqa: BLE001 - it belongs to whoever asked
                answer = (None, failure)
    core.close()


def seconds_in_turn(engines: Sequence[Engine], prompts: Sequence[list[int]], max_tokens: int) -> list[float]:
    """The same requests in each engine, turn by turn: the seconds that each computed until its last request ended, prompts included.

    While all of them have something to do, whatever slows the machine down for longer than a turn slows all of them down alike.
    """
    for engine in engines:
        engine.ask("begin", prompts, max_tokens)
    took = [0.0] * len(engines)
    left = list(range(len(engines)))
    while left:
        for place in left:
            took[place] += engines[place].ask("turn", TURN)
        left = [place for place in left if engines[place].ask("busy")]
    return took
