"""One generation, from its submission to its result."""

from __future__ import annotations

import queue
import time
from typing import TYPE_CHECKING

from pyllm.engine.result import Chunk, Completion, DraftCounts, FinishReason, Usage
from pyllm.engine.text import TextStream
from pyllm.errors import PyllmError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyllm._ffi import Sampler
    from pyllm.config import SamplingParams
    from pyllm.slots import Slot

#: Seconds between looks at the keyboard while waiting: a blocked queue would hold Ctrl-C back on some platforms.
POLL = 0.1


class Request:
    """A generation in the engine. The caller's side is ``result()``, iteration and ``cancel()``; the rest is the scheduler's."""

    def __init__(self, prompt: list[int], params: SamplingParams, model_name: str) -> None:
        self.prompt = prompt
        self.params = params
        self.model_name = model_name
        self.cancelled = False
        self.slot: Slot | None = None
        self.sampler: Sampler | None = None
        self.last = -1
        """The sampled token that is not in the memory yet; -1 while the prompt is being computed."""
        self.replay: list[int] = []
        """Accepted tokens that a restored checkpoint took out of the memory again; they are decoded before ``last``."""
        self.cached_tokens = 0
        self.tokens: list[int] = []
        self.text = TextStream(params.stop)
        self.drafted = 0
        self.accepted = 0
        self.steps = 0
        self.started = 0.0
        self._chunks: queue.Queue[Chunk | Completion | PyllmError] = queue.Queue()
        self._outcome: Completion | PyllmError | None = None

    # The scheduler's side

    def emit(self, tokens: list[int], finish_reason: FinishReason | None) -> None:
        """Hand new tokens, and the text that they make safe, to the caller; with a reason the request is done."""
        if finish_reason is not None:
            self.text.finish()
        text = self.text.release(final=finish_reason is not None)
        if tokens or text or finish_reason:
            self._chunks.put(Chunk(text, tuple(tokens), finish_reason))
        if finish_reason is not None:
            self._chunks.put(
                Completion(
                    text=self.text.text,
                    tokens=tuple(self.tokens),
                    finish_reason=finish_reason,
                    usage=Usage(len(self.prompt), len(self.tokens), self.cached_tokens),
                    draft=DraftCounts(self.drafted, self.accepted, self.steps),
                    slot=self.slot.seq if self.slot is not None else -1,
                    seconds=time.perf_counter() - self.started if self.started else 0.0,
                    model=self.model_name,
                )
            )

    def fail(self, failure: PyllmError) -> None:
        """End the request with an error, which ``result()`` and iteration raise."""
        self._chunks.put(failure)

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

    def _next(self, deadline: float | None) -> Chunk | Completion | PyllmError:
        while True:
            left = POLL if deadline is None else max(0.0, min(POLL, deadline - time.monotonic()))
            try:
                item = self._chunks.get(timeout=left) if left else self._chunks.get_nowait()
            except queue.Empty:
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimeoutError("the request is not done yet") from None
                continue
            if not isinstance(item, Chunk):
                self._outcome = item
            return item
