"""Every exception that pyllm raises.

One class per native status (see ``pyllm_status`` in ``native/include/pyllm.h``), plus the few that only Python can meet.
Each is also the builtin that a caller would reach for, and carries its way out as data:

    PyllmError
    ├── InvalidArgumentError   ValueError      a number or a name outside what is possible
    ├── NotFoundError          FileNotFoundError
    ├── ModelFormatError       ValueError      a file that is not a GGUF model, truncated, or of an unknown architecture
    ├── IncompatibleError      ValueError      two files that do not belong together (vocabulary, width, layers)
    ├── UnsupportedError       RuntimeError    well-formed, but this model, build or device cannot do it
    ├── LimitError             ValueError      a configured or built-in limit, with the value and the limit
    ├── ContextFullError       RuntimeError    no room in the KV cache
    ├── OutOfMemoryError       MemoryError
    ├── ClosedError            RuntimeError    use after close
    ├── StateError             ValueError      saved bytes that do not fit this context
    ├── DecodeError            RuntimeError    the graph failed; the message carries the node when there is one
    ├── CancelledError         RuntimeError
    ├── InternalError          RuntimeError    a defect of pyllm itself
    ├── ConfigError            ValueError      flags and settings
    ├── ScenarioError          ValueError      a scenario file, with line and column
    └── ServerError            RuntimeError    the server process: not found, port in use, died
"""

from __future__ import annotations


class PyllmError(Exception):
    """Base of every pyllm exception.

    ``message`` says what is wrong with the value and the limit, in one line without a full stop;
    ``hint`` says the way out, or is empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message

    def render(self) -> str:
        """The text a terminal shows: ``error:`` line, blank line, ``hint:`` line."""
        text = f"error: {self.message}"
        return f"{text}\n\nhint: {self.hint}" if self.hint else text


class InvalidArgumentError(PyllmError, ValueError):
    """A number or a name outside what is possible."""


class NotFoundError(PyllmError, FileNotFoundError):
    """A file, a binary or a recipe that is not there."""


class ModelFormatError(PyllmError, ValueError):
    """A file that is not a GGUF model, is truncated, or names an unknown architecture."""


class IncompatibleError(PyllmError, ValueError):
    """Two files that do not belong together: vocabulary, hidden width, tapped layers."""


class UnsupportedError(PyllmError, RuntimeError):
    """Well-formed, but this model, build or device cannot do it."""


class LimitError(PyllmError, ValueError):
    """A configured or built-in limit was passed."""


class ContextFullError(PyllmError, RuntimeError):
    """No room is left in the KV cache."""


class OutOfMemoryError(PyllmError, MemoryError):
    """A buffer could not be allocated."""


class ClosedError(PyllmError, RuntimeError):
    """A handle or an engine was used after it was closed."""


class StateError(PyllmError, ValueError):
    """Saved state that does not fit this context."""


class DecodeError(PyllmError, RuntimeError):
    """A graph failed; the message carries the node when there is one."""


class CancelledError(PyllmError, RuntimeError):
    """The request was cancelled by its owner."""


class InternalError(PyllmError, RuntimeError):
    """A defect of pyllm itself."""


class ConfigError(PyllmError, ValueError):
    """A flag or a setting that is unknown, malformed or cannot work."""


class ScenarioError(PyllmError, ValueError):
    """A scenario file that is not one, with line and column."""


class ServerError(PyllmError, RuntimeError):
    """A server process that could not be found, started or reached, or that died."""
