"""The one thread that owns an engine's contexts."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from pyllm.engine.core import Core
from pyllm.engine.scheduler import Scheduler
from pyllm.engine.warm_up import warm_up
from pyllm.errors import ClosedError, InternalError, PyllmError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyllm.config import EngineConfig
    from pyllm.engine.request import Request

T = TypeVar("T")


class Worker:
    """Makes a core and runs its scheduler, on a thread of its own. ``submit`` and ``call`` may come from any thread.

    All graphs are computed on that thread, the first probe too: OpenMP keeps a team for each thread that ever computed, and once
    the teams together are larger than the machine, its barriers sleep instead of spinning (12 ms for a step of 8, on two cores).

    Raises:
        PyllmError: what making the core raises.
    """

    core: Core
    """The native side; usable until ``close()``."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._opened: Future[Core] = Future()
        self._scheduler: Scheduler
        self._wake = threading.Condition()
        self._inbox: deque[Request] = deque()
        self._calls: deque[tuple[Callable[[Scheduler], Any], Future[Any]]] = deque()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="pyllm-engine", daemon=True)
        self._thread.start()
        try:
            self.core = self._opened.result()
        except BaseException:
            # Ctrl-C while a model loads: the thread frees what it has made when the load returns.
            self._closing = True
            raise

    def submit(self, *requests: Request) -> None:
        """Queue requests; those of one call are admitted in the same step, so that their prompts share a decode.

        Raises:
            ClosedError: the engine is closed.
        """
        with self._wake:
            self._check_open()
            self._inbox.extend(requests)
            self._wake.notify()

    def call(self, function: Callable[[Scheduler], T]) -> T:
        """Run ``function`` on the owning thread, between two steps, and return its result.

        Raises:
            ClosedError: the engine is closed.
        """
        future: Future[T] = Future()
        with self._wake:
            self._check_open()
            self._calls.append((function, future))
            self._wake.notify()
        return future.result()

    def close(self) -> None:
        """Stop after the running step; unfinished requests end with ``ClosedError``."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _check_open(self) -> None:
        if self._closing:
            raise ClosedError("this engine is closed", "make a new LLM, or close it later")

    def _run(self) -> None:
        try:
            core = Core(self._config)
        except BaseException as failure:  # noqa: BLE001 - it belongs to whoever waits for the core
            self._opened.set_exception(failure)
            return
        self._scheduler = Scheduler(core, self._config)
        try:
            warm_up(self._scheduler)
        except BaseException as failure:  # noqa: BLE001 - it belongs to whoever waits for the core
            core.close()
            self._opened.set_exception(failure)
            return
        self._opened.set_result(core)
        while self._turn():
            pass
        self._end()
        core.close()

    def _end(self) -> None:
        """Nothing that still waits is left without an answer."""
        closed = ClosedError("the engine was closed while the request ran", "wait for the result before close()")
        for request in [*self._scheduler.running, *self._scheduler.waiting, *self._inbox]:
            request.fail(closed)
            if request.sampler is not None:
                request.sampler.close()
        for _, future in self._calls:
            future.set_exception(closed)

    def _turn(self) -> bool:
        """One round: calls, new requests, one step. False when the engine closes."""
        with self._wake:
            while not (self._closing or self._inbox or self._calls or self._scheduler.busy):
                self._wake.wait()
            if self._closing:
                return False
            while self._inbox:
                self._scheduler.add(self._inbox.popleft())
            calls, self._calls = self._calls, deque()
        for function, future in calls:
            try:
                future.set_result(function(self._scheduler))
            except Exception as failure:  # noqa: BLE001, PERF203 - it belongs to the caller, on its own thread
                future.set_exception(failure)
        try:
            self._scheduler.step()
        except Exception as failure:  # noqa: BLE001 - a defect of ours ends the requests with an error, not the thread
            cause = failure if isinstance(failure, PyllmError) else InternalError(f"the scheduler failed: {failure!r}")
            for request in list(self._scheduler.running):
                self._scheduler.fail(request, cause)
        return True
