"""What a GGUF file says in front of its tensors' data: the metadata and what each tensor is.

``gguf.GGUFReader`` makes an array of every element, 26 s for the 260 thousand tokens and 510 thousand merges of a Gemma
vocabulary; here arrays of strings are passed over. The format: ggml/include/gguf.h of the pinned upstream, versions 2 and 3.
"""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGUF_MAGIC, GGMLQuantizationType, GGUFValueType

from pyllm.errors import ModelFormatError, NotFoundError

T = TypeVar("T")

VERSIONS = (2, 3)

_FORMATS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}

#: Of a split model, the file that carries the metadata ends like this.
_FIRST_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")

_LONGEST_NAME = 1 << 16
_MOST_ITEMS = 1 << 24
_MOST_DIMS = 4

_CUT = "download or convert it again"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor in the file. ``shape`` is ggml's ``ne``, fastest axis first; ``block`` the values that its type stores together."""

    shape: tuple[int, ...]
    block: int


@dataclass(frozen=True)
class Metadata:
    """``values`` by their full keys, without arrays of strings; ``tensors`` by name, those of all parts of a split model."""

    path: Path
    values: dict[str, Any]
    tensors: dict[str, TensorInfo]

    @property
    def architecture(self) -> str:
        """``general.architecture``.

        Raises:
            ModelFormatError: the file does not name one.
        """
        name = self.values.get("general.architecture")
        if not isinstance(name, str) or not name:
            raise ModelFormatError(f"`{self.path}` names no architecture", "convert the model with llama.cpp's convert_hf_to_gguf.py")
        return name

    def get(self, key: str, default: T) -> T:
        """The value of ``<architecture>.<key>``, of the kind that ``default`` is; ``default`` where there is none.

        Raises:
            ModelFormatError: it is of another kind.
        """
        value = self.values.get(f"{self.architecture}.{key}")
        if value is None:
            return default
        same = (
            isinstance(value, int | float)
            if isinstance(default, float)
            else isinstance(value, type(default)) and isinstance(value, bool) == isinstance(default, bool)
        )
        if not same:
            raise self.wrong(key, value, f"not a {type(default).__name__}")
        return type(default)(value)  # type: ignore[call-arg]

    def require(self, key: str, kind: type[T]) -> T:
        """The value of ``<architecture>.<key>``.

        Raises:
            ModelFormatError: there is none, or it is of another kind.
        """
        if f"{self.architecture}.{key}" not in self.values:
            raise ModelFormatError(f"`{self.path}` has no `{self.architecture}.{key}`", "convert the model again with a llama.cpp that knows its architecture")
        return self.get(key, kind())

    def wrong(self, key: str, value: object, what: str) -> ModelFormatError:
        """The error for a value that cannot be."""
        return ModelFormatError(f"`{self.architecture}.{key}` of `{self.path}` is {value!r}, {what}", "convert the model again")


def read_metadata(path: str | Path) -> Metadata:
    """Read the head of a GGUF file, and of the other parts where the model is split.

    Raises:
        NotFoundError: no such file, or a part of a split model is missing.
        ModelFormatError: not a GGUF file, another version, or cut off.
    """
    path = Path(path)
    values, tensors = _read(path)
    count = values.get("split.count", 0)
    if isinstance(count, int) and count > 1:
        name = _FIRST_PART.search(path.name)
        if name is None or int(name[1]) != 1:
            raise NotFoundError(
                f"`{path}` is part of a model that is split into {count} files", f"give the first one, which ends in -00001-of-{count:05d}.gguf"
            )
        for number in range(2, count + 1):
            part = path.with_name(f"{path.name[: name.start()]}-{number:05d}-of-{count:05d}.gguf")
            tensors |= _read(part)[1]
    return Metadata(path, values, tensors)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    try:
        with path.open("rb") as file:
            if path.stat().st_size < _Cursor.LEAST:
                raise ModelFormatError(f"`{path}` is not a GGUF file: it has {path.stat().st_size} bytes", _CUT)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Cursor(path, data).head()
    except OSError as failure:
        raise NotFoundError(f"model file `{path}`: {failure.strerror}", "give the path of a GGUF file") from None


