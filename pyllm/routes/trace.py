"""Attention nodes that an engine has really issued, as nodes to be planned, and as a file.

    >>> with pyllm.LLM("model.gguf", trace=True) as llm:
    ...     llm.generate("Hello")
    ...     write_trace("trace.json", llm.attention_nodes())

The file is JSON: ``format``, ``version``, ``upstream`` (the commit that issued the nodes) and ``nodes``, each with the fields of
:class:`~pyllm._ffi.trace.AttentionNode`. A processor issues the same nodes as a GPU, so a trace from one machine can be planned for any other.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyllm._ffi import AttentionNode, upstream_commit
from pyllm.errors import ConfigError, NotFoundError, UnsupportedError
from pyllm.routes.axes import KV_TYPES
from pyllm.routes.key import Node
from pyllm.routes.shape import Tensor, row_bytes, width

if TYPE_CHECKING:
    from collections.abc import Iterable

FORMAT = "pyllm-trace"

#: Raised when a field of a node is added, removed or changes its meaning.
VERSION = 1

_AXES = 4
_RECORD = "record it anew: `pyllm.routes.trace.write_trace`"


def node_of(traced: AttentionNode) -> Node:
    """The node that was issued.

    Raises:
        UnsupportedError: attention that was not computed by the fused node.
        ConfigError: tensors that contradict each other.
    """
    if traced.op != "FLASH_ATTN_EXT":
        raise UnsupportedError(f"node `{traced.name}` is {traced.op}: attention without flash attention has no route", "record the trace with flash_attn='on'")
    q, k, v, mask = traced.q, traced.k, traced.v, traced.mask
    _agree(traced)
    _, type_k, type_v = traced.types
    return Node(
        d_k=k[0],
        d_v=v[0],
        n_head=q[2],
        n_head_kv=k[2],
        n_q=q[1],
        n_kv=k[1],
        streams=q[3],
        type_k=type_k,
        type_v=type_v,
        mask="none" if not any(mask) else "head" if mask[2] > 1 else "stream" if mask[3] == q[3] else "repeat",
        alibi=traced.max_bias != 0,
        softcap=traced.softcap != 0,
        sinks=traced.sinks,
        align=traced.align,
        mask_align=traced.mask_align,
        view=traced.view,
        dense=traced.dense,
        rows=all(
            strides[0] == _step(kind)
            for kind, strides in (*zip(traced.types, (traced.q_strides, traced.k_strides, traced.v_strides), strict=True), ("f16", traced.mask_strides))
            if any(strides)
        ),
        wide=width(Tensor(q, traced.q_strides), Tensor(k, traced.k_strides), Tensor(v, traced.v_strides), Tensor(mask, traced.mask_strides)),
        n_kv_max=traced.n_kv_max,
    )


def _step(type_name: str) -> int:
    """Bytes from a value, or a block of a quantised type, to the next."""
    return row_bytes(type_name, 1) or row_bytes(type_name, 32)


def _agree(traced: AttentionNode) -> None:
    q, k, v, mask = traced.q, traced.k, traced.v, traced.mask
    wrong = {
        f"head dims of Q and K are {q[0]} and {k[0]}": q[0] != k[0],
        f"rows of K and V are {k[1]} and {v[1]}": k[1] != v[1],
        f"heads of K and V are {k[2]} and {v[2]}": k[2] != v[2],
        f"streams of Q, K and V are {q[3]}, {k[3]} and {v[3]}": not q[3] == k[3] == v[3],
        f"the mask has {mask[0]} columns for {k[1]} rows of K": any(mask) and mask[0] != k[1],
        f"the mask has {mask[1]} rows for {q[1]} of Q": any(mask) and mask[1] < q[1],
    }
    for what, is_so in wrong.items():
        if is_so:
            raise ConfigError(f"node `{traced.name}`: {what}", "a node like this is corrupted: the engine refuses it")


def write_trace(path: str | Path, nodes: Iterable[AttentionNode]) -> None:
    """Write ``nodes`` to a file.

    Raises:
        OSError: it cannot be written.
    """
    document = {"format": FORMAT, "version": VERSION, "upstream": upstream_commit(), "nodes": [dataclasses.asdict(node) for node in nodes]}
    Path(path).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read_trace(path: str | Path) -> list[AttentionNode]:
    """Read what ``write_trace`` wrote.

    Raises:
        NotFoundError: no such file.
        ConfigError: no trace, another version, or a node with a field that is missing, unknown or malformed.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as failure:
        raise NotFoundError(f"trace `{path}`: {failure.strerror}", "give the path of a trace file") from None
    except ValueError as failure:
        raise ConfigError(f"`{path}` is not JSON: {failure}", _RECORD) from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ConfigError(f"`{path}` is no trace of attention nodes: its format is not `{FORMAT}`", _RECORD)
    if document.get("version") != VERSION:
        raise ConfigError(f"`{path}` is a trace of version {document.get('version')!r}; this pyllm reads {VERSION}", _RECORD)
    nodes = document.get("nodes")
    if not isinstance(nodes, list) or not nodes:
        raise ConfigError(f"`{path}` has no nodes", _RECORD)
    return [_parse(node, f"`{path}`, node {number}") for number, node in enumerate(nodes)]


def _parse(node: Any, where: str) -> AttentionNode:
    fields = {field.name: str(field.type) for field in dataclasses.fields(AttentionNode)}
    if not isinstance(node, dict) or set(node) != set(fields):
        names = set(node) if isinstance(node, dict) else set()
        different = [f"`{name}` is missing" for name in fields if name not in names] + [f"`{name}` is not known" for name in sorted(names - set(fields))]
        raise ConfigError(f"{where}: {different[0]}", _RECORD)
    values: dict[str, Any] = {}
    for name, kind in fields.items():
        value = node[name]
        if not _fits(value, kind):
            raise ConfigError(f"{where}: {name} is {value!r}", _RECORD)
        values[name] = tuple(value) if isinstance(value, list) else value
    for type_name in values["types"][1:]:
        if type_name not in KV_TYPES:
            raise ConfigError(f"{where}: `{type_name}` is no KV cache type", f"one of {', '.join(KV_TYPES)}")
    return AttentionNode(**values)


def _fits(value: object, kind: str) -> bool:
    """Whether a value of the file is one of the annotated type ``kind``."""
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "float":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "str":
        return isinstance(value, str)
    if kind == "Shape":
        return isinstance(value, list) and len(value) == _AXES and all(isinstance(item, int) and item >= 0 for item in value)
    return isinstance(value, list) and len(value) == _AXES - 1 and all(isinstance(item, str) for item in value)
