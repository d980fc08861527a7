"""Where the scenario files are, and those of the reported engines' selectors."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pyllm.errors import NotFoundError
from pyllm.repro.part import near

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Names the folder where the scenario files are.
ENVIRONMENT = "PYLLM_REPRO"

#: The folder of the selectors, beside the scenarios.
ENGINES = "engines"


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
            below = _below(path)
            if not below:
                raise NotFoundError(f"there is no scenario in `{path}`", "see `pyllm repro list`")
            found += below
        elif path.suffix in {".yaml", ".yml"} or path.is_file():
            found.append(path)
        else:
            found += _named(name)
    return list(dict.fromkeys(found))


def _below(place: Path) -> list[Path]:
    return sorted(path for path in place.rglob("*.yaml") if path.resolve().parent.name != ENGINES)


def _named(name: str) -> list[Path]:
    files = {path_name(path): path for path in _below(folder())}
    found = [path for known, path in files.items() if known == name or known.startswith(name)]
    if not found:
        close = difflib.get_close_matches(name, list(files), 1, 0.4)
        raise NotFoundError(f"there is no scenario `{name}`", f"did you mean `{close[0]}`?" if close else "see `pyllm repro list`")
    return found


def path_name(path: Path) -> str:
    """The name that a scenario file has to carry: its path below the nearest folder ``repro``, without suffix, or its stem."""
    parts = path.resolve().with_suffix("").parts
    below = [index for index, part in enumerate(parts[:-1]) if part == "repro"]
    return "/".join(parts[below[-1] + 1 :]) if below else parts[-1]


def engine_file(name: str, beside: Path) -> Path:
    """The selector called ``name``, for a scenario in the folder ``beside``: in ``engines`` there or above, or in the folder of scenario files.

    Raises:
        NotFoundError: there is none; the hint has the nearest name.
    """
    above = beside.resolve()
    for place in (above, *above.parents):
        if (place / ENGINES / f"{name}.yaml").is_file():
            return place / ENGINES / f"{name}.yaml"
    known = {path.stem: path for path in sorted((folder() / ENGINES).glob("*.yaml"))}
    if name not in known:
        raise NotFoundError(f"there is no engine `{name}`", near(name, list(known), "engines"))
    return known[name]
