"""The record of a run of all combinations (``tests/engine/test_matrix.py``), from the XML files that pytest has written of it."""

from __future__ import annotations

import argparse
import ast
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from pyllm.bench.decode import machine
from pyllm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

COMMAND = "pytest -m slow tests/engine/test_matrix.py::test_everything -o junit_family=xunit1 --junit-xml=FILE"
#: What a combination's name begins with, in this order.
AXES = ("pair", "slots", "kv_type", "unified", "shift", "program")
#: Answers of the random family, those of the successor family, and the combinations that verified by rejection sampling.
COUNTS = ("count", "near_ties", "drafted", "accepted", "known_count", "known_drafted", "known_accepted", "restored_drafted", "restored_accepted", "rejection")


def _case(name: str) -> tuple[object, ...]:
    """``test_everything[(('llama', 'dflash', 'llama-dflash'), 1, 'f16', False, False, 'cold')]``."""
    case: tuple[object, ...] = ast.literal_eval(name[name.index("[") + 1 : name.rindex("]")])
    return case


def summary(files: Iterable[Path]) -> dict[str, Any]:
    """Combinations, what was compared in them, and those that failed with the first line of the reason.

    Raises:
        ConfigError: a combination that was played twice.
    """
    total: Counter[str] = Counter()
    axes: dict[str, Counter[str]] = {axis: Counter() for axis in AXES}
    violations = {}
    seen = set()
    for file in files:
        # The file is pytest's own, of this machine.
        for test in ET.parse(file).iter("testcase"):  # noqa: S314
            name = test.get("name", "")
            if name in seen:
                raise ConfigError(f"`{name}` is in {file} and in another file", "give the files of one run")
            seen.add(name)
            for axis, value in zip(AXES, _case(name), strict=True):
                axes[axis][" ".join(map(str, value)) if isinstance(value, tuple) else str(value)] += 1
            fault = next((child for child in test if child.tag in {"failure", "error"}), None)
            if fault is not None:
                violations[name] = fault.get("message", "").splitlines()[0]
            total["seconds"] += round(float(test.get("time", "0")))
            for row in test.iter("property"):
                total[row.get("name", "")] += int(row.get("value", "0"))
    return {"combinations": len(seen), "violations": violations} | {name: total[name] for name in (*COUNTS, "seconds")} | {"axes": axes}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the record of a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit")
    parser.add_argument("files", nargs="+", type=Path)
    given = parser.parse_args(arguments)
    print(json.dumps({"command": COMMAND, "commit": given.commit} | machine() | summary(given.files), indent=1))


if __name__ == "__main__":
    main()
