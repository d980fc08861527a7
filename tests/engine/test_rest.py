"""A drafter that rests costs a step nothing that grows with the slots, and nothing of the target."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import closing
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from pyllm import models
from pyllm._ffi.door import lib
from pyllm.config import EngineConfig, SamplingParams
from pyllm.engine import scheduler
from pyllm.engine.core import Core
from pyllm.engine.request import Request
from pyllm.engine.scheduler import Scheduler
from tests.conftest import prompt_tokens


class CountingLib:
    """The native library, with a count of its calls by name."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        call = getattr(lib, name)
        if not callable(call):
            return call

        def counted(*arguments: Any) -> Any:
            self.calls[name] += 1
            return call(*arguments)

        return counted


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> CountingLib:
    """All steps take as long on the engine's clock: what it chooses follows from its drafts alone."""
    counting = CountingLib()
    for name, module in list(sys.modules.items()):
        if name.startswith("pyllm._ffi.") and getattr(module, "lib", None) is lib:
            monkeypatch.setattr(module, "lib", counting)
    ticks = count()
    monkeypatch.setattr(scheduler, "time", SimpleNamespace(perf_counter=lambda: next(ticks) / 1000))
    return counting


class Engine:
    """A scheduler whose drafter is always wrong, or has none."""

    def __init__(self, slots: int, *, drafts: bool) -> None:
        draft = {"draft": models.make("llama-dflash", family="successor", error_rate=1), "spec": "dflash"} if drafts else {}
        config = EngineConfig(model=models.make("llama", family="successor"), slots=slots, ctx=1024 * slots, threads=1, cache_bytes=0, **draft)
        self.core = Core(config)
        self.scheduler = Scheduler(self.core, config)

    def close(self) -> None:
        self.core.close()

    def start(self, number: int, max_tokens: int = 900) -> Request:
        request = Request(prompt_tokens(number, 40), SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True, cache_prompt=False), "")
        self.scheduler.add(request)
        return request

    def rests(self) -> bool:
        control = self.scheduler.drafting.control
        return control is not None and control.rests

    def rest(self) -> None:
        """Steps until the drafter rests, and one more."""
        for _ in range(600):
            self.scheduler.step()
            if self.rests():
                break
        assert self.rests()
        self.scheduler.step()


def calls_of_a_step(native: CountingLib, slots: int, *, drafts: bool) -> Counter[str]:
    with closing(Engine(slots, drafts=drafts)) as engine:
        for number in range(slots):
            engine.start(number)
        if drafts:
            engine.rest()
        for _ in range(3):
            engine.scheduler.step()
        native.calls.clear()
        engine.scheduler.step()
        found = Counter(native.calls)
        # Asked once for each token of the vocabulary.
        del found["pyllm_model_token_to_piece"], found["pyllm_model_token_is_eog"]
        assert engine.rests() == drafts
    return found


@pytest.mark.parametrize("slots", [1, 8])
def test_a_step_makes_the_calls_of_one_without_a_drafter(native: CountingLib, slots: int) -> None:
    """But for two, however many slots there are: the drafter hears of the tokens, depth control of the time."""
    without = calls_of_a_step(native, slots, drafts=False)
    resting = calls_of_a_step(native, slots, drafts=True)
    assert without["pyllm_sampler_verify"] == slots
    assert resting - without == Counter(pyllm_drafter_process=1, pyllm_depth_rested=1)
    assert not without - resting


def test_prompts_are_not_read_either(native: CountingLib) -> None:
    """What was read of them would lie behind a gap before it was used."""
    with closing(Engine(10, drafts=True)) as engine:
        assert engine.core.drafter is not None
        for number in range(8):
            engine.start(number)
        engine.rest()
        injected = engine.core.drafter.n_injected
        request = engine.start(8)
        while not request.tokens:
            engine.scheduler.step()
        assert request.slot is not None
        free = next(slot for slot in engine.scheduler.pool.slots if not slot.tokens)
        assert engine.rests()
        assert engine.core.drafter.n_injected == injected
        assert len(engine.core.drafter.state(request.slot.seq)) == len(engine.core.drafter.state(free.seq))


def test_texts_are_those_without_a_drafter(native: CountingLib) -> None:
    """Rests, what is read after them, probes, and slots that come and go meanwhile."""
    texts = []
    for drafts in (False, True):
        with closing(Engine(3, drafts=drafts)) as engine:
            requests = [engine.start(number, 150 + 90 * number) for number in range(6)]
            rested = heard = 0
            while engine.scheduler.busy:
                engine.scheduler.step()
                engine.scheduler.check_integrity()
                rested += engine.rests()
                heard += drafts and not engine.rests()
            texts.append([request.tokens for request in requests])
            assert not drafts or (rested >= 100 and heard >= 100)
    assert texts[0] == texts[1]
