"""The engine in a process of its own: one JSON object per line on stdin, one on stdout for each.

A crash of the native code ends this process and nothing else; the parent sees the signal. Started as
``python -m pyllm.repro.worker``.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from queue import SimpleQueue
from typing import Any

from pyllm.errors import ClosedError, DecodeError, InternalError, PyllmError
from pyllm.repro.subject import Answer, Fault, Sent

_DEFECTS = (InternalError, DecodeError, ClosedError)


def fault_of(failure: BaseException) -> Fault:
    """A failed request as data."""
    return Fault(
        type(failure).__name__,
        str(failure),
        defect=isinstance(failure, _DEFECTS) or not isinstance(failure, PyllmError),
    )


class Session:
    """Handles the requests of one parent, one after another."""

    def __init__(self) -> None:
        self._llm: Any = None

    def handle(self, message: dict[str, Any]) -> Any:
        """Do what one message asks; the method is named by ``do``."""
        return getattr(self, f"do_{message.pop('do')}")(**message)

    def do_open(self, settings: dict[str, Any]) -> str:
        """Load the engine with the fields of EngineConfig."""
        import pyllm  # noqa: PLC0415 - loads the native library
        from pyllm._ffi import build_info, upstream_commit  # noqa: PLC0415 - loads the native library

        self._llm = pyllm.LLM(**settings)
        return f"pyllm {pyllm.__version__} (llama.cpp {upstream_commit()}, {build_info()})"

    def do_run(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Submit all, then wait for all: they share the decode."""
        handles = [self._submit(Sent.of(values)) for values in requests]
        return [self._answer(sent, handle).as_dict() for sent, handle in handles]

    def _submit(self, sent: Sent) -> tuple[Sent, Any]:
        prompt = sent.prompt if isinstance(sent.prompt, str) else list(sent.prompt)
        try:
            handle = self._llm.submit(
                prompt,
                max_tokens=sent.n,
                temperature=sent.temperature,
                seed=sent.seed,
                stop=sent.stop,
                cache_prompt=sent.cache,
                slot=sent.slot,
                draft_depth=sent.depth,
            )
        except Exception as failure:  # noqa: BLE001 - whatever it is, it is an answer
            return sent, failure
        return sent, handle

    def _answer(self, sent: Sent, handle: Any) -> Answer:
        tokens: list[int] = []
        if isinstance(handle, Exception):
            return Answer(fault=fault_of(handle))
        try:
            if sent.stream or sent.after is not None:
                for chunk in handle:
                    tokens += chunk.tokens
                    if sent.after is not None and len(tokens) >= sent.after:
                        handle.cancel()
                        return Answer(tuple(tokens), finish="cancelled")
            done = handle.result()
        except Exception as failure:  # noqa: BLE001 - whatever it is, it is an answer
            return Answer(tuple(tokens), fault=fault_of(failure))
        if sent.stream and tuple(tokens) != tuple(done.tokens):
            wrong = f"the stream brought {tokens}, the result has {list(done.tokens)}"
            return Answer(tuple(tokens), fault=Fault("InternalError", wrong, defect=True))
        return Answer(
            tokens=tuple(done.tokens),
            text=done.text,
            finish=done.finish_reason,
            cached=done.usage.cached_tokens,
            drafted=done.draft.drafted,
            accepted=done.draft.accepted,
            slot=done.slot,
        )

    def do_tokenize(self, text: str) -> list[int]:
        """Tokens of a prompt."""
        return list(self._llm.tokenize(text))

    def do_save(self, slot: int, path: str) -> None:
        """Write a slot's conversation."""
        self._llm.save(slot, path)

    def do_restore(self, slot: int, path: str) -> None:
        """Read a slot's conversation."""
        self._llm.restore(path, slot)

    def do_fork(self, slot: int, to: int) -> None:
        """Copy a slot's conversation."""
        self._llm.fork(slot, to)

    def do_check(self) -> None:
        """The engine's own integrity check."""
        self._llm.check_integrity()

    def do_close(self) -> None:
        """Free the engine."""
        self._llm.close()


def main() -> None:
    """Serve the parent until it closes stdin; then end at once, whatever runs."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what native code prints belongs to the log
    messages: SimpleQueue[dict[str, Any]] = SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            messages.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    session = Session()
    while True:
        try:
            reply: dict[str, Any] = {"value": session.handle(messages.get())}
        except Exception as failure:  # noqa: BLE001 - whatever it is, it is an answer
            fault = fault_of(failure)
            reply = {
                "error": {
                    "name": fault.name,
                    "text": fault.text,
                    "hint": getattr(failure, "hint", ""),
                    "defect": fault.defect,
                }
            }
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
