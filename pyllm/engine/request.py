"""One generation, from its submission to its result."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import secrets
import threading
import time
from typing import TYPE_CHECKING, Any

from pyllm._ffi import logprobs
from pyllm.engine.result import Chunk, Completion, DraftCounts, FinishReason, TokenLogprob, Usage
from pyllm.engine.text import TextStream
from pyllm.errors import PyllmError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterator

    from pyllm._ffi import Context, Sampler
    from pyllm.checkpoints import Checkpoint
    from pyllm.config import SamplingParams
    from pyllm.slots import Slot

#: Seconds between looks at the keyboard while waiting: a blocked queue would hold Ctrl-C back on some platforms.
POLL = 0.1


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Request:
    """A generation in the engine. The caller's side is ``result()``, iteration, their ``async`` forms and ``cancel()``; the rest is the scheduler's."""

    def __init__(self, prompt: list[int], params: SamplingParams, model_name: str, grammar: str = "") -> None:
        self.prompt = prompt
        self.params = params
        self.model_name = model_name
        self.grammar = grammar
        self.seed: int = params.seed if params.seed is not None else secrets.randbits(32)
        self.deadline: float | None = None if params.timeout is None else time.monotonic() + params.timeout
        self.cancelled = False
        self.slot: Slot | None = None
        self.sampler: Sampler | None = None
        self.pending: list[int] = list(prompt)
        """Tokens that the memory still lacks; the one after the last of them is sampled next."""
        self.begun = False
        """Whether the prompt is computed and tokens come."""
        self.resumed: Checkpoint | None = None
        """What a suspended generation goes on from."""
        self.idle_steps = 0
        self.cached_tokens = 0
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.text = TextStream(params.stop)
        self.drafted = 0
        self.accepted = 0
        self.steps = 0
        self.started = 0.0
        self._chunks: queue.Queue[Chunk | Completion | PyllmError] = queue.Queue()
        self._outcome: Completion | PyllmError | None = None
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._lock = threading.Lock()
        self._n_shown = 0

    # The scheduler's side

    def emit(self, tokens: list[int], finish_reason: FinishReason | None) -> None:
        """Hand new tokens, and the text that they make safe, to the caller; with a reason the request is done."""
        if finish_reason is not None:
            self.text.finish()
        # Of a block that an end token or a stop string cut short.
        del self.logprobs[len(self.tokens) :]
        text = self.text.release(final=finish_reason is not None)
        if tokens or text or finish_reason:
            new = tuple(self.logprobs[self._n_shown :])
            self._n_shown = len(self.logprobs)
            self._put(Chunk(text, tuple(tokens), finish_reason, new))
        if finish_reason is not None:
            self._put(
                Completion(
                    text=self.text.text,
                    tokens=tuple(self.tokens),
                    finish_reason=finish_reason,
                    usage=Usage(len(self.prompt), len(self.tokens), self.cached_tokens),
                    draft=DraftCounts(self.drafted, self.accepted, self.steps),
                    slot=self.slot.seq if self.slot is not None else -1,
                    seconds=time.perf_counter() - self.started if self.started else 0.0,
                    model=self.model_name,
                    logprobs=tuple(self.logprobs),
                )
            )

    def go_on(self, pieces: list[bytes], logprobs: list[TokenLogprob]) -> None:
        """What a suspended generation wrote, and its caller has seen."""
        for piece in pieces:
            self.text.push(piece)
        self.text.release()
        self.logprobs = logprobs
        self._n_shown = len(logprobs)

    def fail(self, failure: PyllmError) -> None:
        """End the request with an error, which ``result()`` and iteration raise."""
        self._put(failure)

    def note_logprobs(self, context: Context, index: int, ids: list[int]) -> None:
        """Keep the log-probabilities of tokens sampled at batch entries from ``index`` on."""
        for place, token in enumerate(ids):
            found = logprobs(context, index + place, token, self.params.logprobs or 0)
            self.logprobs.append(TokenLogprob(token, found.token, found.top))

    def _put(self, item: Chunk | Completion | PyllmError) -> None:
        self._chunks.put(item)
        with self._lock:
            waiters, self._waiters = self._waiters, []
        for loop, future in waiters:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits there any more
                loop.call_soon_threadsafe(_wake, future)

    # The caller's side

    def cancel(self) -> None:
        """Ask for an early end; ``result()`` then returns what there is, with ``finish_reason`` ``cancelled``."""
        self.cancelled = True

    def __iter__(self) -> Iterator[Chunk]:
        """Chunks as they come. Leaving the loop early, or Ctrl-C in it, cancels the request."""
        try:
            while self._outcome is None:
                item = self._next(None)
                if isinstance(item, Chunk):
                    yield item
        finally:
            if self._outcome is None:
                self.cancel()
        if isinstance(self._outcome, PyllmError):
            raise self._outcome

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the end.

        Raises:
            TimeoutError: not done after ``timeout`` seconds; the request goes on.
            PyllmError: what ended the request.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._outcome is None:
            self._next(deadline)
        if isinstance(self._outcome, PyllmError):
            raise self._outcome
        return self._outcome

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """Chunks as they come, without blocking the event loop. Leaving the loop early, or cancelling its task, cancels the request."""
        try:
            while self._outcome is None:
                item = await self._anext()
                if isinstance(item, Chunk):
                    yield item
        finally:
            if self._outcome is None:
                self.cancel()
        if isinstance(self._outcome, PyllmError):
            raise self._outcome

    def __await__(self) -> Generator[Any, None, Completion]:
        """Wait for the end without blocking the event loop: ``await request``. Cancelling the task cancels the request.

        Raises:
            PyllmError: what ended the request.
        """
        return self._finished().__await__()

    async def _finished(self) -> Completion:
        async for _ in self:
            pass
        return self.result()

    async def _anext(self) -> Chunk | Completion | PyllmError:
        loop = asyncio.get_running_loop()
        while True:
            future = loop.create_future()
            with self._lock:
                self._waiters.append((loop, future))
            try:
                item = self._chunks.get_nowait()
            except queue.Empty:
                await future
                continue
            return self._taken(item)

    def poll(self) -> Completion | PyllmError | None:
        """The outcome if the request has ended, without waiting; chunks are passed over."""
        with contextlib.suppress(queue.Empty):
            while self._outcome is None:
                self._taken(self._chunks.get_nowait())
        return self._outcome

    def _taken(self, item: Chunk | Completion | PyllmError) -> Chunk | Completion | PyllmError:
        """The outcome stays in the queue: whoever else waits for this request takes it, too."""
        if not isinstance(item, Chunk):
            self._outcome = item
            self._put(item)
        return item

    def _next(self, deadline: float | None) -> Chunk | Completion | PyllmError:
        while True:
            left = POLL if deadline is None else max(0.0, min(POLL, deadline - time.monotonic()))
            try:
                item = self._chunks.get(timeout=left) if left else self._chunks.get_nowait()
            except queue.Empty:
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimeoutError("the request is not done yet") from None
                continue
            return self._taken(item)
