"""Fixtures that more than one package's tests use: tiny models, written once into the cache."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from pyllm import models
from pyllm._ffi import Context, Model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# A shell starts background jobs with SIGINT ignored, and every child inherits that: tests that press Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def llama_path() -> Path:
    return models.make("llama")


@pytest.fixture(scope="session")
def llama(llama_path: Path) -> Iterator[Model]:
    with Model(llama_path) as model:
        yield model


@pytest.fixture
def make_context(llama: Model) -> Iterator[Callable[..., Context]]:
    """Contexts of the tiny llama, closed at the end of the test."""
    opened: list[Context] = []

    def make(model: Model | None = None, **settings: object) -> Context:
        opened.append(Context(model or llama, **({"n_ctx": 256, "n_batch": 64, "n_ubatch": 64} | settings)))
        return opened[-1]

    yield make
    for context in opened:
        context.close()


def prompt_tokens(salt: int, length: int) -> list[int]:
    """A prompt of visible tokens after BOS; another ``salt`` shares nothing but BOS with it."""
    return [1] + [270 + (salt * 37 + place * 13 + place * place * 7) % 200 for place in range(length - 1)]
