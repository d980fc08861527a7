"""Virtual clock for depth control: machines whose steps cost what a model says, and texts whose drafts are accepted by chance.

The control sees noisy times and accepted counts; the score is made of what the chosen depths cost and bring on average. So a
difference of 2 % can be tested without hours of steps.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


@dataclass(frozen=True)
class Machine:
    """Seconds of a step. ``flat`` rows cost as much as one; ``rows`` is of each row beyond; ``draft`` is (fixed, per token, per token and slot)."""

    base: float
    rows: float
    flat: int = 0
    draft: tuple[float, float, float] = (0.0, 0.0, 0.0)
    catchup: float = 0.0

    def decode(self, rows: int) -> float:
        return self.base + self.rows * max(0, rows - self.flat)

    def drafting(self, depths: Sequence[int]) -> float:
        deepest = max(depths)
        fixed, token, row = self.draft
        return fixed + deepest * (token + row * sum(d > 0 for d in depths)) if deepest else 0.0

    def step(self, depths: Sequence[int]) -> float:
        return self.decode(len(depths) + sum(depths)) + self.drafting(depths)


#: T(R) is nearly linear; milliseconds are those of a small model on few cores.
CPU = Machine(base=0.020, rows=0.006)
#: T(R) is flat up to 64 rows, then linear.
GPU = Machine(base=0.020, rows=0.0004, flat=64)


def with_drafter(machine: Machine, fixed: float, token: float, row: float = 0.0, catchup: float = 0.0) -> Machine:
    """``machine`` with a drafter whose costs are shares of the machine's step with one row."""
    one = machine.decode(1)
    return Machine(machine.base, machine.rows, machine.flat, (fixed * one, token * one, row * one), catchup * one)


@dataclass
class Score:
    """What the chosen depths cost and brought: true seconds, tokens on average, and the seconds of the same tokens without a draft."""

    seconds: float = 0.0
    tokens: float = 0.0
    seconds_off: float = 0.0
    steps: int = 0

    @property
    def speedup(self) -> float:
        """Over no speculation with the same slots."""
        return self.seconds_off / self.seconds

    @property
    def loss(self) -> float:
        return self.seconds - self.seconds_off


@dataclass
class Request:
    """``accept(position, generated)`` is the chance that a drafted token is accepted, given that those before it were."""

    seq: int
    length: int
    accept: Callable[[int, int], float]
    limit: int = 64
    generated: int = 0
    pending: int = 0


@dataclass
class Simulation:
    """Steps of the generating requests under a control, or with one depth for all."""

    machine: Machine
    control: Any
    seed: int = 0
    noise: float = 0.1
    outliers: float = 0.01
    slowdown: Callable[[int], float] = lambda _: 1.0
    active: list[Request] = field(default_factory=list)
    score: Score = field(default_factory=Score)
    history: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def start(self, request: Request) -> None:
        self.active.append(request)
        self.control.begin(request.seq)

    def measured(self, seconds: float) -> float:
        slow = 10.0 if self.random.random() < self.outliers else 1.0
        return seconds * slow * self.random.uniform(1.0 - self.noise, 1.0 + self.noise)

    def step(self) -> list[int]:
        requests = self.active
        seqs = [request.seq for request in requests]
        depths = self.control.choose(seqs, [request.limit for request in requests])
        slowdown = self.slowdown(self.score.steps)
        tokens = 0.0
        accepted = []
        for request, depth in zip(requests, depths, strict=True):
            chance, hits, running = 1.0, 0, True
            for position in range(depth):
                share = request.accept(position, request.generated)
                chance *= share
                tokens += chance
                running = running and self.random.random() < share
                hits += running
            accepted.append(hits)
        catchup = sum(max(0, request.pending) for request, depth in zip(requests, depths, strict=True) if depth)
        paused = sum(max(0, request.pending - depth - 1) for request, depth in zip(requests, depths, strict=True) if depth)
        rows = len(seqs) + sum(depths)
        decode = self.machine.decode(rows) * slowdown
        draft = (self.machine.drafting(depths) + self.machine.catchup * paused) * slowdown
        tokens += len(seqs)
        self.score.tokens += tokens
        self.score.seconds += decode + draft
        self.score.seconds_off += tokens * self.machine.decode(len(seqs)) * slowdown / len(seqs)
        self.score.steps += 1
        self.control.record(
            seqs, depths, accepted, seconds_draft=self.measured(draft) if draft else 0.0, seconds_decode=self.measured(decode), n_catchup=catchup
        )
        for request, depth, hits in zip(requests, depths, accepted, strict=True):
            request.pending = (0 if depth else request.pending) + 1 + hits
            request.generated += 1 + hits
        for request in [request for request in requests if request.generated >= request.length]:
            self.active.remove(request)
            self.control.end(request.seq)
        self.history.append(depths)
        return depths

    def run(self, requests: Iterable[Request]) -> Score:
        """All at once, until all are done."""
        for request in requests:
            self.start(request)
        while self.active:
            self.step()
        return self.score


def share(first: float, decay: float = 1.0) -> Callable[[int, int], float]:
    """Acceptance that does not change; each position is ``decay`` times as good as the one before."""
    return lambda position, _: first * decay**position


def changing(at: int, before: float, after: float) -> Callable[[int, int], float]:
    """Acceptance that changes once ``at`` tokens are generated."""
    return lambda _, generated: before if generated < at else after


def static_speedup(machine: Machine, slots: int, depth: int, accept: Callable[[int, int], float]) -> float:
    """Over no speculation, of one depth for all slots."""
    tokens, chance = 1.0, 1.0
    for position in range(depth):
        chance *= accept(position, 0)
        tokens += chance
    return tokens * machine.decode(slots) / machine.step([depth] * slots)
