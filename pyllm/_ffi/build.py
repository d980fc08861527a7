"""Writes the C source of the cffi module from ``native/include/pyllm.h``: ``build.py HEADER OUTPUT``.

The header is the one description of the ABI. What cffi cannot read (preprocessor lines, the export macro, the C++ guards) is
taken out here; the compiler then checks the rest against the real header.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from cffi import FFI


def declarations(header: str) -> str:
    """The header as cffi's ``cdef`` reads it."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    text = re.sub(r"#ifdef __cplusplus.*?#endif", "", text, flags=re.DOTALL)
    constants = re.findall(r"^#define (PYLLM_[A-Z_]*VERSION) \d+", text, flags=re.MULTILINE)
    text = re.sub(r"^#.*$", "", text, flags=re.MULTILINE).replace("PYLLM_API ", "")
    return "".join(f"#define {name} ...\n" for name in constants) + text


def main(header: Path, output: Path) -> None:
    """Write the module ``pyllm._ffi._native`` for ``header`` to ``output``."""
    ffi = FFI()
    ffi.cdef(declarations(header.read_text(encoding="utf-8")))
    ffi.set_source("pyllm._ffi._native", '#include "pyllm.h"\n', py_limited_api=True)
    ffi.emit_c_code(str(output))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