class _Cursor:
    """Reads on from ``at``, bytes from the start of the file."""

    LEAST = 24  # magic, version, two counts

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.at = 0

    def head(self) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
        if self.number("I") != GGUF_MAGIC:
            raise ModelFormatError(
                f"`{self.path}` is not a GGUF file: it does not start with `GGUF`", "convert the model with llama.cpp's convert_hf_to_gguf.py"
            )
        version = self.number("I")
        if version not in VERSIONS:
            swapped = struct.unpack(">I", struct.pack("<I", version))[0]
            what = (
                f"of version {swapped} for big-endian machines" if swapped in VERSIONS else f"of GGUF version {version}, not {' or '.join(map(str, VERSIONS))}"
            )
            raise ModelFormatError(f"`{self.path}` is {what}", "convert the model again")
        n_tensors, n_values = self.count("tensors"), self.count("keys")
        values: dict[str, Any] = {}
        for _ in range(n_values):
            key = self.text(_LONGEST_NAME)
            value = self.value(self.kind())
            if value is not None:
                values[key] = value
        tensors = dict(self.tensor() for _ in range(n_tensors))
        self.check_end(values.get("general.alignment", GGUF_DEFAULT_ALIGNMENT), n_tensors)
        return values, tensors

    def check_end(self, alignment: object, n_tensors: int) -> None:
        if n_tensors and (not isinstance(alignment, int) or alignment < 1 or -(-self.at // alignment) * alignment >= len(self.data)):
            raise self.cut()

    def cut(self) -> ModelFormatError:
        return ModelFormatError(f"`{self.path}` is cut off: its header needs more than the {len(self.data)} bytes that there are", _CUT)

    def number(self, code: str) -> Any:
        size = struct.calcsize("<" + code)
        if self.at + size > len(self.data):
            raise self.cut()
        value = struct.unpack_from("<" + code, self.data, self.at)[0]
        self.at += size
        return value

    def count(self, what: str) -> int:
        value = int(self.number("Q"))
        if value > _MOST_ITEMS:
            raise ModelFormatError(f"`{self.path}` is damaged: it claims to have {value} {what}", _CUT)
        return value

    def text(self, longest: int = 0) -> str:
        length = int(self.number("Q"))
        if self.at + length > len(self.data):
            raise self.cut()
        if longest and length > longest:
            raise ModelFormatError(f"`{self.path}` is damaged: a name of {length} bytes", _CUT)
        value = self.data[self.at : self.at + length]
        self.at += length
        return value.decode("utf-8", "replace")

    def kind(self) -> GGUFValueType:
        number = self.number("I")
        try:
            return GGUFValueType(number)
        except ValueError:
            raise ModelFormatError(f"`{self.path}` is damaged: there is no type {number} of metadata", _CUT) from None

    def value(self, kind: GGUFValueType) -> Any:
        """None for arrays of strings, which are passed over."""
        if kind is GGUFValueType.STRING:
            return self.text()
        if kind is not GGUFValueType.ARRAY:
            return self.number(_FORMATS[kind])
        inner, length = self.kind(), self.count("items in one array")
        if inner in _FORMATS:
            code = f"{length}{_FORMATS[inner]}"
            size = struct.calcsize("<" + code)
            if self.at + size > len(self.data):
                raise self.cut()
            values = list(struct.unpack_from("<" + code, self.data, self.at))
            self.at += size
            return values
        if inner is not GGUFValueType.STRING:
            raise ModelFormatError(f"`{self.path}` is damaged: an array of arrays", _CUT)
        self.skip_texts(length)
        return None

    def skip_texts(self, count: int) -> None:
        at, end, size_at = self.at, len(self.data), struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > end:
                raise self.cut()
            at += 8 + size_at(self.data, at)[0]
        if at > end:
            raise self.cut()
        self.at = at

    def tensor(self) -> tuple[str, TensorInfo]:
        name = self.text(_LONGEST_NAME)
        n_dims = self.number("I")
        if n_dims > _MOST_DIMS:
            raise ModelFormatError(f"`{self.path}` is damaged: tensor `{name}` has {n_dims} dimensions", _CUT)
        shape = tuple(int(self.number("Q")) for _ in range(n_dims))
        number = self.number("I")
        self.number("Q")  # where its data lies
        try:
            block = GGML_QUANT_SIZES[GGMLQuantizationType(number)][0]
        except (ValueError, KeyError):
            # Forks have types of their own; only tensor split asks for the block.
            block = 1
        return name, TensorInfo(shape, block)
