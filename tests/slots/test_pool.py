"""Who gets which slot, and that nothing is lost on the way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm.checkpoints import State
from pyllm.errors import InternalError
from pyllm.slots import SlotPool, common_prefix


def filled(*contents: list[int]) -> SlotPool:
    pool = SlotPool(len(contents))
    for slot, tokens in zip(pool.slots, contents, strict=True):
        slot.tokens = list(tokens)
    return pool


@pytest.mark.parametrize(("left", "right", "length"), [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 5, 3], 1), ([4], [5], 0), ([1, 2], [1, 2], 2)])
def test_common_prefix(left: list[int], right: list[int], length: int) -> None:
    assert common_prefix(left, right) == common_prefix(right, left) == length


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_prefix_is_the_longest(left: list[int], right: list[int]) -> None:
    length = common_prefix(left, right)
    assert left[:length] == right[:length]
    assert length == min(len(left), len(right)) or left[length] != right[length]


def test_the_conversation_that_the_prompt_continues() -> None:
    pool = filled([1, 2, 3], [1, 2, 3, 4], [], [9])
    slot = pool.acquire([1, 2, 3, 4, 5, 6])
    assert slot is not None
    assert slot.seq == 1


def test_an_empty_slot_rather_than_cutting_a_conversation() -> None:
    pool = filled(list(range(60)), [])
    slot = pool.acquire([*range(20), 99])
    assert slot is not None
    assert slot.seq == 1


def test_a_few_tokens_are_cut_off() -> None:
    """A prompt that is asked again: its answer's tokens are no reason for another slot."""
    pool = filled(list(range(60)), [])
    slot = pool.acquire(list(range(50)))
    assert slot is not None
    assert slot.seq == 0


def test_the_slot_that_loses_fewer_tokens() -> None:
    shared = list(range(50))
    pool = filled([*shared, 99, 98], list(range(100, 200)))
    pool.slots[0].last_used = 5
    assert pool.acquire([*shared, 1, 2]).seq == 0  # type: ignore[union-attr]
    pool = filled([*shared, *range(300, 500)], [100, 101])
    pool.slots[0].last_used = 5
    assert pool.acquire([*shared, 1, 2]).seq == 1  # type: ignore[union-attr]


def test_least_recently_used_when_nothing_is_shared() -> None:
    pool = filled([1] * 9, [2] * 9, [3] * 9)
    order = [pool.acquire([8] * 20) for _ in range(3)]
    assert [slot.seq for slot in order if slot] == [0, 1, 2]
    assert pool.acquire([1]) is None
    for slot in (order[1], order[0], order[2]):
        assert slot is not None
        pool.release(slot)
    assert pool.acquire([7] * 20) is order[1]


def test_a_shared_bos_is_no_reason() -> None:
    pool = filled([1, *range(2, 40)], [5, 6])
    pool.slots[0].last_used = 9
    slot = pool.acquire([1, *range(100, 140)])
    assert slot is not None
    assert slot.seq == 1


def test_one_slot_can_be_asked_for() -> None:
    pool = filled([1, 2, 3], [])
    slot = pool.acquire([1, 2, 3, 4], 1)
    assert slot is not None
    assert slot.seq == 1
    assert pool.acquire([1], 1) is None
    assert pool.acquire([1], 0) is not None


def test_held_slots_are_never_the_oldest() -> None:
    pool = filled([1], [2], [])
    held = pool.acquire([1])
    oldest = pool.oldest()
    assert oldest is not None
    assert oldest.seq == 1
    assert held is not None
    oldest.empty()
    assert pool.oldest() is None
    assert pool.counts() == {"free": 2, "held": 1, "cached": 0, "total": 3}


def mark(n_tokens: int, size: int = 10) -> State:
    return State(n_tokens, bytes(size), b"", partial=True)


def test_thinning_takes_the_closest_of_the_least_used() -> None:
    pool = filled(list(range(100)), list(range(100)))
    pool.slots[0].marks = [mark(40), mark(42), mark(90)]
    pool.slots[1].marks = [mark(10)]
    pool.slots[1].last_used = 1
    pool.thin(30)
    assert [one.n_tokens for one in pool.slots[0].marks] == [40, 90]
    assert pool.slots[1].marks
    pool.thin(10)
    assert not pool.slots[0].marks
    assert pool.mark_bytes() == 10


@given(st.lists(st.lists(st.integers(1, 60), unique=True, max_size=6), min_size=1, max_size=4), st.integers(0, 300))
def test_thinning_reaches_the_room(ends: list[list[int]], room: int) -> None:
    pool = filled(*[list(range(60)) for _ in ends])
    for slot, lengths in zip(pool.slots, ends, strict=True):
        slot.marks = [mark(length) for length in sorted(lengths)]
    before = pool.mark_bytes()
    pool.thin(room)
    assert pool.mark_bytes() <= room or pool.mark_bytes() == before <= room
    assert before - pool.mark_bytes() <= max(0, before - room) + 9
    pool.check_integrity(lambda _: (0, 59))


@given(st.lists(st.tuples(st.sampled_from(["acquire", "release", "empty", "cut"]), st.integers(0, 5)), max_size=60))
def test_slots_always_add_up(actions: list[tuple[str, int]]) -> None:
    pool = SlotPool(3)
    held = []
    for action, number in actions:
        if action == "acquire":
            content = list(range(number))
            slot = pool.acquire(content)
            if slot is not None:
                assert not any(slot is other for other in held)
                slot.tokens = content
                held.append(slot)
        elif action == "release" and held:
            pool.release(held.pop(0))
        elif action == "empty":
            oldest = pool.oldest()
            if oldest is not None:
                oldest.empty()
        elif action == "cut" and held:
            held[0].cut(min(number, len(held[0].tokens)))
        pool.check_integrity(lambda seq: (0, len(pool.slots[seq].tokens) - 1))
        assert pool.counts()["held"] == len(held)


def test_integrity_sees_what_is_wrong() -> None:
    pool = filled([1, 2, 3], [])
    pool.check_integrity(lambda seq: (0, 2) if seq == 0 else (-1, -1))
    with pytest.raises(InternalError, match="slot 0 books 3 tokens, its memory ends at position 7"):
        pool.check_integrity(lambda seq: (0, 7) if seq == 0 else (-1, -1))
    pool.slots[0].marks = [mark(5)]
    with pytest.raises(InternalError, match="books checkpoints at"):
        pool.check_integrity(lambda seq: (0, 2) if seq == 0 else (-1, -1))


def test_a_new_conversation_goes_beside_those_that_run() -> None:
    """Where each sequence has a cache of its own, a gap between running slots costs another pass over the weights."""
    pool = SlotPool(6, neighbours=True)
    for slot in pool.slots:
        slot.tokens = [10 + slot.seq]
        slot.last_used = 6 - slot.seq
    first = pool.acquire([1])
    assert first is not None
    assert first.seq == 5  # alone, the least recently used one
    others = [pool.acquire([place]) for place in (2, 3)]
    assert [slot.seq for slot in others if slot is not None] == [4, 3]
    own = pool.acquire([10, 7])
    assert own is not None
    assert own.seq == 0  # a conversation goes on where it is


def test_without_caches_of_their_own_the_least_recently_used_goes() -> None:
    pool = SlotPool(4)
    for slot in pool.slots:
        slot.tokens = [10 + slot.seq]
    for slot, used in zip(pool.slots, (1, 4, 2, 3), strict=True):
        slot.last_used = used
    assert [slot.seq for slot in (pool.acquire([place]) for place in (1, 2, 3, 4)) if slot is not None] == [0, 2, 3, 1]
