"""Text of a running generation."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyllm.engine.text import TextStream

words = st.text(alphabet="abé€𝄞", min_size=1, max_size=4)


@given(text=st.text(alphabet="abé€𝄞", max_size=30), stop=st.lists(words, max_size=3), cuts=st.lists(st.integers(1, 3), max_size=60))
def test_pieces_give_the_same_text_as_the_whole(text: str, stop: list[str], cuts: list[int]) -> None:
    data = text.encode()
    places = [place for word in stop if (place := text.find(word)) >= 0]
    stream = TextStream(tuple(stop))
    shown = ""
    begin = 0
    for length in [*cuts, len(data)]:
        if stream.stopped:
            break
        stream.push(data[begin : begin + length])
        begin += length
        shown += stream.release()
        assert not any(word in shown for word in stop)
    stream.finish()
    shown += stream.release(final=True)
    assert shown == stream.text
    # The earliest stop string that is complete ends the text; one that ends sooner may begin later.
    if places:
        ends = min(text.find(word) + len(word) for word in stop if word in text)
        assert stream.stopped
        assert text.startswith(shown)
        assert len(shown) <= ends
    else:
        assert shown == text


def test_an_incomplete_character_is_held_back_and_then_replaced() -> None:
    stream = TextStream(())
    stream.push("é".encode()[:1])
    assert stream.release() == ""
    stream.finish()
    assert stream.release(final=True) == "\ufffd"
