"""Depth control: how many tokens each generating slot drafts, from measured steps."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from pyllm._ffi.door import Handle, check, ffi, lib, text_of
from pyllm.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence


class DepthReason(IntEnum):
    """Why a slot drafts as deep as it does."""

    IDLE = lib.PYLLM_DEPTH_IDLE
    LEARNING = lib.PYLLM_DEPTH_LEARNING
    LIMITED = lib.PYLLM_DEPTH_LIMITED
    OFF = lib.PYLLM_DEPTH_OFF
    DRAFTING = lib.PYLLM_DEPTH_DRAFTING
    PROBING = lib.PYLLM_DEPTH_PROBING
    BASELINE = lib.PYLLM_DEPTH_BASELINE


class Cut(IntEnum):
    """How a decode of several sequences is cut into micro-batches, each a pass over the model's weights.

    ``ROWS``: not at all. ``EQUAL``: as many rows of each sequence in a part. ``NEIGHBOURS``: the same, and only sequences that follow each other.
    """

    ROWS = lib.PYLLM_CUT_ROWS
    EQUAL = lib.PYLLM_CUT_EQUAL
    NEIGHBOURS = lib.PYLLM_CUT_NEIGHBOURS


@dataclass(frozen=True)
class DepthSlot:
    """A slot's last choice.

    ``rate`` and ``rate_off`` are tokens per second of this slot, as expected at ``depth`` and if no slot drafted; 0 is not known.
    ``acceptance[k]`` is the chance that the first ``k + 1`` tokens of a draft are accepted. ``text`` is the reason with its numbers.
    """

    depth: int
    reason: DepthReason
    rate: float
    rate_off: float
    acceptance: tuple[float, ...]
    text: str


@dataclass(frozen=True)
class DepthCosts:
    """Measured durations in seconds, outliers aside, and what probes have cost.

    ``decode`` is by rows, ``draft`` by (depth, drafting slots); ``catchup_row`` is for one row that a drafter takes over after a pause.
    ``seconds_probing``, of ``seconds`` in total, is the time lost to probes: negative where they have won.
    """

    decode: dict[int, float]
    draft: dict[tuple[int, int], float]
    catchup_row: float
    n_steps: int
    n_probes: int
    seconds: float
    seconds_probing: float


class DepthControl(Handle):
    """Chooses depths for up to ``n_seq`` slots that draft up to ``n_max`` tokens each (``pyllm_depth``). ``cut`` is the target's way to cut a decode.

    A drafter that rested has to read ``n_listen`` steps before it is tried again; with 0 it never rests.

    It has no clock and no randomness: the same records give the same depths.

    Raises:
        InvalidArgumentError: ``n_seq`` out of range.
        LimitError: ``n_max`` outside [1, 64].
    """

    kind = "depth control"
    free = "pyllm_depth_free"

    def __init__(self, n_seq: int, n_max: int, cut: Cut = Cut.ROWS, n_listen: int = 0) -> None:
        out = ffi.new("pyllm_depth **")
        check(lib.pyllm_depth_create(n_seq, n_max, cut, n_listen, out))
        super().__init__(out[0])
        # Room for one step, so that a step allocates nothing.
        self._room = n_seq
        self._seqs = ffi.new("int32_t[]", n_seq)
        self._limits = ffi.new("int32_t[]", n_seq)
        self._depths = ffi.new("int32_t[]", n_seq)
        self._drafted = ffi.new("int32_t[]", n_seq)
        self._accepted = ffi.new("int32_t[]", n_seq)
        self._rests = ffi.new("bool *")
        self._skips = ffi.new("bool *")
        self._step = ffi.new("pyllm_depth_step *")
        self._step.seqs = self._seqs
        self._step.drafted = self._drafted
        self._step.accepted = self._accepted

    def measure(self, depth: int, n_slots: int, *, seconds_draft: float, seconds_decode: float, n_rows: int = 0) -> None:
        """What a step costs that belongs to no request: ``n_slots`` drafts of ``depth`` tokens, and one decode of ``n_rows`` rows.

        Left out, ``n_rows`` is ``n_slots * (1 + depth)``.

        Raises:
            InvalidArgumentError: a number out of range.
        """
        rows = n_rows or n_slots * (1 + depth)
        check(lib.pyllm_depth_measure(self._pointer, depth, n_slots, rows, seconds_draft, seconds_decode))

    def begin(self, seq: int, n_catchup: int = 0) -> None:
        """A slot starts to generate. Its first draft has to take over ``n_catchup`` rows, such as those of a prompt that were deferred."""
        check(lib.pyllm_depth_begin(self._pointer, seq, n_catchup))

    def end(self, seq: int) -> None:
        """A slot has stopped; ending it twice is silent."""
        check(lib.pyllm_depth_end(self._pointer, seq))

    def choose(self, seqs: Sequence[int], limits: Sequence[int]) -> list[int]:
        """Depths for the next step of these slots; ``limits[i]`` is the most that ``seqs[i]`` may draft, 0 for nothing.

        The answer stays the same until the next :meth:`record`.

        Raises:
            InvalidArgumentError: a slot that is unknown, not generating or given twice; a negative limit; lists of different length.
        """
        count = self._count(seqs, limits)
        self._seqs[0:count] = seqs
        self._limits[0:count] = limits
        check(lib.pyllm_depth_choose(self._pointer, self._seqs, self._limits, count, self._depths))
        return list(ffi.unpack(self._depths, count)) if count else []

    @property
    def rests(self) -> bool:
        """Whether the last choice needs no rows of the target: nothing is drafted, now or soon."""
        check(lib.pyllm_depth_rests(self._pointer, self._rests, self._skips))
        return bool(self._rests[0])

    @property
    def skips_prompts(self) -> bool:
        """Whether it rests, and so long that the rows of a prompt decoded now would not be used either."""
        check(lib.pyllm_depth_rests(self._pointer, self._rests, self._skips))
        return bool(self._skips[0])

    def rested(self, seconds: float) -> bool:
        """In place of :meth:`record` for a step whose choice rests: it took ``seconds``, and the same slots go on.

        Where this is true they rest on, and it stands for the next :meth:`choose`, too.

        Raises:
            InvalidArgumentError: the last choice does not rest, was recorded, or one of its slots has stopped.
        """
        check(lib.pyllm_depth_rested(self._pointer, seconds, self._rests))
        return bool(self._rests[0])

    def record(
        self,
        seqs: Sequence[int],
        drafted: Sequence[int],
        accepted: Sequence[int],
        *,
        seconds_draft: float,
        seconds_decode: float,
        n_rows: int = 0,
        n_catchup: int = 0,
        n_prompt_rows: int = 0,
    ) -> None:
        """What a step was like. ``seconds_decode`` is everything but drafting that is done once per step.

        ``n_rows`` counts the rows of these slots; left out, it is the sum of ``1 + drafted``. ``n_catchup`` are rows of earlier steps
        that the drafter took over within ``seconds_draft``. Steps with ``n_prompt_rows`` in the same decode teach nothing about the cost of a decode.

        Raises:
            InvalidArgumentError: numbers that contradict each other, such as more tokens accepted than drafted.
        """
        count = self._count(seqs, drafted, accepted)
        step = self._step
        step.n = count
        self._seqs[0:count] = seqs
        self._drafted[0:count] = drafted
        self._accepted[0:count] = accepted
        step.seconds_draft = seconds_draft
        step.seconds_decode = seconds_decode
        step.n_rows = n_rows or count + sum(drafted)
        step.n_catchup = n_catchup
        step.n_prompt_rows = n_prompt_rows
        check(lib.pyllm_depth_record(self._pointer, step))

    def slot(self, seq: int) -> DepthSlot:
        """A slot's last choice, and why."""
        slot = ffi.new("pyllm_depth_slot *")
        check(lib.pyllm_depth_get_slot(self._pointer, seq, slot))
        acceptance = tuple(ffi.unpack(slot.acceptance, slot.n_positions))
        return DepthSlot(slot.depth, DepthReason(slot.reason), slot.rate, slot.rate_off, acceptance, text_of(slot.text))

    @property
    def costs(self) -> DepthCosts:
        """What steps and drafts cost, as far as it was measured."""
        count = ffi.new("size_t *")
        check(lib.pyllm_depth_get_costs(self._pointer, ffi.NULL, 0, count))
        rows = ffi.new("pyllm_depth_cost[]", max(1, count[0]))
        check(lib.pyllm_depth_get_costs(self._pointer, rows, count[0], count))
        totals = ffi.new("pyllm_depth_totals *")
        check(lib.pyllm_depth_get_totals(self._pointer, totals))
        cells = [rows[i] for i in range(count[0])]
        return DepthCosts(
            decode={cell.n_rows: cell.seconds for cell in cells if cell.n_rows},
            draft={(cell.depth, cell.n_slots): cell.seconds for cell in cells if not cell.n_rows},
            catchup_row=totals.seconds_catchup,
            n_steps=totals.n_steps,
            n_probes=totals.n_probes,
            seconds=totals.seconds,
            seconds_probing=totals.seconds_probing,
        )

    def _count(self, seqs: Sequence[int], *others: Sequence[int]) -> int:
        count = len(seqs)
        if any(len(other) != count for other in others):
            raise InvalidArgumentError(f"{count} slots with lists of {', '.join(str(len(other)) for other in others)} entries", "give one entry per slot")
        if count > self._room:
            raise InvalidArgumentError(f"{count} slots in one step: not in [0, {self._room}]", "make the depth control for more slots")
        return count
