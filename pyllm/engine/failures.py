"""What a drafter that fails as a whole costs: its drafts, never a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.errors import PyllmError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyllm._ffi import Draft
    from pyllm.engine.block import Block
    from pyllm.engine.core import Core
    from pyllm.engine.drafting import Drafting
    from pyllm.engine.request import Request

#: Failures in a row after which a request goes on without drafts.
MOST = 3


class DrafterFailures:
    """Stands between the scheduler and the drafter. What fails for one sequence is the drafter's own to say; this is about calls that fail for all.

    The drafter then forgets the sequences of the step and starts over with the next tokens of each.
    """

    def __init__(self, core: Core, drafting: Drafting) -> None:
        self.core = core
        self.drafting = drafting
        self.count = 0
        self.why = ""
        self._in_a_row: dict[Request, int] = {}
        self._lost: list[Request] = []

    def draft(self, running: Sequence[Request]) -> dict[int, Draft]:
        """Drafts by sequence; none after a failure."""
        able = running
        if self._in_a_row:
            self._in_a_row = {request: count for request, count in self._in_a_row.items() if request in running}
            able = [request for request in running if self._in_a_row.get(request, 0) < MOST]
        try:
            return self.drafting.draft(able)
        except PyllmError as failure:
            self._note([request for request in able if request.begun], failure)
            self.settle([])
            return {}

    def process(self, blocks: Sequence[Block]) -> None:
        """The drafter takes over what was decoded."""
        if self.core.drafter is None:
            return
        try:
            self.core.drafter.process(self.core.batch)
        except PyllmError as failure:
            self._note([block.request for block in blocks], failure)

    def settle(self, blocks: Sequence[Block]) -> None:
        """After the verification of ``blocks``: what was lost starts over."""
        lost, self._lost = self._lost, []
        for request in lost:
            if self.core.drafter is not None and request.slot is not None:
                self.core.drafter.truncate(request.slot.seq, 0)
                self.core.drafter.begin(request.slot.seq, request.slot.tokens)
        for block in blocks:
            if block.request not in lost and block.draft:
                self._in_a_row.pop(block.request, None)

    def _note(self, requests: Sequence[Request], failure: PyllmError) -> None:
        self.count += 1
        self.why = failure.message
        self._lost += requests
        for request in requests:
            self._in_a_row[request] = self._in_a_row.get(request, 0) + 1
