"""Where a drafter is, and how much of the text it sees, apart from its target."""

from __future__ import annotations

from typing import Any

import pytest

import pyllm
from pyllm import models
from pyllm.engine import core
from pyllm.errors import PyllmError
from tests.conftest import prompt_tokens

SPEC: dict[str, Any] = {"types": "draft", "n_max": 3, "depth_control": False}


def engine(**spec: Any) -> pyllm.LLM:
    family = {"family": "successor"}
    return pyllm.LLM(models.make("llama", **family), draft=models.make("llama-draft", **family), spec=SPEC | spec, slots=2, ctx=1024, threads=1)


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [({}, (-1, ())), ({"gpu_layers": 0}, (0, ())), ({"gpu_layers": 1, "devices": ("CPU",)}, (1, ("CPU",)))],
)
def test_the_draft_model_is_placed_apart(spec: dict[str, Any], wanted: tuple[int, tuple[str, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The model that is loaded first is the drafter's."""
    placed = []

    class Recorded(core.Model):
        def __init__(self, path: Any, **settings: Any) -> None:
            placed.append((settings["gpu_layers"], settings["devices"]))
            super().__init__(path, **settings)

    monkeypatch.setattr(core, "Model", Recorded)
    with engine(**spec) as llm:
        assert llm.generate(prompt_tokens(0, 20), max_tokens=8, temperature=0).draft.accepted > 0
    assert placed == [wanted, (-1, ())]


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(PyllmError, match="NOPE") as refused:
        engine(devices=("NOPE",))
    assert refused.value.hint


def test_a_short_draft_context_sees_the_recent_past() -> None:
    """The text is the target's, and drafts go on behind the end of the drafter's context."""
    with engine() as llm:
        whole = llm.generate(prompt_tokens(0, 20), max_tokens=300, temperature=0, ignore_eos=True)
        assert llm.stats()["draft"]["drafters"][0]["n_ctx"] == 1024
    with engine(ctx=64) as llm:
        short = llm.generate(prompt_tokens(0, 20), max_tokens=300, temperature=0, ignore_eos=True)
        assert llm.stats()["draft"]["drafters"][0]["n_ctx"] < 1024
    assert short.tokens == whole.tokens
    assert short.draft.accepted > 100
