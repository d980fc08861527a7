"""What a step costs behind a long context: the device's time grows with it, the host's does not."""

from __future__ import annotations

import statistics
import time
from itertools import pairwise

import pytest

import pyllm
from pyllm import models
from tests.conftest import prompt_tokens

pytestmark = pytest.mark.gpu

LONG, SHORT = 60_000, 500


def step_seconds(llm: pyllm.LLM, length: int) -> float:
    """Median seconds between two tokens of one request whose prompt has ``length`` tokens."""
    chunks = llm.submit(prompt_tokens(1, length), max_tokens=200, temperature=0.0, ignore_eos=True)
    times = [time.perf_counter() for _ in chunks]
    return statistics.median(after - before for before, after in pairwise(times[20:]))


def test_a_step_behind_a_long_context_costs_the_host_no_more() -> None:
    """Of a model whose attention over it takes microseconds: a mask made cell by cell would take longer than all else in the step."""
    with pyllm.LLM(models.make("llama", family="successor"), ctx=LONG + 1024) as llm:
        step_seconds(llm, SHORT)
        short, long = step_seconds(llm, SHORT), step_seconds(llm, LONG)
    assert long < short + 150e-6
