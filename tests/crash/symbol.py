"""Where a hidden function of a shared library lies, from its table of symbols."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_SYMTAB = 2


def offset(library: Path, name: str) -> int | None:
    """Offset of a function in a 64-bit little-endian ELF file; None where the file is another or was stripped."""
    data = library.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        return None
    (sections,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)

    def section(index: int) -> tuple[int, int, int, int]:
        kind, start, length, link = struct.unpack_from("<4xI16xQQI", data, sections + index * size)
        return kind, start, length, link

    for kind, start, length, link in map(section, range(count)):
        if kind == _SYMTAB:
            texts = section(link)[1]
            for text, value in struct.iter_unpack("<I4xQ8x", data[start : start + length]):
                if data.startswith(name.encode() + b"\0", texts + text):
                    return int(value)
    return None
