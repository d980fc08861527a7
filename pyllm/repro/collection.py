"""Where the scenario files are."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pyllm.errors import NotFoundError
from pyllm.repro.scenario import path_name

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Names the folder where the scenario files are.
ENVIRONMENT = "PYLLM_REPRO"


def folder() -> Path:
    """The folder of scenario files: ``$PYLLM_REPRO``, ``./repro``, or the one beside an editable installation.

    Raises:
        NotFoundError: none of them is there.
    """
    named = os.environ.get(ENVIRONMENT)
    if named:
        if not Path(named).is_dir():
            raise NotFoundError(f"there is no folder `{named}`", f"set {ENVIRONMENT} to the folder of the scenario files")
        return Path(named)
    for place in (Path("repro"), Path(__file__).resolve().parents[2] / "repro"):
        if place.is_dir():
            return place
    raise NotFoundError("there is no folder `repro` here", f"run in a clone of the repository, set {ENVIRONMENT}, or give the files")


def find_scenarios(wanted: Sequence[str] = ()) -> list[Path]:
    """Files of the given names, paths or folders; all of them when none is given.

    A name is a scenario's name, or its beginning: ``reports`` means all files of that folder, ``reports/003`` the one
    that starts so.

    Raises:
        NotFoundError: a name means no file.
    """
    if not wanted:
        return _below(folder())
    found: list[Path] = []
    for name in wanted:
        path = Path(name)
        if path.is_dir():
            found += _below(path)
        elif path.suffix in {".yaml", ".yml"} or path.is_file():
            found.append(path)
        else:
            found += _named(name)
    return list(dict.fromkeys(found))


def _below(place: Path) -> list[Path]:
    return sorted(place.rglob("*.yaml"))


def _named(name: str) -> list[Path]:
    files = {path_name(path): path for path in _below(folder())}
    found = [path for known, path in files.items() if known == name or known.startswith(name)]
    if not found:
        near = difflib.get_close_matches(name, list(files), 1, 0.4)
        raise NotFoundError(f"there is no scenario `{name}`", f"did you mean `{near[0]}`?" if near else "see `pyllm repro list`")
    return found
