"""What is only kept for later may fail without harm to anybody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyllm
from pyllm import models
from pyllm.errors import OutOfMemoryError
from pyllm.slots import Memory
from tests.conftest import prompt_tokens

if TYPE_CHECKING:
    import pytest

GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}


def _fails(*_: object, **__: object) -> None:
    raise OutOfMemoryError("no memory for a checkpoint")


def test_an_idle_conversation_that_cannot_be_put_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has to leave a full cache while two requests run: these go on, and it is computed again when it comes back."""
    prompts = [prompt_tokens(salt, 8) for salt in (1, 2)]
    with pyllm.LLM(models.make("llama"), slots=3, ctx=256, unified=True, threads=1) as llm:
        expected = [result.tokens for result in llm.generate(prompts, max_tokens=90, **GREEDY)]
        first = llm.generate(prompt_tokens(0, 100), max_tokens=4, cache_prompt=False, **GREEDY)
        monkeypatch.setattr(Memory, "save", _fails)
        results = llm.generate(prompts, max_tokens=90, cache_prompt=False, **GREEDY)
        assert [result.tokens for result in results] == expected
        assert llm.stats()["checkpoints"]["failed"] > 0
        monkeypatch.undo()
        assert llm.generate(prompt_tokens(0, 100), max_tokens=4, **GREEDY).tokens == first.tokens
        llm.check_integrity()


def test_a_checkpoint_within_a_prompt_that_cannot_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with pyllm.LLM(models.make("qwen35"), slots=2, ctx=1024, checkpoint_every=32, threads=1) as llm:
        expected = llm.generate(prompt_tokens(0, 100), max_tokens=8, **GREEDY)
        assert len(llm.slots()[expected.slot].marks) >= 3
        monkeypatch.setattr(Memory, "save", _fails)
        again = llm.generate(prompt_tokens(0, 100), max_tokens=8, cache_prompt=False, **GREEDY)
        assert again.tokens == expected.tokens
        assert llm.slots()[again.slot].marks == ()
        assert llm.stats()["checkpoints"]["failed"] >= 3
        llm.check_integrity()
