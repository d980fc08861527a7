"""Saved slots and suspended requests: they go on as if they had never left, in another slot, engine or process."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import pyllm
from pyllm import models
from pyllm.errors import InvalidArgumentError, LimitError, NotFoundError, PyllmError, StateError
from tests.conftest import prompt_tokens

if TYPE_CHECKING:
    from pathlib import Path

    from pyllm.checkpoints import Checkpoint

GREEDY: dict[str, Any] = {"max_tokens": 24, "temperature": 0}
KINDS = [
    ("llama", "llama-dflash", "dflash"),
    ("gemma4", "gemma4-assistant", "mtp"),
    ("qwen35", None, "mtp"),
    ("nemotron-h-moe", None, "mtp"),
    ("step35", None, "mtp"),
    ("llama", None, "ngram"),
]


def engine(target: str, draft: str | None, kind: str | None, family: dict[str, Any] | None = None, **settings: Any) -> pyllm.LLM:
    spec = None if kind is None else {"types": kind, "n_max": 3, "depth_control": False}
    files = family or {}
    return pyllm.LLM(
        models.make(target, **files), draft=models.make(draft, **files) if draft else None, spec=spec, **({"slots": 2, "ctx": 1024, "threads": 1} | settings)
    )


@pytest.mark.parametrize("error_rate", [0.25, None])
@pytest.mark.parametrize(("target", "draft", "kind"), KINDS)
def test_restore_is_never_having_left(target: str, draft: str | None, kind: str, error_rate: float | None, tmp_path: Path) -> None:
    """Tokens, drafted and accepted counts: exactly those of the conversation that stayed; after others have used slots and drafter."""
    family = {} if error_rate is None else {"family": "successor", "error_rate": error_rate}
    prompt = prompt_tokens(0, 70)
    file = tmp_path / "talk.pyllm"

    def turns(llm: pyllm.LLM, known: list[int], numbers: range) -> list[tuple[Any, ...]]:
        rows = []
        for number in numbers:
            known += prompt_tokens(number, 9)[1:]
            result = llm.generate(known, **GREEDY)
            rows.append((result.tokens, result.draft, result.usage.cached_tokens))
            known += result.tokens
        return rows

    with engine(target, draft, kind, family) as llm:
        stayed = turns(llm, list(prompt), range(5))
    with engine(target, draft, kind, family) as llm:
        known = list(prompt)
        left = turns(llm, known, range(2))
        slot = next(info.seq for info in llm.slots() if info.n_tokens)
        llm.save(slot, file)
        llm.generate([prompt_tokens(77, 200), prompt_tokens(78, 150)], **GREEDY)
        llm.erase(slot)
        assert llm.restore(file, slot) == slot
        llm.check_integrity()
        assert left + turns(llm, list(known), range(2, 5)) == stayed
    with engine(target, draft, kind, family) as llm:
        llm.generate([prompt_tokens(79, 120), prompt_tokens(80, 100)], **GREEDY)
        llm.restore(file)
        assert left + turns(llm, list(known), range(2, 5)) == stayed


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.0, "seed": 7, "repeat_penalty": 1.2}])
@pytest.mark.parametrize(("target", "draft", "kind"), KINDS)
def test_a_suspended_request_goes_on(target: str, draft: str | None, kind: str, sampling: dict[str, Any], tmp_path: Path) -> None:
    params = {"max_tokens": 60, "ignore_eos": True} | sampling
    prompt = prompt_tokens(3, 50)
    with engine(target, draft, kind) as llm:
        whole = llm.generate(prompt, **params)
        request = llm.submit(prompt, cache_prompt=False, **params)
        seen = []
        for chunk in request:
            seen += chunk.tokens
            if len(seen) >= 20:
                break
    with engine(target, draft, kind) as llm:
        request = llm.submit(prompt, **params)
        pieces = iter(request)
        seen, text = [], ""
        while len(seen) < 20:
            chunk = next(pieces)
            seen += chunk.tokens
            text += chunk.text
        kept = llm.suspend(request)
        rest = list(pieces)
        text += "".join(chunk.text for chunk in rest)
        ended = request.result()
        assert ended.finish_reason == "suspended"
        llm.save(kept, tmp_path / "running.pyllm")
        llm.generate([prompt_tokens(5, 80), prompt_tokens(6, 90)], max_tokens=10, temperature=0)
        again = llm.resume(tmp_path / "running.pyllm").result()
        assert again.tokens == whole.tokens
        assert again.draft == whole.draft
        llm.check_integrity()
    with engine(target, draft, kind) as llm:
        request = llm.resume(tmp_path / "running.pyllm")
        text += "".join(chunk.text for chunk in request)
        assert (request.result().tokens, text) == (whole.tokens, whole.text)
        assert request.resumed is None, "who keeps the request keeps no checkpoint with it"


def test_another_process_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "talk.pyllm"
    program = (
        "import sys, pyllm; from pyllm import models\n"
        "llm = pyllm.LLM(models.make('qwen35'), spec={'types': 'mtp', 'depth_control': False}, slots=2, ctx=1024)\n"
        "what, path, *tokens = sys.argv[1:]\n"
        "if what == 'restore': llm.restore(path)\n"
        "r = llm.generate([int(t) for t in tokens], max_tokens=24, temperature=0)\n"
        "if what == 'save': llm.save(r.slot, path)\n"
        "print(r.usage.cached_tokens, r.draft.drafted, r.draft.accepted, *r.tokens)\n"
    )

    def run(what: str, tokens: list[int]) -> list[int]:
        done = subprocess.run([sys.executable, "-c", program, what, str(file), *map(str, tokens)], check=True, capture_output=True, text=True)
        return [int(word) for word in done.stdout.split()]

    prompt = prompt_tokens(0, 40)
    first = run("save", prompt)
    longer = [*prompt, *first[3:], *prompt_tokens(1, 10)[1:]]
    with pyllm.LLM(models.make("qwen35"), spec={"types": "mtp", "depth_control": False}, slots=2, ctx=1024) as llm:
        llm.generate(prompt, **GREEDY)
        stayed = llm.generate(longer, **GREEDY)
    assert run("restore", longer) == [stayed.usage.cached_tokens, stayed.draft.drafted, stayed.draft.accepted, *stayed.tokens]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("saved") / "talk.pyllm"
    with engine("llama", "llama-dflash", "dflash") as llm:
        llm.save(llm.generate(prompt_tokens(0, 60), **GREEDY).slot, file)
    return file


@pytest.fixture(scope="module")
def kept() -> Checkpoint:
    """The same in memory."""
    with engine("llama", "llama-dflash", "dflash") as llm:
        return llm.checkpoint(llm.generate(prompt_tokens(0, 60), **GREEDY).slot)


OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"target": "llama", "draft": "llama-dflash", "kind": "dflash", "kv_types": "q8_0"}, "kv_types is `f16/f16`, here it is `q8_0/q8_0`"),
    ({"target": "llama", "draft": None, "kind": None}, "drafters is"),
    ({"target": "gemma4", "draft": None, "kind": None}, "architecture is `llama`, here it is `gemma4`"),
    ({"target": "llama", "draft": "llama-dflash", "kind": "dflash", "family": {"seed": 3}}, "model is"),
]


@pytest.mark.parametrize(("other", "says"), OTHERS)
def test_another_engine_refuses_it_and_works_on(saved: Path, kept: Checkpoint, other: dict[str, Any], says: str, tmp_path: Path) -> None:
    """The file, what is in memory, and the file that this engine writes of that: it stays what it was."""
    with engine(**other) as llm:
        before = llm.generate(prompt_tokens(1, 30), **GREEDY)
        llm.save(kept, tmp_path / "theirs")
        for what in (saved, kept, tmp_path / "theirs"):
            with pytest.raises(StateError, match=says):
                llm.restore(what)
        assert llm.generate(prompt_tokens(1, 30), cache_prompt=False, **GREEDY).tokens == before.tokens
        llm.check_integrity()


def test_a_damaged_file_leaves_the_slot_as_it_was(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    with engine("llama", "llama-dflash", "dflash") as llm:
        result = llm.generate(prompt_tokens(1, 30), **GREEDY)
        for place in range(0, len(whole), max(1, len(whole) // 40)):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << (place % 8)
            file = tmp_path / "damaged.pyllm"
            file.write_bytes(damaged)
            with pytest.raises(PyllmError) as caught:
                llm.restore(file, result.slot)
            assert isinstance(caught.value, StateError)
            file.write_bytes(whole[:place])
            with pytest.raises(StateError):
                llm.restore(file, result.slot)
        assert llm.slots()[result.slot].n_tokens == 30 + 23
        again = llm.generate(prompt_tokens(1, 30), **GREEDY)
        assert (again.tokens, again.usage.cached_tokens) == (result.tokens, 29)


def test_a_newer_format_leaves_the_slot_as_it_was(saved: Path, tmp_path: Path) -> None:
    """Refused with its number, also where everything behind it is as it is today."""
    data = bytearray(saved.read_bytes())
    data[8] = 7
    file = tmp_path / "newer.pyllm"
    file.write_bytes(data)
    with engine("llama", "llama-dflash", "dflash", threads=1) as llm:
        result = llm.generate(prompt_tokens(1, 30), **GREEDY)
        for use in (lambda: llm.restore(file, result.slot), lambda: llm.restore(file), lambda: llm.resume(file)):
            with pytest.raises(StateError, match="it has format 7, this build reads up to 1") as caught:
                use()
            assert caught.value.hint == "read it with the version of pyllm that wrote it, or a later one"
        assert [info.n_tokens for info in llm.slots()] == [30 + 23 if info.seq == result.slot else 0 for info in llm.slots()]
        again = llm.generate(prompt_tokens(1, 30), **GREEDY)
        assert (again.tokens, again.usage.cached_tokens) == (result.tokens, 29)
        llm.check_integrity()


def test_what_cannot_be_saved_or_restored(tmp_path: Path, saved: Path) -> None:
    with engine("llama", "llama-dflash", "dflash") as llm:
        with pytest.raises(InvalidArgumentError, match="slot 0 is empty"):
            llm.save(0, tmp_path / "x")
        with pytest.raises(InvalidArgumentError, match="slot 9 is not in"):
            llm.save(9, tmp_path / "x")
        with pytest.raises(NotFoundError):
            llm.restore(tmp_path / "nothing")
        with pytest.raises(StateError, match="without a running generation"):
            llm.resume(saved)
        slot = llm.generate(prompt_tokens(0, 20), **GREEDY).slot
        with pytest.raises(PyllmError):
            llm.save(slot, tmp_path / "no folder" / "x")
        with pytest.raises(InvalidArgumentError, match="`/dev/full` is there and is no regular file") as caught:
            llm.save(slot, "/dev/full")
        assert caught.value.hint == "give the path of a file"
        request = llm.submit(prompt_tokens(0, 20), **GREEDY)
        request.result()
        with pytest.raises(InvalidArgumentError, match="not generating"):
            llm.suspend(request)
    with engine("llama", "llama-dflash", "dflash") as llm:
        llm.save(llm.generate(prompt_tokens(0, 300), **GREEDY).slot, tmp_path / "long")
    with engine("llama", "llama-dflash", "dflash", slots=2, ctx=512) as llm, pytest.raises(LimitError, match="holds 323 tokens, a slot holds 256"):
        llm.restore(tmp_path / "long")


@pytest.mark.parametrize(("target", "draft", "kind"), KINDS[:5])
def test_the_number_of_slots_does_not_matter(target: str, draft: str | None, kind: str, tmp_path: Path) -> None:
    """Patch 0032: saved by an engine of two slots, restored by engines of three, and of one with a unified cache."""
    prompt = prompt_tokens(0, 60)
    with engine(target, draft, kind) as llm:
        first = llm.generate(prompt, **GREEDY)
        llm.save(first.slot, tmp_path / "talk")
        prompt += [*first.tokens, *prompt_tokens(1, 9)[1:]]
        stayed = llm.generate(prompt, **GREEDY)
    for sizes in ({"slots": 3, "ctx": 1536}, {"slots": 1, "ctx": 512, "unified": True}):
        with engine(target, draft, kind, **sizes) as llm:
            llm.restore(tmp_path / "talk")
            result = llm.generate(prompt, **GREEDY)
            assert (result.tokens, result.draft, result.usage.cached_tokens) == (stayed.tokens, stayed.draft, stayed.usage.cached_tokens)


def test_a_restore_makes_room(tmp_path: Path) -> None:
    """A cache that all slots share is full of conversations that nobody is having."""
    with engine("llama", "llama-dflash", "dflash", ctx=256, unified=True, threads=1) as llm:
        first = llm.generate(prompt_tokens(0, 150), **GREEDY)
        llm.save(first.slot, tmp_path / "talk")
        kept = llm.checkpoint(first.slot)
        known = [*prompt_tokens(0, 150), *first.tokens]
        stayed = llm.generate([*known, 300, 301], **GREEDY)
        for what in (tmp_path / "talk", kept):
            other = llm.generate(prompt_tokens(1, 160), **GREEDY)
            slot = llm.restore(what, 1 - other.slot)
            llm.check_integrity()
            assert {info.seq: info.n_tokens for info in llm.slots()} == {slot: 173, other.slot: 0}
            again = llm.generate([*known, 300, 301], **GREEDY)
            assert (again.tokens, again.draft) == (stayed.tokens, stayed.draft)
            assert again.usage.cached_tokens >= 173
        # What made room is in the store.
        assert llm.generate([*prompt_tokens(1, 160), *other.tokens], **GREEDY).usage.cached_tokens > 160


def test_marks_travel_with_a_file(tmp_path: Path) -> None:
    """A hybrid restored from a file can still be cut back to its checkpoints."""
    base = prompt_tokens(0, 200)
    with engine("qwen35", None, "mtp", checkpoint_every=64) as llm:
        llm.save(llm.generate(base, **GREEDY).slot, tmp_path / "talk")
        expected = [llm.generate(base[:length], cache_prompt=False, **GREEDY).tokens for length in (180, 100)]
    with engine("qwen35", None, "mtp", checkpoint_every=64) as llm:
        slot = llm.restore(tmp_path / "talk")
        assert llm.slots()[slot].marks == (64, 128, 192, 199)
        results = [llm.generate(base[:length], **GREEDY) for length in (180, 100)]
        assert [result.tokens for result in results] == expected
        assert [result.usage.cached_tokens for result in results] == [128, 64]


def test_a_successor_text_is_unbroken(tmp_path: Path) -> None:
    family = {"family": "successor", "error_rate": 0.25}
    successor = models.successor(0)
    with engine("gemma4", "gemma4-assistant", "mtp", family) as llm:
        request = llm.submit("Hello", max_tokens=80, temperature=0)
        pieces = iter(request)
        next(pieces)
        result = llm.resume(llm.suspend(request)).result()
        assert all(successor[left] == right for left, right in itertools.pairwise(result.tokens))
