"""What can be done to slots between requests: save, restore, fork, erase; and to a request: suspend and resume."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from pyllm.checkpoints import Checkpoint, archive
from pyllm.config import SamplingParams, parse
from pyllm.engine.request import Request
from pyllm.engine.result import TokenLogprob
from pyllm.errors import InvalidArgumentError, LimitError, StateError
from pyllm.slots import Reach

if TYPE_CHECKING:
    import os

    from pyllm.engine.scheduler import Scheduler
    from pyllm.slots import Slot


def _idle(scheduler: Scheduler, seq: int, what: str) -> Slot:
    slots = scheduler.pool.slots
    if not 0 <= seq < len(slots):
        raise InvalidArgumentError(f"slot {seq} is not in [0, {len(slots)})", "LLM.slots() lists them")
    if slots[seq].held:
        raise InvalidArgumentError(f"slot {seq} runs a request and cannot be {what}", "wait for its result, or cancel it")
    return slots[seq]


def _take(scheduler: Scheduler, seq: int | None, what: str) -> Slot:
    """The slot ``seq``, else an empty one, else the least recently used; what it holds goes into the store."""
    if seq is not None:
        slot = _idle(scheduler, seq, what)
    else:
        free = [slot for slot in scheduler.pool.slots if slot.free]
        oldest = scheduler.pool.oldest()
        if not free and oldest is None:
            raise LimitError(f"all {len(scheduler.pool.slots)} slots run requests", "wait for one, or use more slots")
        slot = free[0] if free else oldest  # type: ignore[assignment]
    scheduler.admission.demote(slot, 0)
    return slot


def _own(scheduler: Scheduler, what: Checkpoint | str | os.PathLike[str]) -> Checkpoint:
    """A checkpoint, or what a file holds, that belongs to this engine and fits one of its slots."""
    facts = scheduler.core.facts
    if isinstance(what, Checkpoint):
        archive.check("the checkpoint", facts, what.facts)
    kept = what if isinstance(what, Checkpoint) else archive.read(what, facts)
    if len(kept.tokens) >= scheduler.core.n_ctx_slot:
        raise LimitError(f"the checkpoint holds {len(kept.tokens)} tokens, a slot holds {scheduler.core.n_ctx_slot}", "use a larger ctx")
    return kept


def checkpoint(scheduler: Scheduler, seq: int) -> Checkpoint:
    """An idle slot's conversation.

    Raises:
        InvalidArgumentError: no such slot, a slot that runs a request, or an empty one.
    """
    slot = _idle(scheduler, seq, "saved")
    if not slot.tokens:
        raise InvalidArgumentError(f"slot {seq} is empty", "save a slot that holds a conversation; LLM.slots() lists them")
    return _stamped(scheduler, slot)


def _stamped(scheduler: Scheduler, slot: Slot) -> Checkpoint:
    return replace(scheduler.admission.checkpoint(slot), facts=dict(scheduler.core.facts))


def save(scheduler: Scheduler, what: int | Checkpoint, path: str | os.PathLike[str]) -> None:
    """Write a slot or a checkpoint to a file; one of another engine stays that engine's."""
    archive.write(path, checkpoint(scheduler, what) if isinstance(what, int) else what)


def restore(scheduler: Scheduler, what: Checkpoint | str | os.PathLike[str], seq: int | None) -> int:
    """Load a checkpoint or its file into an idle slot and return the slot's number."""
    kept = _own(scheduler, what)
    slot = _take(scheduler, seq, "restored")
    scheduler.admission.load(slot, kept)
    scheduler.admission.fit()
    scheduler.pool.hold(slot)
    scheduler.pool.release(slot)
    return slot.seq


def fork(scheduler: Scheduler, seq: int, to: int | None) -> int:
    """Let another slot hold the same conversation; returns its number."""
    source = _idle(scheduler, seq, "forked")
    if seq == to:
        raise InvalidArgumentError(f"slot {seq} cannot be forked onto itself", "name another slot, or none")
    source.held = True  # it must not be chosen for its own copy
    try:
        slot = _take(scheduler, to, "overwritten")
    finally:
        source.held = False
    scheduler.memory.copy(source, slot, Reach(len(source.tokens)))
    scheduler.admission.fit()
    scheduler.pool.hold(slot)
    scheduler.pool.release(slot)
    return slot.seq


def erase(scheduler: Scheduler, seq: int) -> None:
    """Empty an idle slot."""
    scheduler.memory.clear(_idle(scheduler, seq, "erased"))


def suspend(scheduler: Scheduler, request: Request) -> Checkpoint:
    """Take a running generation out of its slot; the request ends with ``suspended``.

    Raises:
        InvalidArgumentError: it does not run, or has no token yet.
    """
    slot = request.slot
    if request not in scheduler.running or slot is None or not request.begun or request.sampler is None:
        raise InvalidArgumentError("the request is not generating", "suspend it after its first token and before its end")
    generation = {
        "prompt": request.prompt,
        "tokens": request.tokens,
        "pending": request.pending,
        "seed": request.seed,
        "grammar": request.grammar,
        "params": request.params.model_dump(mode="json", exclude_unset=True),
        "drafted": request.drafted,
        "accepted": request.accepted,
        "steps": request.steps,
        "logprobs": [asdict(one) for one in request.logprobs],
    }
    kept = replace(_stamped(scheduler, slot), generation=json.dumps(generation).encode(), sampler=request.sampler.state())
    request.emit([], "suspended")
    scheduler.leave(request)
    return kept


def resumed(scheduler: Scheduler, what: Checkpoint | str | os.PathLike[str], name: str) -> Request:
    """A request that goes on where a suspended one ended.

    Raises:
        StateError: the checkpoint holds no generation, or belongs to another engine.
        LimitError: it does not fit a slot.
    """
    kept = _own(scheduler, what)
    if not kept.generation:
        raise StateError("the checkpoint is a conversation without a running generation", "restore it, and send a request")
    try:
        return _request(scheduler, kept, json.loads(kept.generation), name)
    except (KeyError, TypeError, ValueError) as failure:
        raise StateError(f"the suspended generation cannot be read: {failure!r}", "it was not written by this version of pyllm") from failure


def _request(scheduler: Scheduler, kept: Checkpoint, values: dict[str, Any], name: str) -> Request:
    params = parse(SamplingParams, values["params"])
    if params.slot is not None and params.slot >= len(scheduler.pool.slots):
        # The engine that it was asked of had more of them.
        params = params.model_copy(update={"slot": None})
    request = Request(values["prompt"], params, name, values["grammar"])
    request.resumed = kept
    request.begun = True
    request.pending = values["pending"]
    request.seed = values["seed"]
    request.tokens = values["tokens"]
    request.drafted, request.accepted, request.steps = values["drafted"], values["accepted"], values["steps"]
    logprobs = [TokenLogprob(one["token"], one["logprob"], tuple((token, value) for token, value in one["top"])) for one in values["logprobs"]]
    request.go_on([scheduler.core.model.piece(token) for token in request.tokens], logprobs)
    return request
