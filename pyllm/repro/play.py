"""Walking the steps of a scenario, with the checks that need no second run."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyllm.errors import PyllmError
from pyllm.repro.content import joined
from pyllm.repro.damage import corrupt
from pyllm.repro.subject import Answer, Fault, Sent, Subject
from pyllm.repro.verdict import CheckError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyllm.repro.scenario import Scenario
    from pyllm.repro.step import Outcome, Prompt, Step

#: Tokens of the request that proves, after a refusal or a cancellation, that the slot still works: prompt and answer.
_PROOF = (8, 4)


@dataclass(frozen=True)
class Record:
    """A request that was answered in full, and the step it belongs to, from 1."""

    step: int
    sent: Sent
    answer: Answer


@dataclass
class Play:
    """A scenario on a subject.

    ``vocabulary`` are the tokens that random prompts are drawn from; ``talk`` hears of each step.
    """

    scenario: Scenario
    subject: Subject
    vocabulary: Sequence[int]
    talk: Callable[[int, int], None] = lambda _step, _steps: None
    records: list[Record] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._conversations: dict[int, list[int]] = {}
        self._saved: dict[str, list[int]] = {}
        self._pictured: set[int] = set()
        self._drafts: dict[int, tuple[int, int]] = {}
        self._drawn = 0

    def run(self) -> None:
        """Every step, then the end of the subject.

        Raises:
            CheckError: a step did not do what it has to; the subject is left as it was found.
            PyllmError: the subject refused something that no step expects, or hangs.
        """
        for number, step in enumerate(self.scenario.steps, 1):
            self.talk(number, len(self.scenario.steps))
            begin = time.monotonic()
            try:
                self._do(number, step)
                self._alive()
                self.subject.check()
            except CheckError as failure:
                failure.step = number
                raise
            except PyllmError as failure:
                raise CheckError(
                    self.subject.died() or failure.message,
                    expected="the step is carried out",
                    got=failure.message,
                    step=number,
                ) from failure
            self.steps.append({"step": number, "verb": step.verb, "seconds": round(time.monotonic() - begin, 3)})
        ended = self.subject.stop()
        if ended:
            raise CheckError(ended, expected="an orderly end", got=ended)

    def _alive(self) -> None:
        died = self.subject.died()
        if died:
            raise CheckError(died, expected="the process lives", got=died)

    def _do(self, number: int, step: Step) -> None:
        if step.prompt is not None:
            self._prompt(number, step)
        elif step.cancel is not None:
            self._cancel(number, step)
        elif step.restart is not None:
            ended = self.subject.stop()
            if ended:
                raise CheckError(ended, expected="an orderly end before the restart", got=ended)
            self.subject.start()
            self._conversations.clear()
            self._pictured.clear()
        elif step.wait is not None:
            time.sleep(step.wait.seconds)
        else:
            self._state(number, step)

    def _prompt(self, number: int, step: Step) -> None:
        prompts = [prompt for prompt in step.prompt or () for _ in range(prompt.count)]
        sent = [self._draw(prompt) for prompt in prompts]
        answers = self.subject.run(sent)
        expect = step.expect
        spared = sum(got.fault is not None for got in answers)
        if expect.at_most is not None and spared > expect.at_most:
            faults = "; ".join(sorted({got.fault.text for got in answers if got.fault is not None}))
            raise CheckError(f"{spared} requests were not answered", expected=f"at most {expect.at_most}", got=faults)
        for prompt, asked, got in zip(prompts, sent, answers, strict=True):
            if expect.error is not None and (expect.at_most is None or got.fault is not None):
                self._refused(expect, got.fault)
                continue
            self._complete(asked, got, step.expect)
            self.records.append(Record(number, asked, got))
            if expect.cached is not None and got.cached < expect.cached:
                raise CheckError("more of the prompt was computed again", expected=f"{expect.cached} tokens found or more", got=f"{got.cached}")
            self._remember(prompt.slot or 0, asked, got)
        self._drafts[number] = (sum(got.drafted for got in answers), sum(got.accepted for got in answers))
        self._compare_drafts(number, expect)
        if step.expect.error is not None:
            self._prove(number, prompts[0].slot)

    def _remember(self, slot: int, asked: Sent, got: Answer) -> None:
        """What a later prompt may continue: nothing behind an image, which has no tokens."""
        if asked.images:
            self._conversations.pop(slot, None)
            self._pictured.add(slot)
            return
        known = list(asked.prompt) if not isinstance(asked.prompt, str) else self.subject.tokenize(asked.prompt)
        self._conversations[slot] = [*known, *got.tokens]
        self._pictured.discard(slot)

    def _compare_drafts(self, number: int, expect: Outcome) -> None:
        drafted, accepted = self._drafts[number]
        if expect.drafted is not None and drafted != expect.drafted:
            raise CheckError("the drafters proposed another number of tokens", expected=str(expect.drafted), got=str(drafted))
        if expect.drafts_as is not None and (drafted, accepted) != self._drafts[expect.drafts_as]:
            raise CheckError(
                f"the drafts are not those of step {expect.drafts_as}",
                expected="{} tokens drafted, {} kept".format(*self._drafts[expect.drafts_as]),
                got=f"{drafted} tokens drafted, {accepted} kept",
            )

    def _cancel(self, number: int, step: Step) -> None:
        cancel = step.cancel
        if cancel is None:
            return
        asked = self._draw(cancel, after=cancel.after)
        got = self.subject.run([asked])[0]
        if got.fault is not None:
            raise self._fault(got.fault)
        if got.finish != "cancelled":
            raise CheckError(
                "the request ended before it was cancelled",
                expected=f"more than {cancel.after} tokens",
                got=f"{len(got.tokens)}, {got.finish}",
            )
        self._conversations.pop(cancel.slot or 0, None)
        self._prove(number, cancel.slot)

    def _state(self, number: int, step: Step) -> None:
        try:
            if step.save is not None:
                self.subject.save(step.save.slot, step.save.to)
                self._saved[step.save.to] = list(self._conversations.get(step.save.slot, []))
            elif step.restore is not None:
                self._conversations.pop(step.restore.slot, None)
                self._pictured.discard(step.restore.slot)
                self.subject.restore(step.restore.slot, step.restore.source)
                self._conversations[step.restore.slot] = list(self._saved.get(step.restore.source, []))
            elif step.fork is not None:
                self.subject.fork(step.fork.slot, step.fork.to)
                self._conversations[step.fork.to] = list(self._conversations.get(step.fork.slot, []))
            elif step.corrupt is not None:
                corrupt(self.subject.path(step.corrupt.file), step.corrupt.field, step.corrupt.value)
        except PyllmError as failure:
            if step.expect.error is None or self.subject.died():
                raise
            status, defect = getattr(failure, "status", None), getattr(failure, "defect", False)
            self._refused(step.expect, Fault(type(failure).__name__, failure.message, defect, status))
            state = step.save or step.restore
            self._prove(number, None if state is None else state.slot)
        else:
            if step.expect.error is not None:
                raise CheckError(f"`{step.verb}` was carried out", expected=step.expect.error, got="no error")

    def _draw(self, prompt: Prompt, after: int | None = None) -> Sent:
        images: tuple[str, ...] = ()
        content: str | tuple[int, ...]
        if prompt.content is not None:
            content, images = joined(prompt.content)
        elif prompt.text is not None and not prompt.continues:
            content = prompt.text
        elif prompt.continues and (prompt.slot or 0) in self._pictured:
            raise CheckError("the conversation has an image, which cannot be put in front as tokens", expected="tokens", got="an image")
        else:
            held = self._conversations.get(prompt.slot or 0, []) if prompt.continues else []
            if prompt.continues and prompt.cut >= max(len(held), 1):
                raise CheckError(
                    f"cut {prompt.cut} leaves nothing of a conversation of {len(held)} tokens",
                    expected="a longer conversation",
                    got=str(len(held)),
                )
            content = (*held[: len(held) - prompt.cut], *self._fresh(prompt))
        self._drawn += 1
        return Sent(
            content,
            prompt.n,
            prompt.temperature,
            self.scenario.seed + self._drawn,
            prompt.stop,
            prompt.stream,
            prompt.slot,
            after,
            depth=prompt.depth,
            images=images,
        )

    def _fresh(self, prompt: Prompt) -> Sequence[int]:
        if prompt.tokens is not None:
            return prompt.tokens
        if prompt.text is not None:
            return self.subject.tokenize(prompt.text)
        return self._random(prompt.random or 0)

    def _random(self, count: int) -> list[int]:
        # The same on every level and machine: drawn from the seed and the number of the request.
        return random.Random(f"{self.scenario.seed}/{self._drawn}").choices(self.vocabulary, k=count)  # noqa: S311 - test prompts

    def _prove(self, number: int, slot: int | None) -> None:
        """An ordinary request after a refusal: the slot still works."""
        self._alive()
        length, n = _PROOF
        self._drawn += 1
        asked = Sent(tuple(self._random(length)), n, slot=slot)
        got = self.subject.run([asked])[0]
        self._complete(asked, got, None)
        self.records.append(Record(number, asked, got))

    def _refused(self, expect: Outcome, fault: Fault | None) -> None:
        wanted = f"{expect.error}{f', which says {expect.says!r}' if expect.says else ''}"
        if fault is None:
            raise CheckError("the request was answered", expected=wanted, got="no error")
        if fault.defect:
            raise self._fault(fault, wanted)
        if fault.status is not None:
            return  # over HTTP the class is not seen, and the text is the server's own
        if fault.name != expect.error or (expect.says or "") not in fault.text:
            raise CheckError("another error came", expected=wanted, got=f"{fault.name}: {fault.text}")

    def _complete(self, asked: Sent, got: Answer, expect: Outcome | None) -> None:
        if got.fault is not None:
            raise self._fault(got.fault)
        if got.finish == "length" and len(got.tokens) != asked.n:
            raise CheckError(
                "the answer is not complete",
                expected=f"{asked.n} tokens",
                got=f"{len(got.tokens)} tokens, finish {got.finish}",
            )
        if got.finish not in {"length", "stop"}:
            raise CheckError("the answer is not complete", expected="finish length or stop", got=f"finish {got.finish or 'missing'}")
        if expect is not None and expect.finish is not None and got.finish != expect.finish:
            raise CheckError(
                "the answer ended otherwise",
                expected=f"finish {expect.finish}",
                got=f"finish {got.finish} after {len(got.tokens)} tokens",
            )

    def _fault(self, fault: Fault, expected: str = "an answer") -> CheckError:
        # A lost connection is noticed before the process is gone.
        died = self.subject.died(within=1.0) if fault.defect else ""
        return CheckError(died or fault.text, expected=expected, got=f"{fault.name}: {fault.text}")
