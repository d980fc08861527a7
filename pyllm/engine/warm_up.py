"""Steps that nobody waits for: a GPU loads its kernels and captures its graphs, and depth control learns what steps and drafts cost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pyllm._ffi import devices
from pyllm.config import SamplingParams
from pyllm.engine.request import Request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyllm.engine.scheduler import Scheduler

#: Seconds after which no other kind of step is begun; one that is going on is ended. A CPU has nothing to load, and learns as it goes.
SECONDS = 2.0
SECONDS_CPU = 0.25

#: Steps of one kind: the first ones load and capture what later ones use.
UNTIMED = 3
TIMED = 2


def kinds(slots: int, depth: int) -> list[tuple[int, int]]:
    """Numbers of slots and depths to measure: doubling, both ends included, the cheapest first."""
    counts = sorted({*(2**power for power in range(slots.bit_length())), slots})
    depths = sorted({*(2**power - 1 for power in range((depth + 1).bit_length())), depth})
    return sorted(((count, deep) for count in counts for deep in depths), key=lambda kind: (kind[0] * (1 + kind[1]), kind[0]))


def warm_up(scheduler: Scheduler, seconds: float | None = None) -> None:
    """Take the steps, tell depth control of them, and leave the scheduler as it was. Without depth control there is nothing to learn."""
    control = scheduler.drafting.control
    if control is None:
        return
    if seconds is None:
        seconds = SECONDS if any(device.kind in {"gpu", "igpu"} for device in devices()) else SECONDS_CPU
    begin, row = time.perf_counter(), 0.0
    for count, depth in _possible(scheduler):
        rows = count * (1 + depth)
        # What a kind takes is not known before; it is no more for each row than the one before took, whose rows were fewer.
        if row and row * rows > seconds - (time.perf_counter() - begin):
            break
        times = _rehearse(scheduler, count, depth)
        for drafting, decoding in times[UNTIMED:]:
            control.measure(depth, count, seconds_draft=drafting, seconds_decode=decoding)
        row = sum(map(sum, times)) / rows
    for slot in scheduler.pool.slots:
        if slot.tokens:
            scheduler.memory.clear(slot)
        slot.last_used = 0
    scheduler.drafting.forget_counts()
    scheduler.n_steps = scheduler.n_prompt_tokens = scheduler.n_generated_tokens = 0


def _possible(scheduler: Scheduler) -> Iterator[tuple[int, int]]:
    """The kinds for which the slots have room."""
    core = scheduler.core
    for count, depth in kinds(core.info.n_seq_max, core.depth):
        length = (1 + UNTIMED + TIMED) * (1 + depth) + 4
        if length <= core.n_ctx_slot and count * length <= core.info.n_ctx:
            yield count, depth


def _rehearse(scheduler: Scheduler, count: int, depth: int) -> list[tuple[float, float]]:
    """Seconds of drafting and of the rest, of a few steps of ``count`` requests that draft ``depth`` tokens each."""
    vocab = scheduler.core.model.vocab
    token = vocab.bos if vocab.bos is not None else 0
    params = SamplingParams(max_tokens=(1 + UNTIMED + TIMED) * (1 + depth) + 1, temperature=0, ignore_eos=True, cache_prompt=False)
    requests = [Request([token, token], params, "") for _ in range(count)]
    for request in requests:
        scheduler.add(request)
    scheduler.step()
    with scheduler.drafting.rehearsal(depth) as times:
        for _ in range(UNTIMED + TIMED):
            scheduler.step()
    for request in requests:
        request.cancel()
    scheduler.step()
    return times
