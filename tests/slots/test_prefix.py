"""How much of a prompt can be kept, and where checkpoints are taken."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyllm.checkpoints import State
from pyllm.slots import Reach, Source, next_mark


def marks(*lengths: int) -> list[State]:
    return [State(length, b"x", b"", partial=True) for length in lengths]


def test_plain_memory_can_be_cut_anywhere() -> None:
    source = Source(list(range(100)), 0, [], 100)
    for shared in (0, 1, 50, 99, 100):
        assert source.reach(shared, n_swa=0, recurrent=False) == Reach(shared)


def test_a_window_that_has_slid_needs_a_checkpoint() -> None:
    source = Source(list(range(100)), 60, [], 100)
    assert source.reach(90, n_swa=16, recurrent=False) == Reach(90)
    assert source.reach(70, n_swa=16, recurrent=False) == Reach(0)
    before = marks(20, 50)
    assert Source(list(range(100)), 60, before, 100).reach(70, n_swa=16, recurrent=False) == Reach(50, before[1])


def test_recurrent_state_is_there_at_its_end_or_at_a_checkpoint() -> None:
    before = marks(20, 50)
    source = Source(list(range(100)), 0, before, 100)
    assert source.reach(100, n_swa=0, recurrent=True) == Reach(100)
    assert source.reach(99, n_swa=0, recurrent=True) == Reach(50, before[1])
    assert source.reach(49, n_swa=0, recurrent=True) == Reach(20, before[0])
    assert source.reach(19, n_swa=0, recurrent=True) == Reach(0)


def test_what_a_context_shift_has_moved_is_not_shared() -> None:
    source = Source(list(range(100)), 0, [], 8)
    assert source.reach(60, n_swa=0, recurrent=False) == Reach(8)


@given(
    st.integers(0, 80),
    st.integers(0, 80),
    st.lists(st.integers(1, 80), unique=True),
    st.integers(0, 80),
    st.integers(0, 30),
    st.booleans(),
)
def test_never_more_than_is_shared_or_sure(  # noqa: PLR0917 - drawn by position
    length: int, shared: int, ends: list[int], sure: int, n_swa: int, recurrent: bool
) -> None:
    shared, sure = min(shared, length), min(sure, length)
    source = Source(list(range(length)), 0, marks(*sorted(end for end in ends if end <= length)), sure)
    reach = source.reach(shared, n_swa=n_swa, recurrent=recurrent)
    assert 0 <= reach.kept <= min(shared, sure)
    assert reach.mark is None or reach.mark.n_tokens == reach.kept


@given(st.integers(1, 300), st.integers(1, 64), st.lists(st.integers(0, 300)), st.booleans())
def test_a_prompt_is_walked_from_mark_to_mark(length: int, every: int, turns: list[int], before_last: bool) -> None:
    places = []
    begin = 0
    while (place := next_mark(begin, length, every=every, turns=turns, before_last=before_last)) is not None:
        assert begin < place < length
        places.append(place)
        begin = place
    assert set(range(every, length, every)) <= set(places)
    assert {turn for turn in turns if 0 < turn < length} <= set(places)
    assert (length - 1 in places) >= (before_last and length > 1)
