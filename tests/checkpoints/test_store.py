"""Conversations without a slot, under their budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyllm.checkpoints import Checkpoint, CheckpointStore, State


def kept(tokens: list[int], size: int) -> Checkpoint:
    return Checkpoint(tokens, State(len(tokens), bytes(size), b""), exact=len(tokens))


def test_least_recently_used_goes_first() -> None:
    store = CheckpointStore(30)
    one, two, three = kept([1], 10), kept([2], 10), kept([3], 10)
    for entry in (one, two, three):
        assert store.put(entry, 30)
    store.touch(one)
    assert store.put(kept([4], 10), 30)
    assert [entry.tokens for entry in store] == [[4], [1], [3]]
    assert store.n_evicted == 1


def test_a_longer_one_replaces_what_it_continues() -> None:
    store = CheckpointStore(100)
    store.put(kept([1, 2], 10), 100)
    store.put(kept([1, 3], 10), 100)
    store.put(kept([1, 2, 5], 10), 100)
    assert sorted(entry.tokens for entry in store) == [[1, 2, 5], [1, 3]]
    assert store.holds([1, 2])
    assert not store.holds([2])


def test_what_does_not_fit_is_not_kept() -> None:
    store = CheckpointStore(5)
    assert not store.put(kept([1], 6), 5)
    assert len(store) == 0


@given(st.lists(st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.integers(0, 40), st.integers(0, 60)), max_size=40))
def test_the_budget_holds(puts: list[tuple[list[int], int, int]]) -> None:
    store = CheckpointStore(60)
    for tokens, size, room in puts:
        stored = store.put(kept(tokens, size), room)
        assert stored == (size <= room)
        assert store.used <= (room if stored else 60)
        assert not stored or store.holds(tokens)
