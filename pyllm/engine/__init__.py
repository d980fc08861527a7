"""The engine: Python decides, native executes.

``llm`` is the face; ``worker`` the one thread that owns the contexts; ``scheduler`` batches requests over the slots; ``core``
holds the native handles; ``request``, ``text`` and ``result`` are one generation; ``chat`` renders templates.
"""

from pyllm.engine.llm import LLM
from pyllm.engine.request import Request
from pyllm.engine.result import Chunk, Completion, DraftCounts, Usage

__all__ = ["LLM", "Chunk", "Completion", "DraftCounts", "Request", "Usage"]
