"""A soak: a scheduler driven for many cycles by random events, checked after every one, and reproducible from its seed."""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import resource
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyllm import models
from pyllm.checkpoints import Checkpoint
from pyllm.config import EngineConfig, SamplingParams, parse
from pyllm.engine import conversations
from pyllm.engine.core import Core
from pyllm.engine.request import Request
from pyllm.engine.scheduler import Scheduler
from pyllm.errors import InternalError, PyllmError, StateError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Chance of each event in a cycle.
EVENTS = {"arrive": 0.2, "cancel": 0.01, "save": 0.01, "restore": 0.01, "fork": 0.01, "erase": 0.01, "suspend": 0.006, "resume": 0.006}

#: Cycles of a phase. In every other one nothing arrives: slots fall idle, and can be saved, restored, forked and erased.
PHASE = 150

#: Requests that may wait at once, checkpoints that are kept aside (of conversations, and of suspended requests: these are the caller's memory, and in no
#: budget), and the longest prompt as a share of a slot.
MOST_WAITING = 6
MOST_KEPT = 4
LONGEST = 0.7

#: Which part of all cycles each engine takes: a step of the first and the last is the quicker one.
SHARES = {"llama, dflash, shifted": 0.35, "gemma4, mtp, unified": 0.15, "qwen35, mtp": 0.15, "falcon-h1, ngram": 0.35}

#: What the last quarter's memory may be over the second's. In fewer cycles the store is still filling.
MOST_GROWTH = 0.02
LEAST_CYCLES = 10_000

#: Moments at which memory is looked at, each a few microseconds.
SAMPLES = 4000


@dataclass
class Soak:
    """What came of ``cycles`` steps. ``digest`` covers every token in order.

    ``resident`` is the mean resident memory in bytes of each quarter, over a thousand moments; ``kept`` is the part of it in checkpoints that only the driver
    holds. It keeps up to eight, of any age, which comes and goes by a tenth of all memory for thousands of cycles: ``growth`` is about the rest, which is
    what the engine answers for.

    ``evicted`` conversations fell out of the store, ``copied`` prefixes came from another slot, ``restored`` ones from the store.
    """

    seed: int
    cycles: int = 0
    events: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    shifts: int = 0
    evicted: int = 0
    copied: int = 0
    restored: int = 0
    resident: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()
    seconds: float = 0.0
    digest: str = ""

    def to_json(self) -> dict[str, Any]:
        """All fields, and the growth of memory."""
        # `asdict` takes a Counter for a list of pairs.
        plain = {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}
        return plain | {"growth": self.growth}

    @property
    def engine(self) -> tuple[int, ...]:
        """Mean resident memory in bytes of each quarter without what the driver keeps."""
        return tuple(resident - kept for resident, kept in zip(self.resident, self.kept, strict=True))

    @property
    def growth(self) -> float:
        """The engine's memory in the last quarter over that in the second, less one."""
        return self.engine[3] / self.engine[1] - 1

    def check_memory(self) -> None:
        """Memory does not grow.

        Raises:
            InternalError: with the numbers.
        """
        if self.cycles >= LEAST_CYCLES and self.growth > MOST_GROWTH:
            second, last = (self.engine[quarter] >> 20 for quarter in (1, 3))
            raise InternalError(
                f"memory grows: {second} MiB in the second quarter of {self.cycles} cycles, {last} MiB in the last", f"repeat it with seed {self.seed}"
            )


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def engines() -> dict[str, EngineConfig]:
    """The engines of a soak, by name: every kind of memory, with a drafter of another kind each. Depth control is off: it reads the clock."""
    family: dict[str, Any] = {"family": "successor", "error_rate": 0.25}
    kinds: dict[str, dict[str, Any]] = {
        "llama, dflash, shifted": {"target": "llama", "draft": "llama-dflash", "types": "dflash", "context_shift": True},
        "gemma4, mtp, unified": {"target": "gemma4", "draft": "gemma4-assistant", "types": "mtp", "unified": True},
        "qwen35, mtp": {"target": "qwen35", "types": "mtp"},
        "falcon-h1, ngram": {"target": "falcon-h1", "types": "ngram"},
    }
    found = {}
    for name, kind in kinds.items():
        draft = kind.pop("draft", None)
        spec = {"types": kind.pop("types"), "n_max": 3, "depth_control": False}
        drafts = {} if draft is None else {"draft": models.make(draft, **family)}
        target = models.make(kind.pop("target"), **(family if spec["types"] == "mtp" and draft is None else {"family": "successor"}))
        sizes = {"slots": 4, "ctx": 4 * 256, "batch": 128, "ubatch": 64, "checkpoint_every": 64, "cache_bytes": 2**22, "threads": 1}
        found[name] = parse(EngineConfig, {"model": target, "spec": spec} | drafts | sizes | kind)
    return found


