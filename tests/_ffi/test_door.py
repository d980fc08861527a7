"""The door: statuses, structs, handles and the version handshake."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pyllm
from pyllm import errors
from pyllm._ffi import Batch, Context, Drafter, Sampler, build_info, default_threads, devices, kv_type, kv_type_name, set_log_level, upstream_commit
from pyllm._ffi.door import EXCEPTIONS, KV_TYPES, check, ffi, handshake, lib

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyllm._ffi import Model

ROOT = Path(__file__).resolve().parents[2]
HEADER = (ROOT / "native/include/pyllm.h").read_text(encoding="utf-8")


def test_every_status_of_the_header_has_one_exception_class() -> None:
    names = set(re.findall(r"^    (PYLLM_[A-Z_]+) = \d+", HEADER.split("PYLLM_STATUS_COUNT")[0], re.MULTILINE)) - {"PYLLM_OK"}
    assert {getattr(lib, name) for name in names} == set(EXCEPTIONS)
    assert len(set(EXCEPTIONS.values())) == len(EXCEPTIONS)
    assert sorted(EXCEPTIONS) == list(range(1, lib.PYLLM_STATUS_COUNT))


@pytest.mark.parametrize(("status", "kind"), sorted(EXCEPTIONS.items()))
def test_a_status_raises_its_class(status: int, kind: type[errors.PyllmError]) -> None:
    with pytest.raises(kind):
        check(status)
    assert ffi.string(lib.pyllm_status_name(status)).decode() not in {"", "ok", "unknown status"}


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.InvalidArgumentError, ValueError),
        (errors.NotFoundError, FileNotFoundError),
        (errors.ModelFormatError, ValueError),
        (errors.OutOfMemoryError, MemoryError),
        (errors.ClosedError, RuntimeError),
        (errors.ConfigError, ValueError),
    ],
)
def test_an_exception_is_also_the_fitting_builtin(kind: type[errors.PyllmError], builtin: type[Exception]) -> None:
    assert issubclass(kind, builtin)
    assert kind("value 3 is over 2", "use 2").render() == "error: value 3 is over 2\n\nhint: use 2"


def test_every_struct_of_the_header_can_be_made() -> None:
    structs = re.findall(r"^} (pyllm_[a-z_]+);", HEADER, re.MULTILINE)
    assert len(structs) >= 12
    for name in structs:
        assert ffi.sizeof(ffi.new(f"{name} *")[0]) > 0


def test_every_function_of_the_header_is_reachable() -> None:
    functions = set(re.findall(r"PYLLM_API [^(;]*?\b(pyllm_[a-z_]+)\(", HEADER))
    assert len(functions) >= 60
    for name in functions:
        assert callable(getattr(lib, name))


@pytest.mark.parametrize(("package", "library", "header", "built"), [("0.2.0", "0.1.0", 1, 1), ("0.1.0", "0.1.0", 2, 1)])
def test_a_library_of_another_version_is_refused(package: str, library: str, header: int, built: int) -> None:
    with pytest.raises(ImportError, match=rf"pyllm is {package} \(ABI {header}\) but its native library is {library} \(ABI {built}\)(.|\n)*hint: "):
        handshake(package, library, header, built)


def test_the_loaded_library_is_of_this_version() -> None:
    assert ffi.string(lib.pyllm_version()).decode() == pyllm.__version__
    assert upstream_commit() == "0c1e57098"


def test_only_the_door_touches_the_compiled_module() -> None:
    for path in (ROOT / "pyllm").rglob("*.py"):
        if path.name == "door.py":
            continue
        imported = {
            alias.name
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        assert "_native" not in imported, path


def test_facts_of_the_machine() -> None:
    assert default_threads() >= 1
    assert "compiler" in build_info()
    cpu = [device for device in devices() if device.kind == "cpu"]
    assert len(cpu) == 1
    assert cpu[0].memory_total > 0
    info = ffi.new("pyllm_device_info *")
    with pytest.raises(errors.InvalidArgumentError, match=r"device index 99 is not in \[0, "):
        check(lib.pyllm_device_get(99, info))


def test_kv_types() -> None:
    assert [kv_type_name(kv_type(name)) for name in KV_TYPES] == list(KV_TYPES)
    with pytest.raises(errors.InvalidArgumentError, match="`q4_2` is not a KV cache type") as caught:
        kv_type("q4_2")
    assert "did you mean `q4_" in caught.value.hint


def test_log_level() -> None:
    set_log_level("none")
    with pytest.raises(errors.InvalidArgumentError, match="log level `loud`"):
        set_log_level("loud")


def test_a_closed_handle_raises_and_closes_twice_silently(llama: Model, make_context: Callable[..., Context]) -> None:
    context = make_context()
    drafter = Drafter(context)
    drafter.add("ngram-map-k")
    handles = [Batch(context), Sampler(llama), drafter, make_context()]
    uses = [lambda h: h.add(0, 0, [1]), lambda h: h.reset(), lambda h: h.stats, lambda h: h.info]
    for handle, use in zip(handles, uses, strict=True):
        handle.close()
        handle.close()
        assert handle.closed
        with pytest.raises(errors.ClosedError, match=f"this {handle.kind} is closed"):
            use(handle)


def test_handles_keep_alive_what_they_need(llama_path: Path) -> None:
    model = pyllm._ffi.Model(llama_path)
    context = Context(model, n_ctx=64)
    drafter = Drafter(context)
    drafter.add("ngram-map-k")
    batch = Batch(context)
    batch.add(0, 0, [1, 270], "last")
    model.close()
    context.decode(batch)
    assert context.logits(1).shape == (512,)
    context.close()
    drafter.process  # noqa: B018 - the handle itself is still open
    assert drafter.stats.n_failures == 0
    drafter.close()
    batch.close()


def test_null_arguments_are_statuses() -> None:
    out = ffi.new("pyllm_model **")
    with pytest.raises(errors.InvalidArgumentError, match="path is NULL"):
        check(lib.pyllm_model_load(ffi.NULL, ffi.new("pyllm_model_params *", lib.pyllm_model_params_default()), out))
    with pytest.raises(errors.InvalidArgumentError, match="model is NULL"):
        check(lib.pyllm_model_get_info(ffi.NULL, ffi.new("pyllm_model_info *")))
    for free in ("model", "context", "batch", "sampler", "drafter"):
        getattr(lib, f"pyllm_{free}_free")(ffi.NULL)
