"""Tokens per second with depth control against no speculation, for numbers of concurrent requests: both in one run, in turn."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pyllm.bench.decode import Workload, prompts
from pyllm.bench.turns import Engine, seconds_in_turn
from pyllm.config import EngineConfig, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyllm.engine.scheduler import Scheduler


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


def compare(
    config: EngineConfig, slots: Sequence[int], *, prompt_tokens: int, tokens: int, rounds: int, progress: Callable[[str], None]
) -> tuple[list[Comparison], list[RowCost]]:
    """Run the workload with ``config`` and with the same without its drafter, in turns of a fraction of a second."""
    most = max(slots)
    values = config.model_dump() | {"slots": most, "ctx": config.ctx * most, "cache_bytes": 0}
    found = []
    with Engine(parse(EngineConfig, values | {"spec": None, "draft": ()})) as plain, Engine(parse(EngineConfig, values)) as drafting:
        n_vocab = plain.ask("n_vocab")
        costs = plain.ask(row_costs, most)
        for count in slots:
            work = Workload(count, prompt_tokens, tokens, rounds)
            # The first round is for learning what a step costs in this company.
            seconds_in_turn((plain, drafting), prompts(work, n_vocab, -1), tokens)
            before = drafting.ask("drafting")
            pairs: list[tuple[float, float]] = []
            same = True
            for number in range(rounds):
                progress(f"{count} requests, round {number + 1} of {rounds}")
                # Who goes first alternates.
                order = (plain, drafting) if number % 2 == 0 else (drafting, plain)
                seconds = dict(zip(order, seconds_in_turn(order, prompts(work, n_vocab, number), tokens), strict=True))
                pairs.append((count * tokens / seconds[plain], count * tokens / seconds[drafting]))
                texts = [engine.ask("tokens") for engine in order]
                same = same and texts[0] == texts[1]
            after = drafting.ask("drafting")
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


def row_costs(scheduler: Scheduler, slots: int, repeats: int = 15) -> list[RowCost]:
    """Median seconds of one decode by rows of one sequence: what a verification of that width costs."""
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
