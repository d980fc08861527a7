"""A request's handle, held by several at once."""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import TYPE_CHECKING

import pytest

import pyllm
from pyllm import models
from pyllm.errors import ClosedError
from tests.conftest import prompt_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def llm() -> Iterator[pyllm.LLM]:
    with pyllm.LLM(models.make("llama"), ctx=1024, threads=1) as engine:
        yield engine


def ask(llm: pyllm.LLM) -> pyllm.engine.request.Request:
    return llm.submit(prompt_tokens(0, 20), max_tokens=100, temperature=0, ignore_eos=True)


def test_all_threads_that_wait_get_the_result(llm: pyllm.LLM) -> None:
    request = ask(llm)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(request.result, 30) for _ in range(4)]
        results = [one.result(timeout=40) for one in waiting]
    assert all(result is results[0] for result in results)
    assert request.poll() is request.result() is results[0]


def test_all_tasks_that_wait_get_the_result(llm: pyllm.LLM) -> None:
    """Those that iterate share the chunks; all of them end."""

    async def run() -> None:
        request = ask(llm)

        async def chunks() -> list[int]:
            return [token async for chunk in request for token in chunk.tokens]

        async def whole() -> pyllm.Completion:
            return await request

        first, second, third, one, other = await asyncio.wait_for(asyncio.gather(chunks(), whole(), chunks(), whole(), asyncio.to_thread(request.result)), 40)
        assert second is one is other
        assert len(first) + len(third) <= 100 == len(second.tokens)

    asyncio.run(run())


def test_all_get_the_error() -> None:
    with pyllm.LLM(models.make("llama"), ctx=4096, threads=1) as llm:
        request = llm.submit(prompt_tokens(0, 20), max_tokens=4000, temperature=0, ignore_eos=True)
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(request.result, 30) for _ in range(3)]
            llm.close()
            for one in waiting:
                with pytest.raises(ClosedError):
                    one.result(timeout=40)
