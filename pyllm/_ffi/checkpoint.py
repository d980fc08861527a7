"""Files of saved conversations: facts and named sections of bytes. ``native/state/README.md`` has the layout."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyllm._ffi.blob import blob_of
from pyllm._ffi.door import Handle, check, ffi, lib, text_of
from pyllm.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyllm._ffi.blob import Blob
    from pyllm._ffi.model import Model


@dataclass(frozen=True)
class Section:
    """Where a section lies in its file; ``offset`` and ``size`` are bytes, ``checksum`` is XXH3 of 64 bits."""

    name: str
    offset: int
    size: int
    checksum: int


def _c_text(what: str, text: str | bytes) -> bytes:
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if b"\0" in data:
        raise InvalidArgumentError(f"{what} {text!r} holds a zero character", "take it out")
    return data


def write_checkpoint_file(path: str | os.PathLike[str], facts: Mapping[str, str], sections: Mapping[str, Blob]) -> None:
    """Write a file in place of the one at ``path``: at any moment, also when the process is killed, the old one or the new one is there, whole.

    Raises:
        NotFoundError: the folder does not exist.
        LimitError: the disk is full, a limit on file sizes was met, or the folder cannot be written; the old file is as it was.
        InvalidArgumentError: a section name that is not 1 to 32 letters, digits, ``.``, ``_``, ``-``; text that is not UTF-8; not a regular file.
    """
    keys = [ffi.new("char[]", _c_text("the name of a fact", key)) for key in facts]
    values = [ffi.new("char[]", _c_text(f"the fact `{key}`", value)) for key, value in facts.items()]
    names = [ffi.new("char[]", _c_text("the name of a section", name)) for name in sections]
    datas = [ffi.from_buffer("uint8_t[]", data) for data in sections.values()]
    check(
        lib.pyllm_checkpoint_file_write(
            _c_text("the path", os.fsencode(path)),
            ffi.new("char *[]", keys),
            ffi.new("char *[]", values),
            len(keys),
            ffi.new("char *[]", names),
            ffi.new("uint8_t *[]", datas),
            ffi.new("size_t[]", [len(data) for data in datas]),
            len(names),
        )
    )


class CheckpointFile(Handle):
    """An open file, checked but for the bytes of its sections, which are checked when they are read (``pyllm_checkpoint_file``).

    What it says does not change when another file takes its place.

    Raises:
        NotFoundError: no such file.
        StateError: not a checkpoint file, damaged, or of a newer format; also later, by ``read`` and ``verify``.
    """

    kind = "checkpoint file"
    free = "pyllm_checkpoint_file_close"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        out = ffi.new("pyllm_checkpoint_file **")
        check(lib.pyllm_checkpoint_file_open(_c_text("the path", os.fsencode(path)), out))
        super().__init__(out[0])
        info = ffi.new("pyllm_checkpoint_info *")
        check(lib.pyllm_checkpoint_file_get_info(self._pointer, info))
        self.version = int(info.version)
        self.size = int(info.size)
        self.facts = dict(self._fact(index) for index in range(info.n_facts))
        self.table = tuple(self._section(index) for index in range(info.n_sections))

    @property
    def sections(self) -> dict[str, int]:
        """Names and sizes in bytes, in the order of the file."""
        return {section.name: section.size for section in self.table}

    def read(self, name: str) -> Blob:
        """Bytes of a section.

        Raises:
            StateError: there is no such section, or its bytes are damaged.
            OutOfMemoryError: there is no room for them.
        """
        size = self.sections.get(name, 0)
        got = ffi.new("size_t *")
        return blob_of(size, lambda data: check(lib.pyllm_checkpoint_file_read(self._pointer, _c_text("the name of a section", name), data, size, got)))

    def verify(self, name: str | None = None) -> None:
        """Check the bytes of one section, or of all.

        Raises:
            StateError: with the name of each damaged one.
        """
        check(lib.pyllm_checkpoint_file_verify(self._pointer, ffi.NULL if name is None else _c_text("the name of a section", name)))

    def _fact(self, index: int) -> tuple[str, str]:
        key, value = ffi.new("char **"), ffi.new("char **")
        check(lib.pyllm_checkpoint_file_get_fact(self._pointer, index, key, value))
        return text_of(key[0]), text_of(value[0])

    def _section(self, index: int) -> Section:
        section = ffi.new("pyllm_checkpoint_section *")
        check(lib.pyllm_checkpoint_file_get_section(self._pointer, index, section))
        return Section(text_of(section.name), int(section.offset), int(section.size), int(section.checksum))


def model_fingerprint(model: Model) -> str:
    """16 hexadecimal digits that tell the model's file from others of the same shape; equal for copies, computed in milliseconds.

    They are a hash of the size and of samples of the bytes, of all parts of a split model.

    Raises:
        NotFoundError: the file is not where the model was loaded from any more.
    """
    length = ffi.new("size_t *")
    text = ffi.new("char[]", 64)
    check(lib.pyllm_model_fingerprint(model._pointer, text, 64, length))  # noqa: SLF001 - a handle of this package
    return text_of(text)
