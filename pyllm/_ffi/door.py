"""The one door to the compiled module: ``ffi``, ``lib``, the version handshake, and the translation of statuses."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from pyllm import errors
from pyllm._version import __version__

try:
    from pyllm._ffi import _native  # type: ignore[attr-defined]  # noqa: TID251 - this is the door
except ImportError as cause:
    message = (
        f"the native library of pyllm could not be loaded: {cause}\n\n"
        "hint: the package is not built; run `pip install .` in the repository, outside of its folder import the installed one"
    )
    raise ImportError(message) from cause

ffi: Any = _native.ffi
lib: Any = _native.lib


def handshake(package: str, library: str, header_abi: int, library_abi: int) -> None:
    """Refuse a library that was built for another package or another header.

    Raises:
        ImportError: naming both versions, the likely cause and the way out.
    """
    if package == library and header_abi == library_abi:
        return
    text = (
        f"pyllm is {package} (ABI {header_abi}) but its native library is {library} (ABI {library_abi}): "
        "two copies of pyllm are probably on the path\n\n"
        "hint: uninstall both and install once, into a fresh environment"
    )
    raise ImportError(text)


handshake(__version__, ffi.string(lib.pyllm_version()).decode(), lib.PYLLM_ABI_VERSION, lib.pyllm_abi_version())

#: Folder of the installed native files; ``pyllm-server`` lies in ``bin`` beside it.
NATIVE_FOLDER = Path(_native.__file__).parent

EXCEPTIONS: dict[int, type[errors.PyllmError]] = {
    lib.PYLLM_INVALID_ARGUMENT: errors.InvalidArgumentError,
    lib.PYLLM_NOT_FOUND: errors.NotFoundError,
    lib.PYLLM_MODEL_FORMAT: errors.ModelFormatError,
    lib.PYLLM_INCOMPATIBLE: errors.IncompatibleError,
    lib.PYLLM_UNSUPPORTED: errors.UnsupportedError,
    lib.PYLLM_LIMIT: errors.LimitError,
    lib.PYLLM_CONTEXT_FULL: errors.ContextFullError,
    lib.PYLLM_OUT_OF_MEMORY: errors.OutOfMemoryError,
    lib.PYLLM_STATE: errors.StateError,
    lib.PYLLM_DECODE: errors.DecodeError,
    lib.PYLLM_CANCELLED: errors.CancelledError,
    lib.PYLLM_INTERNAL: errors.InternalError,
}


def text_of(pointer: Any) -> str:
    """A C string as text; bytes that are not UTF-8 are replaced."""
    return bytes(ffi.string(pointer)).decode("utf-8", "replace")


def check(status: int) -> None:
    """Raise the exception of a status that is not ``PYLLM_OK``, with the native message and hint."""
    if status == 0:
        return
    kind = EXCEPTIONS.get(status, errors.InternalError)
    raise kind(text_of(lib.pyllm_error_message()), text_of(lib.pyllm_error_hint()))


class Handle:
    """Owner of one native handle.

    ``_pointer`` raises ``ClosedError`` after ``close()``; closing twice is silent. A subclass names its kind and its free function.
    """

    kind: str
    free: str

    def __init__(self, pointer: Any) -> None:
        self._handle: Any = pointer

    @property
    def _pointer(self) -> Any:
        if self._handle is None:
            raise errors.ClosedError(f"this {self.kind} is closed", "make a new one, or close it later")
        return self._handle

    @property
    def closed(self) -> bool:
        """Whether ``close()`` was called."""
        return self._handle is None

    def close(self) -> None:
        """Free the native side. Handles made from this one keep what they need alive."""
        if self._handle is not None:
            pointer, self._handle = self._handle, None
            getattr(lib, self.free)(pointer)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()


def set_log_level(level: str) -> None:
    """Upstream's log lines at or above ``debug``, ``info``, ``warning``, ``error`` go to stderr; ``none`` (the default) silences them."""
    names = ("debug", "info", "warning", "error", "none")
    if level not in names:
        raise errors.InvalidArgumentError(f"log level `{level}` is not known", f"choose from {', '.join(names)}")
    lib.pyllm_log_set_level(names.index(level) + 1)


def default_threads() -> int:
    """Threads that upstream's server would use on this machine."""
    return int(lib.pyllm_default_threads())


def kernels() -> str:
    """A digest of the sources of the attention kernels that the library was built from."""
    return text_of(lib.pyllm_kernels())


def upstream_commit() -> str:
    """The commit of llama.cpp that the library was built from."""
    return text_of(lib.pyllm_upstream_commit())


def build_info() -> str:
    """Compiler, backends and CPU features of the library, in one line."""
    return text_of(lib.pyllm_build_info())


KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")


def kv_type(name: str) -> int:
    """The ggml number of a KV cache type.

    Raises:
        InvalidArgumentError: the name is none of upstream's ``--cache-type-k``.
    """
    number = int(lib.pyllm_kv_type_from_name(name.encode()))
    if number < 0:
        near = difflib.get_close_matches(name, KV_TYPES, 1)
        hint = f"choose from {', '.join(KV_TYPES)}"
        raise errors.InvalidArgumentError(f"`{name}` is not a KV cache type", f"did you mean `{near[0]}`? {hint}" if near else hint)
    return number


def kv_type_name(number: int) -> str:
    """The name of a ggml type number."""
    return text_of(lib.pyllm_kv_type_name(number))
