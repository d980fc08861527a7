"""Bytes of states: large ones leave no holes in malloc's heap, and all are as good as bytes."""

from __future__ import annotations

import copy
import ctypes
import pickle
import random

import pytest

from pyllm import models
from pyllm._ffi import Batch, Context, Model
from pyllm._ffi.blob import MAPPED_FROM, Mapped, blob_of
from pyllm._ffi.door import ffi
from pyllm.errors import OutOfMemoryError
from tests.conftest import prompt_tokens


def filled(size: int, seed: int = 0) -> tuple[object, bytes]:
    data = random.Random(seed).randbytes(size)
    return blob_of(size, lambda array: ffi.memmove(array, data, size)), data


@pytest.mark.parametrize("size", [0, 1, MAPPED_FROM - 1, MAPPED_FROM, MAPPED_FROM + 5000])
def test_as_good_as_bytes(size: int) -> None:
    blob, data = filled(size)
    assert isinstance(blob, bytes if size < MAPPED_FROM else Mapped)
    assert len(blob) == size
    assert blob == data
    assert data == blob
    assert blob != data + b"x"
    assert blob != filled(size, 1)[0] or size == 0
    assert hash(blob) == hash(data)
    assert blob[:100] == data[:100]
    assert pickle.loads(pickle.dumps(blob)) == data  # noqa: S301 - its own
    assert copy.deepcopy(blob) == data


def test_no_room_is_an_error_with_the_number() -> None:
    with pytest.raises(OutOfMemoryError, match=f"the {2**60} bytes of a state"):
        blob_of(2**60, lambda _: None)


class _Heap(ctypes.Structure):
    """glibc's ``struct mallinfo2``; ``arena`` are the bytes of the heap, free ones in its middle among them, mapped blocks apart."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]


def heap() -> int:
    """Bytes of malloc's heap."""
    try:
        info = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        pytest.skip("this C library does not tell about its heap")
    info.restype = _Heap
    return int(info().arena)


def test_large_states_leave_no_holes() -> None:
    """They come and go in no order, with small objects between them: the heap stays as large as the small ones need it."""
    chance = random.Random(1)
    small, held = [], []
    with Model(models.make("qwen35")) as model, Context(model, n_ctx=256, n_batch=256) as context, Batch(context) as batch:
        batch.add(0, 0, prompt_tokens(0, 200), "last")
        context.decode(batch)
        size = len(context.state(0))
        assert size > MAPPED_FROM
        before = heap()
        for _ in range(200):
            held.append(context.state(0))
            small.append(ctypes.create_string_buffer(1000))
            if len(held) > 12:
                del held[chance.randrange(len(held))]
        assert heap() - before < 2 * size
        assert all(state == held[0] for state in held)
