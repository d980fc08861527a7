"""Bytes of a state. Large ones have pages of their own.

States of a size live from one step to many requests, and small objects come between them. On malloc's heap the holes that they leave cannot be given back
to the system: an engine that held 20 MiB grew to between 25 and 40.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any

from pyllm._ffi.door import ffi
from pyllm.errors import OutOfMemoryError

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

#: Bytes from which on a blob is mapped. malloc begins here, too, but raises its own limit to the largest block that was ever freed.
MAPPED_FROM = 2**17


class Mapped(mmap.mmap):
    """Zeros in pages of their own, given back when the last reference goes. Equal to the same bytes, and pickled as bytes."""

    def __new__(cls, size: int) -> Self:
        """Map ``size`` bytes, more than none.

        Raises:
            OutOfMemoryError: the system has no such room.
        """
        try:
            # Without a flag they would be shared with forked children, and with what these write there.
            return super().__new__(cls, -1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as failure:
            raise OutOfMemoryError(f"no room for the {size} bytes of a state: {failure.strerror}", "lower cache_bytes, or keep fewer checkpoints") from None

    def __eq__(self, other: object) -> bool:
        """Whether the bytes are the same."""
        return memoryview(self) == other

    def __hash__(self) -> int:
        """That of the same bytes."""
        return hash(self[:])

    def __reduce__(self) -> tuple[type[bytes], tuple[bytes]]:
        """A mapping has no place in a pickle."""
        return bytes, (self[:],)


Blob = bytes | Mapped


def blob_of(size: int, write: Callable[[Any], None]) -> Blob:
    """``size`` bytes as ``write`` fills them, which gets a C array of that size.

    Raises:
        OutOfMemoryError: there is no room for them.
    """
    if size < MAPPED_FROM:
        data = ffi.new("uint8_t[]", max(1, size))
        write(data)
        return bytes(ffi.buffer(data, size))
    mapped = Mapped(size)
    write(ffi.from_buffer("uint8_t[]", mapped))
    return mapped
