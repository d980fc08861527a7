"""Rows out of the inside of the target, for people who train drafters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pyllm.errors import InvalidArgumentError, LimitError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pyllm.engine.scheduler import Scheduler


@dataclass(frozen=True)
class HiddenStates:
    """Rows of all tokens, float32.

    ``layers[i]`` is the input of layer ``i``, shape ``[n_tokens, n_embd]``; ``nextn`` the rows before the output head, ``[n_tokens, n_embd_out]``, or None.
    """

    tokens: tuple[int, ...]
    layers: dict[int, NDArray[np.float32]]
    nextn: NDArray[np.float32] | None = None


def hidden_states(scheduler: Scheduler, tokens: list[int], layers: Sequence[int], *, nextn: bool) -> HiddenStates:
    """Compute ``tokens`` in an idle slot, which is empty afterwards, and take the rows.

    Raises:
        InvalidArgumentError: nothing is asked for.
        LimitError: all slots are busy.
        UnsupportedError: the architecture hands out no such rows.
    """
    if not layers and not nextn:
        raise InvalidArgumentError("neither layers nor nextn are asked for", "name layers, or set nextn=True")
    context, batch = scheduler.core.context, scheduler.core.batch
    slot = scheduler.pool.acquire([])
    if slot is None:
        raise LimitError(f"all {len(scheduler.pool.slots)} slots run requests", "wait for one, or use more slots")
    if scheduler.core.drafter is not None:
        scheduler.core.drafter.rest(rest=False)
    drafter_reads_nextn = context.has_tap()
    opened = []
    try:
        scheduler.admission.demote(slot, 0)
        scheduler.memory.clear(slot)
        for layer in layers:
            if not context.has_tap(layer):
                context.enable_layer_input(layer)
                opened.append(layer)
        if nextn and not drafter_reads_nextn:
            context.enable_nextn()
        rows: dict[int, list[NDArray[np.float32]]] = {layer: [] for layer in layers}
        last: list[NDArray[np.float32]] = []
        for begin in range(0, len(tokens), scheduler.core.info.n_batch):
            chunk = tokens[begin : begin + scheduler.core.info.n_batch]
            batch.clear()
            batch.add(slot.seq, begin, chunk, "last")
            context.decode(batch)
            for layer in layers:
                rows[layer].append(context.layer_input(layer))
            if nextn:
                last.extend(context.nextn(place) for place in range(len(chunk)))
    finally:
        for layer in opened:
            context.enable_layer_input(layer, enable=False)
        if nextn and not drafter_reads_nextn:
            context.enable_nextn(enable=False)
        scheduler.memory.clear(slot)
        scheduler.pool.release(slot)
    return HiddenStates(tuple(tokens), {layer: np.concatenate(rows[layer]) for layer in layers}, np.stack(last) if nextn else None)
