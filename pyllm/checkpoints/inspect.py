"""What a checkpoint file says of itself, and whether it is whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyllm._ffi import CheckpointFile, Section
from pyllm.errors import StateError

if TYPE_CHECKING:
    import os


@dataclass(frozen=True)
class Report:
    """One file. ``size`` is in bytes, ``version`` that of the format; ``damaged`` names the sections whose bytes are not those that were written."""

    path: Path
    size: int
    version: int
    facts: dict[str, str]
    sections: tuple[Section, ...]
    damaged: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether every byte is as it was written."""
        return not self.damaged

    def problems(self, fingerprint: str | None = None) -> list[str]:
        """Why the file cannot be used: at all, or with the model of a fingerprint. Empty when it can."""
        found = [f"the checksum of section `{name}` differs" for name in self.damaged]
        model = self.facts.get("model")
        if fingerprint is not None and model != fingerprint:
            found.append(f"it was saved with model {model or 'not said'}, this one is {fingerprint}")
        return found


def inspect(path: str | os.PathLike[str]) -> Report:
    """Read all of a file.

    Raises:
        NotFoundError: no such file.
        StateError: not a checkpoint file, of a newer format, or damaged outside of its sections.
    """
    with CheckpointFile(path) as file:
        damaged = tuple(name for name in file.sections if not _whole(file, name))
        return Report(Path(path), file.size, file.version, file.facts, file.table, damaged)


def _whole(file: CheckpointFile, section: str) -> bool:
    try:
        file.verify(section)
    except StateError:
        return False
    return True
