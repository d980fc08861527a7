"""Writes what is made from the table and the kernel facts: ``python -m pyllm.routes.generate`` writes, ``--check`` compares."""

from __future__ import annotations

import sys
from pathlib import Path

from pyllm.routes.executors import ACCEPTS
from pyllm.routes.kernels import MMA_INSTANCES
from pyllm.routes.matrix import matrix
from pyllm.routes.page import page
from pyllm.routes.table import ROWS
from pyllm.routes.tablefile import Table, dump
from pyllm.routes.verify import HEADS, INSTANCES

ROOT = Path(__file__).parents[2]

_NOTE = "Made by `ci/generate` from pyllm/routes; not edited by hand."


def table_include() -> str:
    """The built-in table as a C++ raw string."""
    return f'R"routes({dump(Table(ROWS, ACCEPTS))})routes"\n'


def instances_include() -> str:
    """Upstream's matrix-unit instances, for the dispatcher's table of functions."""
    lines = [f"MMA_INSTANCE({dk}, {dv}, {ncols1}, {ncols2})" for (dk, dv), tiles in MMA_INSTANCES.items() for ncols1, ncols2 in sorted(tiles)]
    return "\n".join([f"// {_NOTE}", *lines]) + "\n"


def verify_include() -> str:
    """The instances of the verify route, for its dispatcher and its kernels."""
    lines = [f"VERIFY_INSTANCE({', '.join(str(value).upper() for value in one)})" for one in INSTANCES]
    return "\n".join([f"// {_NOTE}", *lines]) + "\n"


def heads_include() -> str:
    """The head dims that it has."""
    return "\n".join([f"// {_NOTE}", *(f"VERIFY_HEAD({d_k}, {d_v})" for d_k, d_v in HEADS)]) + "\n"


def files() -> dict[Path, str]:
    """Path and content of each file."""
    return {
        ROOT / "native/route/default_table.inc": table_include(),
        ROOT / "native/fattn/instances.inc": instances_include(),
        ROOT / "native/fattn/verify/instances.inc": verify_include(),
        ROOT / "native/fattn/verify/heads.inc": heads_include(),
        ROOT / "ROUTES.md": page(),
        ROOT / "tests/routes/golden/matrix.txt": matrix(),
    }


def main(arguments: list[str]) -> int:
    """Write the files, or with ``--check`` name those that differ; the exit code is 1 then."""
    stale = []
    for path, text in files().items():
        if "--check" in arguments:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                stale.append(str(path.relative_to(ROOT)))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if stale:
        sys.stderr.write(f"error: not made from the present route table: {', '.join(stale)}\n\nhint: run `ci/generate` and review the difference\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
