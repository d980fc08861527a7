"""Who drafts how much in a step, and what came of it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pyllm._ffi import DepthControl, Draft, DraftRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pyllm.config import EngineConfig
    from pyllm.engine.block import Block
    from pyllm.engine.core import Core
    from pyllm.engine.request import Request

#: The deepest that depth control decides about.
MAX_DEPTH = 64

#: Steps that a drafter reads after a rest before it is tried again.
LISTEN = 32

#: Steps without a new token after which a request goes on without drafts.
PLAIN_AFTER = 8


class Drafting:
    """Drafts for all generating slots at once, to the depths that depth control chooses, or as deep as configured without it."""

    def __init__(self, core: Core, config: EngineConfig) -> None:
        self.core = core
        spec = config.spec
        self.samples = spec is not None and spec.verification == "rejection"
        listen = LISTEN if core.drafter is not None and core.drafter.info.needs_rows else 0
        controlled = spec is not None and spec.depth_control and core.depth > 0
        self.control: DepthControl | None = DepthControl(core.info.n_seq_max, min(core.depth, MAX_DEPTH), core.cut, listen) if controlled else None
        self.n_drafted = 0
        self.n_accepted = 0
        self._injected = 0
        self._generating: set[int] = set()
        self._seqs: list[int] = []
        """Slots of the last choice, in its order."""
        self._rests = False
        """Whether that choice needs no rows of the target."""
        self._chosen = False
        """Whether it holds for the next step of the same slots, too."""
        self._rehearsed: int | None = None
        self._times: list[tuple[float, float]] = []

    @contextmanager
    def rehearsal(self, depth: int) -> Iterator[list[tuple[float, float]]]:
        """Steps in here draft ``depth`` tokens, whatever the drafter finds, and belong to nobody: the list is of their seconds, as ``record`` has them."""
        self._rehearsed, self._times = depth, []
        try:
            yield self._times
        finally:
            self._rehearsed = None

    def _limit(self, request: Request, held: int) -> int:
        """The most that a request can use: its own limit, what it may still generate, and room in its slot."""
        params = request.params
        if not params.speculate or request.idle_steps > PLAIN_AFTER:
            return 0
        # The last sampled token needs a cell, and so does the one that verification adds.
        limit: int = min(self.core.depth, self.core.n_ctx_slot - held - 2, params.max_tokens - len(request.tokens) - 1)
        if params.draft_depth is not None:
            limit = min(limit, params.draft_depth)
        return max(0, limit)

    def draft(self, running: Sequence[Request]) -> dict[int, Draft]:
        """Drafts by sequence, for every slot that generates and may draft."""
        drafter = self.core.drafter
        if drafter is None:
            return {}
        generating = [(request, request.slot) for request in running if request.slot is not None and request.begun and len(request.pending) == 1]
        if self._chosen and [slot.seq for _, slot in generating] == self._seqs:
            return {}
        limits = [self._limit(request, len(slot.tokens)) for request, slot in generating]
        depths: Sequence[int] = limits
        if self._rehearsed is not None:
            depths = [min(limit, self._rehearsed) for limit in limits]
        elif self.control is not None:
            depths = self._choose(self.control, [slot.seq for _, slot in generating], limits)
        wishes = []
        for (request, slot), depth in zip(generating, depths, strict=True):
            if depth <= 0:
                continue
            temperature = request.params.temperature if self.samples else 0.0
            pos = len(slot.tokens)
            wishes.append(DraftRequest(slot.seq, request.pending[0], pos, depth, temperature, (request.seed + pos) & 0xFFFFFFFF))
        if not wishes:
            return {}
        drafts = drafter.draft(wishes)
        if self._rehearsed is not None:
            drafts = [Draft([*draft.tokens, *[0] * (wish.n_max - len(draft.tokens))], draft.link) for wish, draft in zip(wishes, drafts, strict=True)]
        return {wish.seq: draft for wish, draft in zip(wishes, drafts, strict=True)}

    def _choose(self, control: DepthControl, seqs: list[int], limits: list[int]) -> list[int]:
        """Depths by what was measured; slots that have come or gone since the last step are told first."""
        for seq in self._generating - set(seqs):
            control.end(seq)
        for seq in set(seqs) - self._generating:
            control.begin(seq)
        self._generating, self._seqs, self._chosen = set(seqs), seqs, False
        if not seqs:
            return []
        depths = control.choose(seqs, [min(limit, MAX_DEPTH) for limit in limits])
        self._rests = control.rests
        return depths

    def begin(self, seq: int) -> None:
        """Another request takes over a slot: what is known of the last one's acceptance is not its own."""
        if self.control is not None and seq in self._generating:
            self._generating.discard(seq)
            self._chosen = False
            self.control.end(seq)

    def listen(self, blocks: Sequence[Block]) -> None:
        """Before a decode: a drafter that is not asked for a while need not read its rows, and those of a prompt neither where they will be of no use."""
        if self.core.drafter is None:
            return
        rests = self._rests and self._rehearsed is None
        if rests and self.control is not None and not all(block.verifies for block in blocks):
            rests = self.control.skips_prompts
        self.core.drafter.rest(rest=rests)

    def count(self, request: Request, draft: list[int], accepted: int) -> None:
        """A draft was verified."""
        if not draft:
            return
        request.drafted += len(draft)
        request.accepted += accepted
        request.steps += 1
        self.n_drafted += len(draft)
        self.n_accepted += accepted

    def record(self, blocks: Sequence[Block], seconds_draft: float, seconds_decode: float) -> None:
        """Tell depth control what a step took and gave."""
        drafter = self.core.drafter
        if self._rehearsed is not None:
            self._times.append((seconds_draft, seconds_decode))
            return
        if self.control is None or drafter is None:
            return
        if self._rests and self._is_choice(blocks):
            # Nothing came of it but time: one call, however many slots there are.
            self._chosen = self._rests = self.control.rested(seconds_draft + seconds_decode)
            return
        self._chosen = False
        verified = [block for block in blocks if block.verifies and block.slot.seq in self._generating]
        injected = drafter.n_injected
        if not verified:
            return
        self.control.record(
            [block.slot.seq for block in verified],
            [len(block.draft) for block in verified],
            [block.accepted for block in verified],
            seconds_draft=seconds_draft,
            seconds_decode=seconds_decode,
            n_rows=sum(1 + len(block.draft) for block in verified),
            n_catchup=injected - self._injected,
            n_prompt_rows=sum(len(block.tokens) for block in blocks if not block.verifies),
        )
        self._injected = injected

    def _is_choice(self, blocks: Sequence[Block]) -> bool:
        """Whether a step was of the slots that were chosen for, and of nothing else."""
        return len(blocks) == len(self._seqs) and all(block.verifies and block.slot.seq in self._generating for block in blocks)

    def forget_counts(self) -> None:
        """Start counting anew."""
        self.n_drafted = self.n_accepted = 0
        if self.core.drafter is not None:
            self._injected = self.core.drafter.n_injected

    def stats(self) -> dict[str, Any]:
        """Counts since the start, per link of the chain, and what depth control knows."""
        drafter = self.core.drafter
        return {
            "depth": self.core.depth,
            "drafted": self.n_drafted,
            "accepted": self.n_accepted,
            "failures": drafter.stats.n_failures if drafter is not None else 0,
            "drafters": [vars(link) | {"stats": vars(link.stats)} for link in drafter.links] if drafter is not None else [],
            "control": self._report(self.control) if self.control is not None else None,
        }

    def _report(self, control: DepthControl) -> dict[str, Any]:
        """Depth, reason and expected tokens per second of each generating slot, and the durations that they rest on, in seconds."""
        costs = control.costs
        slots = {seq: control.slot(seq) for seq in sorted(self._generating)}
        return {
            "slots": {seq: vars(slot) | {"reason": slot.reason.name.lower()} for seq, slot in slots.items()},
            "decode": costs.decode,
            "draft": {f"{depth}x{n_slots}": seconds for (depth, n_slots), seconds in costs.draft.items()},
            "catchup_row": costs.catchup_row,
            "probes": costs.n_probes,
            "seconds": costs.seconds,
            "seconds_probing": costs.seconds_probing,
        }