class _Driver:
    """One engine under random events. ``successor`` is what follows each token at temperature 0."""

    def __init__(self, config: EngineConfig, seed: int, successor: Sequence[int]) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - a test's events, not a secret
        self.core = Core(config)
        self.scheduler = Scheduler(self.core, config)
        self.successor = successor
        self.open: list[Request] = []
        self.aside: list[Checkpoint | Path] = []
        self.paused: list[Checkpoint] = []
        self.came_back: dict[Request, int] = {}
        """Generations that go on again, and how many tokens they had then."""
        self.folder = tempfile.TemporaryDirectory(prefix="pyllm-soak-")
        self.result = Soak(seed)
        self.hash = hashlib.sha256()
        self.bases = [self._words(self.chance.randint(20, 60)) for _ in range(6)]

    def _words(self, length: int) -> list[int]:
        return [self.chance.randrange(270, 350) for _ in range(length)]

    def cycle(self) -> None:
        """Perhaps some events, one step, all checks."""
        for name, probability in EVENTS.items():
            if self.chance.random() < probability:
                try:
                    done = getattr(self, f"_{name}")()
                except PyllmError as refusal:
                    if isinstance(refusal, InternalError):
                        raise
                    name, done = f"{name} refused", True  # noqa: PLW2901 - counted as what it was
                self.result.events[name] += bool(done)
        self.scheduler.step()
        self.scheduler.check_integrity()
        self._collect()
        self.result.cycles += 1

    def _arrive(self) -> bool:
        if len(self.scheduler.waiting) >= MOST_WAITING or self.result.cycles // PHASE % 2:
            return False
        longest = int(self.core.n_ctx_slot * LONGEST)
        base = self.chance.choice(self.bases)
        prompt = [1, *base, *self._words(self.chance.choice([1, 5, 30, longest]))][:longest]
        params = SamplingParams(
            max_tokens=self.chance.choice([1, 4, 20, 20, 60, 60, self.core.n_ctx_slot * 2]),
            temperature=self.chance.choice([0.0, 1.0]),
            seed=self.chance.randrange(2**32),
            ignore_eos=True,
            speculate=self.chance.random() < 0.9,
            draft_depth=self.chance.choice([None, None, 1, self.core.depth]),
            cache_prompt=self.chance.random() < 0.8,
            keep=self.chance.choice([0, 4]),
            priority=self.chance.choice([0, 0, 1]),
        )
        request = Request(prompt, params, "soak")
        self.scheduler.add(request)
        self.open.append(request)
        return True

    def _pick(self, requests: Sequence[Request]) -> Request | None:
        return self.chance.choice(requests) if requests else None

    def _cancel(self) -> bool:
        request = self._pick(self.open)
        if request is not None:
            request.cancel()
        return request is not None

    def _slot(self) -> int:
        return self.chance.randrange(len(self.scheduler.pool.slots))

    def _save(self) -> bool:
        """Into memory, or into one of a few files."""
        seq = self._slot()
        if self.chance.random() < 0.5:
            kept: Checkpoint | Path = conversations.checkpoint(self.scheduler, seq)
        else:
            kept = Path(self.folder.name) / str(self.chance.randrange(MOST_KEPT))
            conversations.save(self.scheduler, seq, kept)
        self.aside = [*self.aside, kept][-MOST_KEPT:]
        return True

    def _restore(self) -> bool:
        if self.aside:
            conversations.restore(self.scheduler, self.chance.choice(self.aside), None)
        return bool(self.aside)

    def _fork(self) -> bool:
        conversations.fork(self.scheduler, self._slot(), None)
        return True

    def _erase(self) -> bool:
        conversations.erase(self.scheduler, self._slot())
        return True

    def _suspend(self) -> bool:
        able = [request for request in self.scheduler.running if request.begun] if len(self.paused) < MOST_KEPT else []
        request = self._pick(able)
        if request is not None:
            self.paused.append(conversations.suspend(self.scheduler, request))
        return request is not None

    def _resume(self) -> bool:
        if not self.paused:
            return False
        request = conversations.resumed(self.scheduler, self.paused.pop(0), "soak")
        self.scheduler.add(request)
        self.open.append(request)
        self.came_back[request] = len(request.tokens)
        return True

    def _collect(self) -> None:
        """Requests that have ended: each with an answer, and at temperature 0 the one that it has to be."""
        for request in list(self.open):
            done = request.poll()
            if done is None:
                continue
            self.open.remove(request)
            had = self.came_back.pop(request, None)
            if isinstance(done, PyllmError):
                if isinstance(done, InternalError | StateError):
                    raise done
                if had == len(request.tokens):
                    raise InternalError(f"a suspended generation is lost: {done}")
                self.result.ends[type(done).__name__] += 1
                continue
            self.result.ends[done.finish_reason] += 1
            self.result.tokens += len(done.tokens)
            self.result.drafted += done.draft.drafted
            self.result.accepted += done.draft.accepted
            self.hash.update(repr((done.finish_reason, done.tokens, done.draft.drafted, done.draft.accepted)).encode())
            if request.params.temperature == 0:
                for left, right in zip([request.prompt[-1], *done.tokens], done.tokens, strict=False):
                    if self.successor[left] != right:
                        raise InternalError(f"token {right} follows {left}, {self.successor[left]} has to")

    def kept(self) -> int:
        """Bytes of the checkpoints that the driver holds and the engine does not: states may belong to both."""
        engine = {id(mark) for slot in self.scheduler.pool.slots for mark in slot.marks}
        engine |= {id(state) for entry in self.scheduler.admission.store for state in (entry.state, *entry.marks)}
        held = {id(state): state.size for each in [*self.aside, *self.paused] if isinstance(each, Checkpoint) for state in (each.state, *each.marks)}
        return sum(size for state, size in held.items() if state not in engine)

    def drain(self) -> None:
        """No more events; everything that is open ends.

        Raises:
            InternalError: a request is lost.
        """
        while self.paused:
            self._resume()
        for _ in range(200_000):
            if not self.scheduler.busy:
                break
            self.scheduler.step()
            self._collect()
        if self.open or self.scheduler.busy:
            raise InternalError(f"{len(self.open)} requests never ended")
        if self.scheduler.admission.n_failed:
            raise InternalError(f"{self.scheduler.admission.n_failed} checkpoints could not be taken")

    def close(self) -> None:
        """Free the engine and its files."""
        self.core.close()
        self.folder.cleanup()


