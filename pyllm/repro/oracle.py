"""The oracle: what a prompt gives when it is decoded alone and without speculation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.repro.subject import Sent
from pyllm.repro.verdict import CheckError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyllm.repro.play import Record
    from pyllm.repro.subject import Subject


def compare(records: Sequence[Record], plain: Subject) -> int:
    """Send every greedy request to ``plain``, one at a time, and compare tokens. Returns how many were compared.

    Raises:
        CheckError: an answer differs; the first place, and the tokens around it.
        PyllmError: the plain subject itself failed.
    """
    known: dict[object, tuple[int, ...]] = {}
    greedy = [record for record in records if record.sent.greedy]
    for record in greedy:
        sent = record.sent
        key = (sent.prompt, sent.images, sent.n, sent.stop)
        if key not in known:
            answer = plain.run([Sent(sent.prompt, sent.n, stop=sent.stop, cache=False, images=sent.images)])[0]
            if answer.fault is not None:
                raise CheckError(
                    f"the oracle failed: {answer.fault.text}",
                    expected="an answer",
                    got=answer.fault.name,
                    step=record.step,
                )
            known[key] = answer.tokens
        if known[key] != record.answer.tokens:
            raise _difference(record, known[key])
    return len(greedy)


def _difference(record: Record, wanted: tuple[int, ...]) -> CheckError:
    got = record.answer.tokens
    place = next((i for i, (a, b) in enumerate(zip(wanted, got, strict=False)) if a != b), min(len(wanted), len(got)))
    begin = max(0, place - 2)
    return CheckError(
        f"the answer differs from the plain one at token {place} of {len(wanted)}",
        expected=f"{list(wanted[begin : place + 6])} from token {begin}",
        got=f"{list(got[begin : place + 6])} from token {begin}",
        step=record.step,
    )
