"""Depth control with costs that were measured before it starts, decodes that are cut into parts, and long rests."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest

from pyllm._ffi import Cut, DepthControl, DepthReason
from pyllm.errors import InvalidArgumentError, LimitError
from tests._ffi.step_simulation import CPU, GPU, Machine, Request, Simulation, changing, share, with_drafter

N_MAX = 8

#: A block drafter on a GPU, where a pass over the weights is most of a step, and one on a CPU, where rows are.
BLOCKS = {"gpu": with_drafter(GPU, fixed=0.25, token=0.0, catchup=0.01), "cpu": with_drafter(CPU, fixed=0.3, token=0.01, row=0.01)}

blocks = pytest.mark.parametrize("machine", BLOCKS.values(), ids=BLOCKS.keys())
slots = pytest.mark.parametrize("n", [1, 2, 4, 8, 16])


@dataclass
class Parted(Simulation):
    """A machine that pays for each part of a decode: sequences with as many rows each, that follow each other."""

    def parts(self, rows: dict[int, int]) -> list[int]:
        left, found = dict(rows), []
        while left:
            taken = [min(left)]
            while taken[-1] + 1 in left:
                taken.append(taken[-1] + 1)
            shortest = min(left[seq] for seq in taken)
            found.append(shortest * len(taken))
            left = {seq: count - shortest * (seq in taken) for seq, count in left.items() if count > shortest * (seq in taken)}
        return found

    def step(self) -> list[int]:
        seqs = [request.seq for request in self.active]
        depths = self.control.choose(seqs, [request.limit for request in self.active])
        seconds = sum(map(self.machine.decode, self.parts({seq: 1 + depth for seq, depth in zip(seqs, depths, strict=True)})))
        draft = self.machine.drafting(depths)
        accepted = []
        for request, depth in zip(self.active, depths, strict=True):
            chance, hits, running = 1.0, 0, True
            for position in range(depth):
                chance *= request.accept(position, request.generated)
                self.score.tokens += chance
                running = running and self.random.random() < request.accept(position, request.generated)
                hits += running
            accepted.append(hits)
            request.generated += 1 + hits
        self.score.tokens += len(seqs)
        self.score.seconds += seconds + draft
        self.score.seconds_off = self.score.tokens * sum(map(self.machine.decode, self.parts(dict.fromkeys(seqs, 1)))) / len(seqs)
        self.score.steps += 1
        self.control.record(
            seqs, depths, accepted, seconds_draft=self.measured(draft) if draft else 0.0, seconds_decode=self.measured(seconds), n_catchup=2 * len(seqs)
        )
        self.history.append(depths)
        return depths


def measured(machine: Machine, n: int, cut: Cut = Cut.ROWS, seed: int = 0, n_listen: int = 0) -> DepthControl:
    """A control that has been told of two steps of each kind, with the noise of a machine."""
    control, noise = DepthControl(n, N_MAX, cut, n_listen), random.Random(seed)
    for count in {1, 2, 4, 8, 16, n}:
        for depth in (0, 1, 3, 7, 8):
            for _ in range(2):
                if count <= n:
                    control.measure(
                        depth,
                        count,
                        seconds_draft=machine.drafting([depth] * count) * noise.uniform(0.9, 1.1),
                        seconds_decode=machine.decode(count * (1 + depth)) * noise.uniform(0.9, 1.1),
                    )
    return control


def run(simulation: Simulation, n: int, accept: object, steps: int) -> Simulation:
    for seq in range(n):
        simulation.start(Request(seq, 10**9, accept))
    for _ in range(steps):
        simulation.step()
    return simulation


@slots
def test_measured_costs_are_used_from_the_first_step(n: int) -> None:
    """On a GPU a draft of unknown acceptance is worth trying at once, and a good one is found to be one within a few steps."""
    simulation = run(Simulation(BLOCKS["gpu"], measured(BLOCKS["gpu"], n), noise=0.1), n, share(0.96), 8)
    assert min(simulation.history[0]) > 0
    assert simulation.score.speedup > 1.8 if n <= 4 else simulation.score.speedup > 1.3


@blocks
@slots
def test_a_wrong_drafter_is_off_after_a_few_steps(machine: Machine, n: int) -> None:
    """What it costs to find out is a few steps, and less than 3 % of the next two hundred."""
    for seed in range(3):
        simulation = run(Simulation(machine, measured(machine, n, seed=seed), seed), n, share(0.0), 300)
        assert simulation.score.loss <= 9 * machine.decode(n), seed
        assert simulation.score.speedup >= 0.97, seed
        assert sum(map(any, simulation.history[100:])) <= 12


@slots
def test_an_interruption_while_measuring_is_forgotten(n: int) -> None:
    """One of two steps of a kind took ten times as long: the shorter one counts."""
    machine = BLOCKS["gpu"]
    control = measured(machine, n)
    control.measure(7, n, seconds_draft=10 * machine.drafting([7] * n), seconds_decode=10 * machine.decode(8 * n))
    assert min(run(Simulation(machine, control), n, share(0.9), 4).history[-1]) > 0


@pytest.mark.parametrize("n", [2, 4, 8])
def test_depths_are_equal_where_parts_cost_a_pass_each(n: int) -> None:
    """Slots of different acceptance: each at its own depth would cost a pass over the weights for every length."""
    machine = BLOCKS["gpu"]
    simulation = Parted(machine, measured(machine, n, Cut.NEIGHBOURS))
    for seq in range(n):
        simulation.start(Request(seq, 10**9, share(0.95 if seq % 2 else 0.6)))
    for _ in range(300):
        simulation.step()
    even = sum(len(set(depths)) == 1 for depths in simulation.history)
    assert even >= 0.95 * len(simulation.history)
    assert simulation.score.speedup > 1.5


@pytest.mark.parametrize("n", [2, 4, 8])
def test_depths_are_the_slots_own_where_rows_cost_more(n: int) -> None:
    machine = with_drafter(Machine(base=0.001, rows=0.02), fixed=0.02, token=0.01)
    simulation = Parted(machine, measured(machine, n, Cut.NEIGHBOURS))
    for seq in range(n):
        simulation.start(Request(seq, 10**9, share(0.99 if seq == 0 else 0.0)))
    for _ in range(300):
        simulation.step()
    assert all(max(depths[1:]) == 0 for depths in simulation.history[-50:] if depths[0] > 0)


@pytest.mark.parametrize("accept", [share(0.0), share(0.6), share(0.96)])
@pytest.mark.parametrize("seqs", [[0, 1, 2, 3], [0, 2], [1, 2, 6, 7]])
@blocks
def test_never_slower_where_decodes_are_cut(machine: Machine, seqs: list[int], accept: object) -> None:
    for seed in range(2):
        simulation = Parted(machine, measured(machine, 8, Cut.NEIGHBOURS), seed)
        for seq in seqs:
            simulation.start(Request(seq, 10**9, accept))
        for _ in range(400):
            simulation.step()
        assert simulation.score.speedup >= 0.97, seed


def test_a_request_without_drafts_beside_others() -> None:
    """Its one row makes a part of the decode: that is weighed, and drafting the rest still pays where drafts are good."""
    machine = BLOCKS["gpu"]
    simulation = Parted(machine, measured(machine, 4, Cut.NEIGHBOURS))
    for seq in range(4):
        simulation.start(Request(seq, 10**9, share(0.96), limit=0 if seq == 3 else 64))
    for _ in range(100):
        simulation.step()
    assert simulation.history[-1][3] == 0
    assert simulation.score.speedup > 1.2


def test_a_long_rest_does_not_make_a_draft_unaffordable() -> None:
    """Rows of plain steps do not pile up: after thousands of them a drafter that has become good is still found."""
    machine = BLOCKS["gpu"]
    simulation = run(Simulation(machine, measured(machine, 1, n_listen=32)), 1, changing(6000, 0.0, 0.95), 5900)
    assert simulation.control.slot(0).reason in {DepthReason.OFF, DepthReason.PROBING}
    for _ in range(1500):
        simulation.step()
    assert simulation.history[-1][0] > 0


@slots
def test_a_drafter_that_is_wrong_rests(n: int) -> None:
    """Much of the time its rows need not be read; before it is tried they are, for as many steps as were asked."""
    machine = BLOCKS["gpu"]
    control = measured(machine, n, n_listen=32)
    simulation, rests = Simulation(machine, control), []
    for seq in range(n):
        simulation.start(Request(seq, 10**9, share(0.0)))
    for _ in range(2000):
        simulation.step()
        rests.append(control.rests)
    assert sum(rests[1000:]) >= 0.4 * len(rests[1000:])
    for step, depths in enumerate(simulation.history):
        if any(depths):
            assert not any(rests[max(0, step - 31) : step + 1]), step


def test_a_drafter_that_is_good_does_not_rest() -> None:
    control = DepthControl(2, N_MAX, n_listen=32)
    simulation = Simulation(BLOCKS["gpu"], control)
    for seq in range(2):
        simulation.start(Request(seq, 10**9, share(0.95)))
    for _ in range(500):
        simulation.step()
        assert not control.rests


def test_a_drafter_that_has_become_good_ends_its_rest() -> None:
    simulation = Simulation(BLOCKS["gpu"], DepthControl(1, N_MAX, n_listen=32))
    simulation.start(Request(0, 10**9, changing(2000, 0.0, 0.95)))
    while simulation.active[0].generated < 4000:
        simulation.step()
    assert simulation.history[-1][0] > 0


class Shortened:
    """A control that is told of steps which rest in one call."""

    def __init__(self, control: DepthControl) -> None:
        self.control, self.chosen, self.n_rested = control, False, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.control, name)

    def choose(self, seqs: list[int], limits: list[int]) -> list[int]:
        return [0] * len(seqs) if self.chosen else self.control.choose(seqs, limits)

    def record(self, *counts: list[int], seconds_decode: float, **others: Any) -> None:
        if self.control.rests:
            self.n_rested += 1
            self.chosen = self.control.rested(seconds_decode)
        else:
            self.control.record(*counts, seconds_decode=seconds_decode, **others)


@slots
def test_a_step_that_rests_is_one_call(n: int) -> None:
    """It does what a record and a choice do."""
    histories, costs = [], []
    for short in (False, True):
        control = DepthControl(n, N_MAX, n_listen=32)
        simulation = Simulation(BLOCKS["gpu"], Shortened(control) if short else control)
        for seq in range(n):
            simulation.start(Request(seq, 10**9, changing(1500, 0.0, 0.95)))
        for _ in range(3000):
            simulation.step()
        histories.append(simulation.history)
        costs.append(control.costs)
    assert simulation.control.n_rested >= 500
    assert histories[0] == histories[1]
    assert costs[0] == costs[1]


def test_a_step_that_does_not_rest_is_told_in_full() -> None:
    simulation = Simulation(BLOCKS["gpu"], control := DepthControl(2, N_MAX, n_listen=32))
    with pytest.raises(InvalidArgumentError, match="no choice of these slots rests"):
        control.rested(0.01)
    for seq in range(2):
        simulation.start(Request(seq, 10**9, share(0.0)))
    while not control.rests:
        simulation.step()
    with pytest.raises(InvalidArgumentError, match="no choice of these slots rests"):
        control.rested(0.01)  # it was recorded
    assert control.choose([0, 1], [64, 64]) == [0, 0]
    with pytest.raises(InvalidArgumentError, match="seconds"):
        control.rested(-1.0)
    assert control.rested(0.01)
    control.end(1)
    with pytest.raises(InvalidArgumentError, match="no choice of these slots rests"):
        control.rested(0.01)


@pytest.mark.parametrize(("chance", "skips"), [(0.0, True), (0.5, False)])
def test_prompts_are_skipped_for_a_drafter_that_is_wrong(chance: float, skips: bool) -> None:
    """One that is right, but does not pay, is tried on a new text at once: with its prompt."""
    control = measured(BLOCKS["cpu"], 8, n_listen=32)
    simulation, rests, skipped = Simulation(BLOCKS["cpu"], control), 0, 0
    for seq in range(8):
        simulation.start(Request(seq, 10**9, share(chance)))
    for _ in range(3000):
        simulation.step()
        rests += control.rests
        skipped += control.skips_prompts
        assert control.rests or not control.skips_prompts
    assert rests >= 300
    assert (skipped >= 0.9 * rests) if skips else skipped == 0


def test_what_is_no_step_is_refused() -> None:
    control = DepthControl(2, 4)
    for arguments, says in (({"depth": 5}, "depth 5"), ({"n_slots": 3}, "3 slots"), ({"seconds_draft": -1.0}, "seconds_draft"), ({"n_rows": 1}, "n_rows 1")):
        with pytest.raises((InvalidArgumentError, LimitError), match=says):
            control.measure(**({"depth": 1, "n_slots": 2, "seconds_draft": 0.0, "seconds_decode": 0.01} | arguments))
    with pytest.raises(InvalidArgumentError, match="cut 9"):
        DepthControl(2, 4, 9)  # type: ignore[arg-type]
    assert control.costs.n_steps == 0