def soak_all(cycles: int, seed: int, jobs: int = 1) -> Iterator[tuple[str, Soak]]:
    """Soak every engine in a process of its own, ``jobs`` of them at once: what one leaves in memory is not the next one's. As they end."""
    work = [(name, max(4, round(cycles * share)), seed) for name, share in SHARES.items()]
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=1) as pool:
        yield from pool.imap_unordered(_one, work)


def _one(work: tuple[str, int, int]) -> tuple[str, Soak]:
    name, cycles, seed = work
    return name, soak(engines()[name], cycles, seed)


def soak(config: EngineConfig, cycles: int, seed: int, *, family_seed: int = 0) -> Soak:
    """Drive an engine of a successor model for ``cycles`` steps.

    Raises:
        InternalError: a slot, a memory or a text is not what it has to be, or a request is lost; with the cycle.
    """
    driver = _Driver(config, seed, [int(token) for token in models.successor(family_seed)])
    begin = time.perf_counter()
    # Sums: a list of samples would be memory that grows.
    quarters = [[0, 0, 0] for _ in range(4)]
    try:
        for number in range(cycles):
            driver.cycle()
            if number % max(1, cycles // SAMPLES) == 0:
                quarter = quarters[number * 4 // cycles]
                quarter[:] = [had + new for had, new in zip(quarter, (1, _resident(), driver.kept()), strict=True)]
        driver.drain()
    except PyllmError as failure:
        raise InternalError(f"cycle {driver.result.cycles} of seed {seed}: {failure.message}") from failure
    finally:
        driver.close()
    result = driver.result
    result.seconds = time.perf_counter() - begin
    result.resident = tuple(resident // count for count, resident, _ in quarters)
    result.kept = tuple(kept // count for count, _, kept in quarters)
    result.shifts = driver.scheduler.n_shifts
    admission = driver.scheduler.admission
    result.evicted, result.copied, result.restored = admission.store.n_evicted, admission.n_copied, admission.n_restored
    result.digest = driver.hash.hexdigest()
    return result
