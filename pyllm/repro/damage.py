"""Damage to a saved slot: what a disk, another version or a mix-up does to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.errors import NotFoundError, ScenarioError

if TYPE_CHECKING:
    from pathlib import Path


def corrupt(path: Path, field: str, value: int | str) -> None:
    """Change one thing of a saved slot's file.

    ``byte`` inverts the byte at that place (from the end where negative), ``length`` cuts the file to so many bytes; any other field is a fact of its
    header, written anew with the file whole: ``model``, ``kv_types``, ``drafters`` …

    Raises:
        NotFoundError: there is no such file.
        ScenarioError: no such place or fact.
        StateError: the file is no saved slot.
    """
    if not path.is_file():
        raise NotFoundError(f"`{path.name}` was not saved", "save a slot to it in an earlier step")
    data = bytearray(path.read_bytes())
    if field in {"byte", "length"}:
        if not isinstance(value, int) or not -len(data) <= value < len(data):
            raise ScenarioError(f"{field} {value!r} is not a place in `{path.name}` of {len(data)} bytes", "give a number in the file")
        if field == "byte":
            data[value] ^= 0xFF
            path.write_bytes(data)
        else:
            path.write_bytes(data[: value % (len(data) + 1)])
        return
    from pyllm._ffi import CheckpointFile, write_checkpoint_file  # noqa: PLC0415 - loads the native library

    with CheckpointFile(path) as file:
        facts = dict(file.facts)
        sections = {name: bytes(file.read(name)) for name in file.sections}
    if field not in facts:
        raise ScenarioError(f"`{path.name}` has no fact `{field}`", f"choose from byte, length, {', '.join(facts)}")
    write_checkpoint_file(path, facts | {field: str(value)}, sections)
