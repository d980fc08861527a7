"""Tokens per second with depth control against no speculation, for numbers of concurrent requests: both in one run, in turn."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pyllm.engine import LLM

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyllm.config import EngineConfig


@dataclass(frozen=True)
class Comparison:
    """``slots`` requests at once. Medians over rounds of tokens per second; ``ratio`` is the median of each round's own, ``ratio_range`` its extremes.

    ``accepted`` is the share of drafted tokens, ``depth`` the mean drafted per slot and step, ``probing`` the share of time lost to probes.
    """

    slots: int
    plain: float
    controlled: float
    ratio: float
    ratio_range: tuple[float, float]
    accepted: float
    depth: float
    probing: float
    same_tokens: bool

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


@dataclass(frozen=True)
class RowCost:
    """``seconds`` of a decode with ``rows`` rows, and what it is over that of one row: what a verified token costs on this machine."""

    rows: int
    seconds: float
    over_one: float


def prompts(count: int, length: int, n_vocab: int, salt: int) -> list[list[int]]:
    """Prompts that share no prefix, other ones for each ``salt``."""
    low, high = (259, n_vocab) if n_vocab > 300 else (1, n_vocab)
    return [[low + ((salt + 1) * 7919 + slot * 104729 + place * place * 31 + place * 17) % (high - low) for place in range(length)] for slot in range(count)]


def _run(llm: LLM, count: int, length: int, tokens: int, salt: int) -> tuple[float, list[tuple[int, ...]]]:
    texts = prompts(count, length, llm.model.info.n_vocab, salt)
    begin = time.perf_counter()
    results = llm.generate(texts, max_tokens=tokens, temperature=0.0, ignore_eos=True, cache_prompt=False)
    return count * tokens / (time.perf_counter() - begin), [result.tokens for result in results]


def compare(
    config: EngineConfig, slots: Sequence[int], *, prompt_tokens: int, tokens: int, rounds: int, progress: Callable[[str], None]
) -> tuple[list[Comparison], list[RowCost]]:
    """Run the workload with ``config`` and with the same without its drafter."""
    most = max(slots)
    sizes = {"slots": most, "ctx": config.ctx * most, "cache_bytes": 0}
    values = config.model_dump() | sizes
    found = []
    with LLM(**(values | {"spec": None, "draft": ()})) as plain, LLM(**values) as drafting:
        costs = row_costs(plain, most)
        for count in slots:
            # The first rounds are for learning what a step costs in this company.
            for llm in (plain, drafting):
                _run(llm, count, prompt_tokens, tokens, -1)
            before = drafting.stats()["draft"]
            pairs: list[tuple[float, float]] = []
            same = True
            for number in range(rounds):
                progress(f"{count} requests, round {number + 1} of {rounds}")
                done = {}
                for llm in (plain, drafting) if number % 2 == 0 else (drafting, plain):
                    done[llm is drafting] = _run(llm, count, prompt_tokens, tokens, number)
                pairs.append((done[False][0], done[True][0]))
                same = same and done[False][1] == done[True][1]
            after = drafting.stats()["draft"]
            drafted = after["drafted"] - before["drafted"]
            accepted = after["accepted"] - before["accepted"]
            control = after["control"]
            ratios = [ours / theirs for theirs, ours in pairs]
            found.append(
                Comparison(
                    slots=count,
                    plain=statistics.median(rate for rate, _ in pairs),
                    controlled=statistics.median(rate for _, rate in pairs),
                    ratio=statistics.median(ratios),
                    ratio_range=(min(ratios), max(ratios)),
                    accepted=accepted / drafted if drafted else 0.0,
                    depth=drafted / max(1, rounds * count * tokens - accepted),
                    probing=control["seconds_probing"] / control["seconds"] if control and control["seconds"] else 0.0,
                    same_tokens=same,
                )
            )
    return found, costs


def row_costs(llm: LLM, slots: int, repeats: int = 15) -> list[RowCost]:
    """Median seconds of one decode by rows of one sequence: what a verification of that width costs."""

    def measure(scheduler: Any) -> list[RowCost]:
        core = scheduler.core
        slot = scheduler.pool.slots[0]
        scheduler.memory.clear(slot)
        costs: list[RowCost] = []
        for rows in (1, 2, 3, 4, 6, 8, 12, 16):
            if rows > min(core.info.n_batch, slots * 8):
                break
            times = []
            for _ in range(repeats):
                core.batch.clear()
                core.batch.add(0, 0, [1] * rows, "last")
                begin = time.perf_counter()
                core.context.decode(core.batch)
                core.context.logits(rows - 1)
                times.append(time.perf_counter() - begin)
                core.context.remove(0)
            seconds = statistics.median(times)
            costs.append(RowCost(rows, seconds, seconds / (costs[0].seconds if costs else seconds)))
        return costs

    return llm._call(measure)  # noqa: SLF001 - measured on the thread that owns the contexts
