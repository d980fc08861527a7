"""pyllm: a hardened llama.cpp for speculative serving, driven from Python.

>>> import pyllm
>>> with pyllm.LLM("gemma-4-E4B-it.gguf", draft="mtp-gemma-4-E4B-it.gguf", spec="mtp", slots=4, ctx=16384) as llm:
...     print(llm.generate("The capital of France is", max_tokens=8).text)

Errors are in :mod:`pyllm.errors`, settings in :mod:`pyllm.config`. The native library is loaded when the engine is first used,
so that settings, tiny models and scenarios can be handled without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyllm._version import __version__
from pyllm.config import EngineConfig, SamplingParams, SpecConfig
from pyllm.errors import PyllmError

if TYPE_CHECKING:
    from pyllm.engine import LLM, Chunk, Completion, Request

__all__ = ["LLM", "Chunk", "Completion", "EngineConfig", "PyllmError", "Request", "SamplingParams", "SpecConfig", "__version__"]


def __getattr__(name: str) -> Any:
    if name in {"LLM", "Chunk", "Completion", "Request"}:
        from pyllm import engine  # noqa: PLC0415 - the point of this function

        return getattr(engine, name)
    raise AttributeError(f"module 'pyllm' has no attribute {name!r}")
