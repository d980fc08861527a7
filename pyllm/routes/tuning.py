"""Where the ``verify`` route was measured to be faster on one device: a file, and the rows of a route table that follow from it.

``pyllm bench attention --tune`` writes it. It holds for the device, the driver and the version that it was made with; elsewhere the built-in rows stay.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pyllm._ffi import kernels, upstream_commit
from pyllm._version import __version__
from pyllm.errors import ConfigError, InvalidArgumentError, NotFoundError
from pyllm.routes.axes import KV_TYPES, axis
from pyllm.routes.condition import Condition, at_least, at_most, one_of
from pyllm.routes.decision import TABLE
from pyllm.routes.executors import verify_pairs
from pyllm.routes.present import driver_version
from pyllm.routes.row import Row
from pyllm.routes.table import verify_rows
from pyllm.routes.tablefile import Table, dump
from pyllm.routes.verify import HEADS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from pyllm.routes.devices import Device

T = TypeVar("T")

FORMAT = "pyllm-tuning 1"
#: A route that is not faster by this share stays where it is.
MARGIN = 0.02

_WAY = "make it anew on this device: `pyllm bench attention --tune FILE`"


@dataclass(frozen=True, slots=True)
class Measured:
    """Microseconds of one node by ``verify`` and by ``other``, the route that the table has without it. ``head`` and ``kv`` are for K/V."""

    head: str
    kv: str
    gqa: int
    streams: int
    n_q: int
    n_kv: int
    verify_us: float
    other_us: float
    other: str

    @property
    def wins(self) -> bool:
        """Whether ``verify`` is faster by more than the margin."""
        return self.verify_us < (1 - MARGIN) * self.other_us


class Class(NamedTuple):
    """Nodes that are measured together, and taken from the built-in rows together."""

    head: str
    kv: str
    gqa: int


@dataclass(frozen=True)
class Tuning:
    """Measurements on ``device`` (its description) of architecture ``arch`` (ggml's number), and what they were made with."""

    device: str
    arch: int
    driver: str
    version: str
    upstream: str
    kernels: str
    table: str
    measured: tuple[Measured, ...]

    @property
    def origin(self) -> str:
        """Where it is from, in words."""
        return f"{self.device}, driver {self.driver or 'unknown'}, pyllm {self.version}"


def made_here(device: Device, driver: str, measured: Iterable[Measured]) -> Tuning:
    """A tuning of this version for ``device``."""
    return Tuning(device.products, device.arch, driver, __version__, upstream_commit(), kernels(), table_digest(), tuple(measured))


def table_digest() -> str:
    """Of the built-in table: other rows or executors make another one."""
    return hashlib.sha256(dump(TABLE).encode()).hexdigest()[:16]


def write(tuning: Tuning, path: Path) -> None:
    """Write ``tuning`` as JSON.

    Raises:
        InvalidArgumentError: the path cannot be written.
    """
    plain = {"format": FORMAT} | {name: value for name, value in asdict(tuning).items() if name != "measured"}
    lines = ",\n  ".join(json.dumps(asdict(one)) for one in tuning.measured)
    text = json.dumps(plain, indent=1)[:-2] + f',\n "measured": [\n  {lines}\n ]\n}}\n'
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as failure:
        raise InvalidArgumentError(f"`{path}` cannot be written: {failure.strerror}", "give a path in a folder that exists and may be written to") from None


def read(path: Path) -> Tuning:
    """Read a file that :func:`write` has written.

    Raises:
        NotFoundError: there is no such file.
        ConfigError: it is damaged, or of another format.
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except OSError as failure:
        raise NotFoundError(f"tuning `{path}` cannot be read: {failure.strerror}", "`pyllm bench attention --tune FILE` writes one") from None
    except ValueError as failure:
        raise ConfigError(f"tuning `{path}` is no JSON: {failure}", _WAY) from None
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        found = plain.get("format") if isinstance(plain, dict) else type(plain).__name__
        raise ConfigError(f"tuning `{path}` is of format `{found}`, not `{FORMAT}`", _WAY)
    try:
        measured = tuple(_measured(one) for one in plain.pop("measured"))
        words = {name: str(plain[name]) for name in ("device", "driver", "version", "upstream", "kernels", "table")}
        return Tuning(arch=int(plain["arch"]), measured=measured, **words)
    except (KeyError, TypeError, ValueError) as failure:
        raise ConfigError(f"tuning `{path}` is damaged: {type(failure).__name__} {failure}", _WAY) from None


def _measured(plain: dict[str, Any]) -> Measured:
    one = Measured(**plain)
    axis("head").encode(str(one.head))
    types = str(one.kv).split("/")
    if len(types) != 2 or not set(types) <= set(KV_TYPES):
        raise ValueError(f"K/V types `{one.kv}`")
    for name in ("gqa", "streams", "n_q", "n_kv"):
        if type(getattr(one, name)) is not int or getattr(one, name) < 1:
            raise ValueError(f"{name} {getattr(one, name)!r}")
    if not (one.verify_us > 0 and one.other_us > 0):
        raise ValueError(f"times of {one.verify_us} and {one.other_us} microseconds")
    return one


def outdated(tuning: Tuning) -> str:
    """What of this version is not what ``tuning`` was measured with; empty where all is."""
    pairs = (
        ("pyllm", tuning.version, __version__),
        ("upstream", tuning.upstream, upstream_commit()),
        ("kernels", tuning.kernels, kernels()),
        ("route table", tuning.table, table_digest()),
    )
    return ", ".join(f"it was measured with {what} {theirs}, and this is {ours}" for what, theirs, ours in pairs if theirs != ours)


def mismatch(tuning: Tuning, device: Device, driver: str | None) -> str:
    """Why ``tuning`` does not hold on ``device``; empty when it does. ``driver`` None: a device that is not here, of which only the architecture is known."""
    reasons = []
    if tuning.arch != device.arch or (driver is not None and tuning.device != device.products):
        reasons.append(f"it was measured on {tuning.device}, and this is {device.name if driver is None else device.products}")
    if driver is not None and tuning.driver != driver:
        reasons.append(f"it was measured with driver {tuning.driver or 'unknown'}, and here is {driver or 'an unknown one'}")
    return ", ".join(filter(None, [*reasons, outdated(tuning)]))


class Choice(NamedTuple):
    """The table of a tuning that holds, or None; ``says`` which of both, and why, in a line."""

    table: Table | None
    says: str


def choose(path: Path, devices: Sequence[Device], *, simulated: bool = False) -> Choice:
    """What the tuning in ``path`` is for ``devices``: those that are here or, ``simulated``, those that are asked about.

    Raises:
        NotFoundError: there is no such file.
        ConfigError: it is damaged, or ``PYLLM_ROUTES`` names a table, too.
    """
    if os.environ.get("PYLLM_ROUTES"):
        raise ConfigError(
            f"a tuning `{path}` and PYLLM_ROUTES `{os.environ['PYLLM_ROUTES']}` are given together", "unset PYLLM_ROUTES, or leave the tuning out"
        )
    tuning = read(path)
    # Rows are for an architecture: it has to be right for each of its devices, since two products would share them.
    concerned = [device for device in devices if device.arch == tuning.arch] or devices[:1]
    reasons = [mismatch(tuning, device, None if simulated else driver_version(device.vendor)) for device in concerned]
    why = next(filter(None, reasons), "") if reasons else "there is no GPU here"
    if why:
        return Choice(None, f"`{path}` is not used: {why}; the built-in rows decide")
    return Choice(table(tuning), f"`{path}`, measured on {tuning.origin}" + (", taken to be that device" if simulated else ""))


def table(tuning: Tuning) -> Table:
    """The built-in table with what ``tuning`` measured in place of what it says about the same nodes on that architecture.

    A class of nodes is tuned within the numbers of query rows, streams and KV rows that were measured, and from the largest of these on; outside of
    them its built-in rows stay.
    """
    classes: dict[Class, list[Measured]] = {}
    for one in tuning.measured:
        if one.kv in _pairs(one.head):
            classes.setdefault(Class(one.head, one.kv, one.gqa), []).append(one)
    boxes = {each: _Box.around(measured) for each, measured in classes.items()}
    tuned = [row for each, measured in classes.items() for row in _rows(tuning, each, measured)]
    narrowed = [part for row in TABLE.rows if _is_measured(row, tuning.arch) for part in _without(row, boxes)]
    # The built-in rows for a head, cut to the same class, are often the same.
    first: list[Row] = []
    for row in (*tuned, *narrowed):
        if not any(one.shadows(row) for one in first):
            first.append(row)
    return Table((*first, *(row for row in TABLE.rows if not _is_measured(row, tuning.arch))), TABLE.accepts)


@functools.cache
def _pairs(head: str) -> frozenset[str]:
    """K/V types that ``verify`` reads with these head dims; none where it is not compiled for them."""
    d_k, _, d_v = head.partition("/")
    dims = (int(d_k), int(d_v))
    return frozenset(verify_pairs(dims)) if dims in HEADS else frozenset()


@dataclass(frozen=True, slots=True)
class _Box:
    """The numbers of query rows and streams that were measured, first and last, and the fewest KV rows."""

    n_q: tuple[int, int]
    streams: tuple[int, int]
    n_kv: int

    @classmethod
    def around(cls, measured: Sequence[Measured]) -> _Box:
        """The least that holds all of them."""
        n_q, streams = [one.n_q for one in measured], [one.streams for one in measured]
        return cls((min(n_q), max(n_q)), (min(streams), max(streams)), min(one.n_kv for one in measured))

    def outside(self) -> Iterator[tuple[Condition, ...]]:
        """Conditions of which exactly one set holds for a node outside."""
        inside: tuple[Condition, ...] = ()
        for name, (low, high) in (("n_q", self.n_q), ("streams", self.streams)):
            yield (*inside, at_most(name, low - 1))
            yield (*inside, at_least(name, high + 1))
            inside = (*inside, *_between(name, low, high))
        yield (*inside, at_most("n_kv", self.n_kv - 1))


def _is_measured(row: Row, arch: int) -> bool:
    """A built-in row that sends nodes to ``verify`` because that was measured on this architecture."""
    return row.route == "verify" and any(condition.axis == "arch" and condition.holds(arch) for condition in row.conditions)


def _rows(tuning: Tuning, each: Class, measured: Sequence[Measured]) -> Iterator[Row]:
    """Rows for one class: between two numbers of query rows, or of streams, only where ``verify`` wins at both."""
    because = f"measured faster on {tuning.device}"
    by_streams = {
        streams: {n_q: _from([one for one in measured if (one.streams, one.n_q) == (streams, n_q)]) for n_q in sorted({one.n_q for one in measured})}
        for streams in sorted({one.streams for one in measured})
    }
    for low, high, limits in _segments(by_streams, lambda one, other: {n_q: _both(one[n_q], other[n_q]) for n_q in one}):
        here = (one_of("arch", tuning.arch), at_most("sparsity", 1, "few KV rows are gathered"), one_of("gqa", each.gqa), *_between("streams", low, high))
        for first, last, n_kv in _spans(limits):
            conditions = (*here, *_between("n_q", first, last), at_least("n_kv", n_kv))
            yield from verify_rows(because, *conditions, heads=(each.head,), pairs=lambda pair: pair == each.kv)


def _segments(values: dict[int, T], join: Callable[[T, T], T]) -> Iterator[tuple[int, int, T]]:
    """Each number that was measured with its value, and what lies between two of them with both values joined."""
    numbers = sorted(values)
    for place, number in enumerate(numbers):
        yield number, number, values[number]
        if place + 1 < len(numbers) and numbers[place + 1] > number + 1:
            yield number + 1, numbers[place + 1] - 1, join(values[number], values[numbers[place + 1]])


def _both(one: int | None, other: int | None) -> int | None:
    """The KV rows from which ``verify`` wins at both ends."""
    return None if one is None or other is None else max(one, other)


def _between(name: str, low: int, high: int | None) -> tuple[Condition, ...]:
    if high is not None and low == high:
        return (one_of(name, low),)
    return (*((at_least(name, low),) if low > 1 else ()), *((at_most(name, high),) if high is not None else ()))


def _spans(limits: dict[int, int | None]) -> Iterator[tuple[int, int, int]]:
    """First and last number of query rows, and the KV rows from which ``verify`` wins for all of them; neighbours with the same limit together."""
    found: list[tuple[int, int, int]] = []
    for low, high, limit in _segments(limits, _both):
        if limit is None:
            continue
        if found and found[-1][1] == low - 1 and found[-1][2] == limit:
            found[-1] = (found[-1][0], high, limit)
        else:
            found.append((low, high, limit))
    yield from found


def _from(measured: Sequence[Measured]) -> int | None:
    """The fewest KV rows from which ``verify`` wins, there and at every larger number that was measured; None where it does not at the largest."""
    least = None
    for n_kv in sorted({one.n_kv for one in measured}, reverse=True):
        if not all(one.wins for one in measured if one.n_kv == n_kv):
            break
        least = n_kv
    return least


def _without(row: Row, boxes: dict[Class, _Box]) -> Iterator[Row]:
    """``row`` for nodes that are in the box of no class."""
    for head, kv_types in _grouped((one.head, one.kv) for one in boxes).items():
        name = axis("head").encode(head)
        apart = _narrowed(row, "head", {name})
        if apart is None:
            continue
        for kv in kv_types:
            pair = axis("kv").encode(kv)
            same = _narrowed(apart, "kv", {pair})
            if same is not None:
                yield from _outside(same, {one.gqa: box for one, box in boxes.items() if (one.head, one.kv) == (head, kv)})
            left = _narrowed(apart, "kv", {pair}, out=True)
            if left is None:
                break
            apart = left
        else:
            yield apart
        rest = _narrowed(row, "head", {name}, out=True)
        if rest is None:
            return
        row = rest
    yield row


def _outside(row: Row, boxes: dict[int, _Box]) -> Iterator[Row]:
    """``row`` for other ratios than those of ``boxes``, and for each of these outside of its box."""
    parts: list[tuple[Condition, ...]] = [(Condition("gqa", "not_in", tuple(sorted(boxes)), "measured apart"),)]
    parts += [(one_of("gqa", gqa), *conditions) for gqa, box in sorted(boxes.items()) for conditions in box.outside()]
    for part in parts:
        narrower = Row(row.route, row.ncols1, row.ncols2, row.because, (*row.conditions, *part))
        if _possible(narrower):
            yield narrower


def _possible(row: Row) -> bool:
    """Whether numbers exist for which all conditions of ``row`` hold; its constants and what lies next to them show it."""
    for name in {condition.axis for condition in row.conditions} & {"gqa", "n_q", "n_kv", "streams", "sparsity"}:
        conditions = [condition for condition in row.conditions if condition.axis == name]
        near = {1, *(value + step for condition in conditions for value in condition.values for step in (-1, 0, 1))}
        if not any(all(condition.holds(value) for condition in conditions) for value in near if value >= (0 if name == "sparsity" else 1)):
            return False
    return True


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for first, second in pairs:
        if second not in found.setdefault(first, []):
            found[first].append(second)
    return found


def _narrowed(row: Row, name: str, values: set[int], *, out: bool = False) -> Row | None:
    """``row`` where its list of an axis is left with, or ``out`` of, ``values``; None where nothing is left."""
    conditions = []
    for condition in row.conditions:
        left = condition
        if condition.axis == name and condition.operator == "in":
            kept = tuple(value for value in condition.values if (value in values) is not out)
            if not kept:
                return None
            left = Condition(name, "in", kept, condition.why)
        conditions.append(left)
    return Row(row.route, row.ncols1, row.ncols2, row.because, tuple(conditions))
