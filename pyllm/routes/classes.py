"""The finitely many classes of each axis: values that no condition of a table tells apart.

Each condition reads one axis against constants, so an axis falls into as many classes as its conditions distinguish. The device is one
axis here, whose classes are the devices of ``devices.py``; K/V types and whether they are quantised are one axis too.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyllm.routes.axes import AXES, DEVICE_AXES, FLOAT_TYPES, INDEX, KV_TYPES, MAX_HEAD_DIM, axis
from pyllm.routes.devices import DEVICES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pyllm.routes.condition import Condition
    from pyllm.routes.row import Row

#: Head dims that people's models have, whether or not a row names them.
MODEL_HEADS = ("40/40", "64/64", "72/72", "80/80", "96/96", "112/112", "128/128", "160/160", "192/128", "256/256", "320/256", "512/512", "576/512")

_LARGEST = 2**31 - 1
#: The largest value of each number axis.
_LIMITS = {"gqa": 1024, "n_q": _LARGEST, "n_kv": _LARGEST, "streams": 65535, "sparsity": _LARGEST, "wide": 2}


@dataclass(frozen=True, slots=True)
class Dimension:
    """One dimension of the product: ``axes`` that move together, and for each class their codes and a label."""

    name: str
    axes: tuple[str, ...]
    classes: tuple[tuple[int, ...], ...]
    labels: tuple[str, ...]


def dimensions(rows: Iterable[Row]) -> tuple[Dimension, ...]:
    """The product that the conditions of ``rows`` tell apart, in the order that makes a walk over it short."""
    by_axis: dict[str, set[Condition]] = {item.name: set() for item in AXES}
    for row in rows:
        for condition in row.conditions:
            by_axis[condition.axis].add(condition)
    grouped = {*DEVICE_AXES, "kv", "quantised"}
    rest = [_dimension(item.name, by_axis[item.name]) for item in AXES if item.name not in grouped]
    first = {"head": 0, "gqa": 1, "softcap": 2, "n_q": 3, "n_kv": 4, "mask": 5, "alibi": 6}
    rest.sort(key=lambda dimension: first.get(dimension.name, len(first)))
    return (_devices(), *rest[:1], _types(), *rest[1:])


def _devices() -> Dimension:
    codes = []
    for device in DEVICES.values():
        facts = {"vendor": device.vendor, "arch": device.arch, "matrix": device.matrix, "fast_fp16": device.fast_fp16, "smem": device.smem}
        codes.append(tuple(axis(name).encode(facts[name]) for name in DEVICE_AXES))
    return Dimension("device", DEVICE_AXES, tuple(codes), tuple(DEVICES))


def _types() -> Dimension:
    pairs = [(k, v) for k in KV_TYPES for v in KV_TYPES]
    codes = tuple((axis("kv").encode(f"{k}/{v}"), int(not {k, v} <= set(FLOAT_TYPES))) for k, v in pairs)
    return Dimension("kv", ("kv", "quantised"), codes, tuple(f"{k}/{v}" for k, v in pairs))


def _dimension(name: str, conditions: set[Condition]) -> Dimension:
    about = axis(name)
    values: Iterable[int]
    if about.kind == "word":
        values = range(len(about.words))
    elif about.kind == "flag":
        values = (0, 1)
    elif name in {"align", "mask_align"}:
        values = (16, 8, 4, 2)
    elif name == "head":
        named = {value for condition in conditions for value in condition.values} | {about.encode(head) for head in MODEL_HEADS}
        values = (*sorted(named), about.encode("100/100"), about.encode(f"{MAX_HEAD_DIM}/{MAX_HEAD_DIM}"))
    else:
        values = _numbers(name, conditions)
    codes = tuple(values)
    return Dimension(name, (name,), tuple((code,) for code in codes), tuple(about.decode(code) for code in codes))


def _numbers(name: str, conditions: set[Condition]) -> Iterator[int]:
    """The smallest value of each class: between two limits the residues of all divisors repeat."""
    low, high = (0 if name in {"sparsity", "wide"} else 1), _LIMITS[name]
    limits = {low, high + 1}
    divisors = [1]
    for condition in conditions:
        if condition.operator in {"multiple_of", "not_multiple_of"}:
            divisors.append(condition.values[0])
        elif condition.operator == "max":
            limits.add(condition.values[0] + 1)
        else:
            limits |= {bound for value in condition.values for bound in ((value,) if condition.operator == "min" else (value, value + 1))}
    edges = sorted(limit for limit in limits if low <= limit <= high + 1)
    period = math.lcm(*divisors)
    ordered = sorted(conditions, key=lambda condition: (condition.operator, condition.values))
    for begin, end in itertools.pairwise(edges):
        seen = set()
        for value in range(begin, min(end, begin + period)):
            signature = tuple(condition.holds(value) for condition in ordered)
            if signature not in seen:
                seen.add(signature)
                yield value


def code_index(dimension: Dimension) -> tuple[int, ...]:
    """Places of the dimension's axes in a key."""
    return tuple(INDEX[name] for name in dimension.axes)
