"""Slots: longest common prefix, least recently used, conservation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm.errors import InternalError
from pyllm.slots import SlotPool, common_prefix

tokens = st.lists(st.integers(0, 2), max_size=12)


@given(left=tokens, right=tokens)
def test_common_prefix(left: list[int], right: list[int]) -> None:
    length = common_prefix(left, right)
    assert left[:length] == right[:length]
    assert length == min(len(left), len(right)) or left[length] != right[length]


def fill(pool: SlotPool, *contents: list[int]) -> None:
    held = []
    for content in contents:
        slot = pool.acquire([9])
        assert slot is not None
        slot.tokens[:] = content
        held.append(slot)
    for slot in held:
        pool.release(slot)


def test_the_longest_prefix_wins() -> None:
    pool = SlotPool(3)
    fill(pool, [1, 2, 3], [1, 2, 3, 4, 5], [7])
    slot = pool.acquire([1, 2, 3, 4, 5, 6])
    assert slot is not None
    assert slot.tokens == [1, 2, 3, 4, 5]


def test_without_a_prefix_an_empty_slot_and_then_the_oldest() -> None:
    pool = SlotPool(3)
    fill(pool, [1] * 5, [2] * 5)
    order = [pool.acquire([8] * 20) for _ in range(3)]
    assert [slot.tokens[:1] for slot in order if slot] == [[], [1], [2]]
    assert pool.acquire([1]) is None


def test_one_shared_token_does_not_take_a_conversation() -> None:
    pool = SlotPool(2)
    fill(pool, [1, *range(50, 90)])
    slot = pool.acquire([1, *range(100, 140)])
    assert slot is not None
    assert slot.tokens == []


def test_eviction_forgets_the_oldest_cached() -> None:
    pool = SlotPool(3)
    fill(pool, [1], [2], [3])
    held = pool.acquire([1])
    evicted = pool.evict()
    assert held is not None
    assert evicted is not None
    assert (held.tokens, evicted.seq) == ([1], 1)
    pool.evict()
    assert pool.evict() is None
    assert pool.counts() == {"free": 2, "held": 1, "cached": 0, "total": 3}


@given(steps=st.lists(st.tuples(st.sampled_from(["acquire", "release", "evict"]), tokens), max_size=40))
def test_conservation(steps: list[tuple[str, list[int]]]) -> None:
    pool = SlotPool(4)
    held = []
    for action, content in steps:
        if action == "acquire":
            slot = pool.acquire(content)
            assert (slot is None) == (len(held) == 4)
            if slot is not None:
                slot.tokens[:] = content
                held.append(slot)
        elif action == "release" and held:
            pool.release(held.pop(0))
        else:
            pool.evict()
        pool.check_integrity(lambda seq: (0, len(pool.slots[seq].tokens) - 1))
        assert pool.counts()["held"] == len(held)


def test_integrity_says_the_numbers() -> None:
    pool = SlotPool(2)
    fill(pool, [1, 2, 3])
    with pytest.raises(InternalError, match="slot 0 books 3 tokens, its memory ends at position 7"):
        pool.check_integrity(lambda seq: (0, 7) if seq == 0 else (-1, -1))
