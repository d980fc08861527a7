"""States that stay on the device."""

from __future__ import annotations

import numpy as np
import pytest

from pyllm import models
from pyllm._ffi import Batch, Context, Model
from pyllm.errors import StateError, UnsupportedError
from pyllm.slots import Memory
from tests.conftest import prompt_tokens


def logits(context: Context, batch: Batch, pos: int, tokens: list[int]) -> np.ndarray:
    batch.clear()
    first = batch.add(0, pos, tokens, "last")
    context.decode(batch)
    return context.logits(first + len(tokens) - 1)


@pytest.mark.parametrize("device", [False, True])
@pytest.mark.parametrize("target", ["falcon-h1", "gemma4"])
def test_back_to_before_a_block(target: str, device: bool) -> None:
    tokens = prompt_tokens(0, 40)
    with Model(models.make(target)) as model, Context(model, n_ctx=256) as context, Batch(context) as batch:
        logits(context, batch, 0, tokens[:20])
        before = context.state(0, partial=True, device=device)
        expected = logits(context, batch, 20, tokens[20:])
        context.set_state(0, before, partial=True, device=device)
        context.remove(0, 20)
        assert np.array_equal(logits(context, batch, 20, tokens[20:]), expected)


def test_only_the_last_state_is_on_the_device() -> None:
    with Model(models.make("falcon-h1")) as model, Context(model, n_ctx=256, n_seq_max=2) as context, Batch(context) as batch:
        logits(context, batch, 0, prompt_tokens(0, 20))
        old = context.state(0, partial=True, device=True)
        new = context.state(0, partial=True, device=True)
        for wrong, seq in ((old, 0), (new, 1), (b"", 0), (new[:8], 0)):
            with pytest.raises(StateError):
                context.set_state(seq, wrong, partial=True, device=True)
        context.set_state(0, new, partial=True, device=True)


def test_what_the_device_refuses_goes_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    state = Context.state

    def refusing(self: Context, seq: int, *, partial: bool = False, device: bool = False) -> bytes:
        if device:
            raise UnsupportedError("made up")
        return state(self, seq, partial=partial)

    with Model(models.make("falcon-h1")) as model, Context(model, n_ctx=256) as context, Batch(context) as batch:
        tokens = prompt_tokens(0, 40)
        logits(context, batch, 0, tokens[:20])
        memory = Memory(context, None, n_swa=0, recurrent=True)
        assert memory.before(0).device
        monkeypatch.setattr(Context, "state", refusing)
        before = memory.before(0)
        assert not before.device
        expected = logits(context, batch, 20, tokens[20:])
        memory.go_back(0, before, 20)
        assert np.array_equal(logits(context, batch, 20, tokens[20:]), expected)
