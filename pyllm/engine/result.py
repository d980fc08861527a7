"""What a request gives back, and its shape in OpenAI's protocol."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "cancelled", "timeout", "suspended"]


@dataclass(frozen=True)
class Usage:
    """Token counts. ``cached_tokens`` of the prompt were found in the slot and not computed again."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class DraftCounts:
    """Drafted and accepted tokens, and verification steps, of one request."""

    drafted: int = 0
    accepted: int = 0
    steps: int = 0


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probability (natural) of a token under the model alone, before sampling, and those of the likeliest tokens, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Chunk:
    """A piece of a running generation. ``tokens`` came with this step; ``text`` is what is safe to show so far, stop strings held back."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Completion:
    """A finished generation. ``tokens`` are all generated ones, an end token included; ``seconds`` counts from its first decode."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    draft: DraftCounts
    slot: int
    seconds: float
    model: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def to_openai(self, *, chat: bool = False) -> dict[str, Any]:
        """OpenAI's ``text_completion``, or ``chat.completion`` with ``chat``; draft counters under ``timings`` as llama-server has them."""
        finish = self.finish_reason if self.finish_reason in {"stop", "length"} else "stop"
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        if chat:
            choice["message"] = {"role": "assistant", "content": self.text}
        else:
            choice["text"] = self.text
        usage = self.usage
        result: dict[str, Any] = {
            "id": ("chatcmpl-" if chat else "cmpl-") + self.id,
            "object": "chat.completion" if chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": [choice],
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
                "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
            },
        }
        if self.draft.drafted:
            result["timings"] = {"draft_n": self.draft.drafted, "draft_n_accepted": self.draft.accepted}
        return result
