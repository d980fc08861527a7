"""The product that ``test_matrix`` plays: targets, drafters, slots, KV types, unified or not, context shift or not, programs; and the engine of each."""

from __future__ import annotations

import itertools
from typing import Any

import pyllm
from pyllm import models

#: Tokens of a slot, and of the beginning of a prompt that a context shift keeps.
CTX = 256
KEEP = 4

#: Target, drafter's type, drafter's recipe.
PAIRS: list[tuple[str, str, str | None]] = [
    ("llama", "dflash", "llama-dflash"),
    ("llama", "draft", "llama-draft"),
    ("llama", "ngram", None),
    ("gemma4", "mtp", "gemma4-assistant"),
    ("gemma4", "dflash", "gemma4-dflash"),
    ("gemma4-31b", "mtp", "gemma4-31b-assistant"),
    ("llama", "dflash", "llama-dflash-swa"),
    ("llama", "dflash", "llama-dflash2"),
    ("qwen35", "mtp", None),
    ("qwen35", "dflash", "qwen35-dflash"),
    ("qwen35", "ngram", None),
    ("nemotron-h-moe", "mtp", None),
    ("step35", "mtp", None),
    ("falcon-h1", "draft", "llama-draft"),
    ("falcon-h1", "ngram", None),
    ("qwen35", "mtp,ngram", None),
    ("gemma4-12b", "mtp", "gemma4-12b-assistant"),
    ("gemma4-31b", "dflash", "gemma4-31b-dflash"),
    ("qwen35", "dflash", "qwen35-dflash2"),
    ("nemotron-h", "dflash", "nemotron-h-dflash"),
    ("nemotron-h-moe", "dflash", "nemotron-h-moe-dflash"),
]
SLOTS = (1, 2, 8)
KV_TYPES = ("f16", "q8_0", "q4_0")
PROGRAMS = ("cold", "reuse", "restore", "restart")

Case = tuple[tuple[str, str, "str | None"], int, str, bool, bool, str]


def shifts(target: str, slots: int, unified: bool) -> bool:
    """Whether the target's memory can be shifted: neither recurrent state nor rotations per layer can, and windowed caches where both have one size."""
    return target == "llama" or (target.startswith("gemma4") and (slots == 1 or not unified))


def cases() -> list[Case]:
    """Every combination there is."""
    product = itertools.product(PAIRS, SLOTS, KV_TYPES, (False, True), (False, True), PROGRAMS)
    return [case for case in product if not case[4] or shifts(case[0][0], case[1], case[3])]


def rejects(case: Case) -> bool:
    """Whether drafts are verified by rejection sampling: in every other combination, along each of the axes."""
    pair, slots, kv_type, unified, shift, program = case
    places = (PAIRS.index(pair), SLOTS.index(slots), KV_TYPES.index(kv_type), unified, shift, PROGRAMS.index(program))
    return sum(places) % 2 == 1


def alone(case: Case) -> bool:
    """Whether prompts come one after the other: a slot of a unified cache is shifted when it has all cells, and then there are none for others."""
    return case[1] > 1 and case[3] and case[4]


def groups(case: Case, tokens: list[list[int]]) -> list[list[list[int]]]:
    """Prompts that are asked at once."""
    return [[prompt] for prompt in tokens] if alone(case) else [tokens]


def settings(case: Case) -> dict[str, Any]:
    """The engine of a case. With ``shift`` the answers run past the end of their slots."""
    _, slots, kv_type, unified, shift, _ = case
    sizes = {"slots": slots, "ctx": CTX if alone(case) else CTX * slots, "batch": 64, "ubatch": 32, "checkpoint_every": 48, "threads": 1}
    return sizes | {"kv_types": kv_type, "unified": unified, "context_shift": shift}


def drafting(case: Case, family: dict[str, Any], error_rate: object = None) -> pyllm.LLM:
    """It, with models of a family. ``error_rate`` is that of the drafter, in a file of its own or in the target's."""
    (target, kind, draft), *_ = case
    spec = {"types": kind, "n_max": 3, "depth_control": False, "ngram_size_n": 2, "ngram_size_m": 4, "verification": "rejection" if rejects(case) else "exact"}
    errs = family if error_rate is None else family | {"error_rate": error_rate}
    return pyllm.LLM(models.make(target, **(family if draft else errs)), draft=models.make(draft, **errs) if draft else None, spec=spec, **settings(case))
