"""The nodes that are measured: from numbers, from a file, or from a model's header and flags."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pyllm.errors import ConfigError, NotFoundError
from pyllm.routes.key import Node
from pyllm.routes.shape import block_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from pyllm.routes.plan import Plan

#: Columns of a file of shapes; words after them are flags of the node.
COLUMNS = ("D_K", "D_V", "KV_HEADS", "GQA", "N_KV", "N_Q", "STREAMS", "TYPE")
FLAGS = ("alibi", "softcap", "sinks", "view")
_LATENT = (576, 512)


@dataclass(frozen=True, slots=True)
class Shape:
    """A node, and the words for where it is from; empty for numbers."""

    node: Node
    origin: str = ""


def from_numbers(
    heads: Iterable[tuple[int, int]],
    ratios: Iterable[tuple[int, int]],
    kv_types: Iterable[tuple[str, str]],
    *,
    n_q: Sequence[int],
    n_kv: Sequence[int],
    streams: Sequence[int],
) -> list[Shape]:
    """The product: ``heads`` are head dims of K and V, ``ratios`` query heads and KV heads. K/V types that do not fill the heads are left out.

    Raises:
        ConfigError: numbers that contradict each other, or nothing is left.
    """
    found = [
        Shape(Node(d_k, d_v, n_head, n_head_kv, rows, cells, count, type_k, type_v, view=(d_k, d_v) == _LATENT and type_k == type_v))
        for (d_k, d_v), (n_head, n_head_kv), (type_k, type_v) in itertools.product(heads, ratios, kv_types)
        if d_k % block_of(type_k) == 0 and d_v % block_of(type_v) == 0
        for count, cells, rows in itertools.product(streams, n_kv, n_q)
    ]
    if not found:
        raise ConfigError("no shape is left: these K/V types store blocks that these head dims do not fill", "add f16, or head dims that 32 divides")
    return found


def from_file(path: Path) -> list[Shape]:
    """Lines of ``COLUMNS``; TYPE is for K and V alike, or ``TYPE_K/TYPE_V``. 576/512 is MLA's, where V is a view of K. ``#`` begins a comment.

    Raises:
        NotFoundError: there is no such file.
        ConfigError: a line that is not understood, with its number.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as failure:
        raise NotFoundError(f"shapes `{path}` cannot be read: {failure}", f"a file with lines of {' '.join(COLUMNS)}") from None
    found = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            found.append(Shape(_node(words)))
        except ConfigError as failure:
            raise ConfigError(f"{path}, line {number}: {failure.message}", failure.hint) from None
    if not found:
        raise ConfigError(f"{path} has no shapes", f"write lines of {' '.join(COLUMNS)}, such as 128 128 8 4 32768 4 1 q8_0")
    return found


def _node(words: Sequence[str]) -> Node:
    columns, flags = words[: len(COLUMNS)], words[len(COLUMNS) :]
    if len(columns) < len(COLUMNS) or not all(word.isascii() and word.isdigit() for word in columns[:-1]):
        raise ConfigError(f"`{' '.join(words)}` is not {' '.join(COLUMNS)}", "seven whole numbers and a K/V type, such as 128 128 8 4 32768 4 1 q8_0")
    for flag in flags:
        if flag not in FLAGS:
            raise ConfigError(f"flag `{flag}` is not known", f"one of {', '.join(FLAGS)}")
    d_k, d_v, n_head_kv, gqa, n_kv, n_q, streams = map(int, columns[:-1])
    type_k, _, type_v = columns[-1].partition("/")
    latent = (d_k, d_v) == _LATENT and type_v in {"", type_k}
    return Node(
        d_k,
        d_v,
        n_head_kv * gqa,
        n_head_kv,
        n_q,
        n_kv,
        streams,
        type_k,
        type_v or type_k,
        alibi="alibi" in flags,
        softcap="softcap" in flags,
        sinks="sinks" in flags,
        view=latent or "view" in flags,
    )


def from_plan(plan: Plan, *, n_q: Sequence[int] = (), n_kv: Sequence[int] = ()) -> list[Shape]:
    """The nodes of a planned model and its drafter, each once; ``n_q`` and ``n_kv`` put other rows in place of the plan's for decode and verify."""
    found: dict[Node, str] = {}
    for entry in plan.entries:
        step = f" {entry.step}" if entry.step else ""
        origin = f"{entry.part} {entry.kind}, {entry.phase}{step}"
        steps = entry.phase in {"decode", "verify"}
        cells = [rows for rows in n_kv if rows <= entry.node.n_kv] or [entry.node.n_kv]
        for rows, columns in itertools.product(n_q if steps and n_q else [entry.node.n_q], cells if steps and n_kv else [entry.node.n_kv]):
            found.setdefault(replace(entry.node, n_q=rows, n_kv=columns), origin)
    return [Shape(node, origin) for node, origin in found.items()]
