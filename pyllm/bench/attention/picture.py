"""Measurements as a picture: a roofline, and time against KV rows and against query rows."""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from pyllm.errors import ConfigError, InvalidArgumentError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pyllm._ffi import Rates
    from pyllm.bench.attention.measure import Measurement, Timing
    from pyllm.routes.key import Node

SUFFIXES = (".png", ".svg")
#: Okabe and Ito's, which people tell apart with every kind of colour vision; markers say the same without colours.
_STYLES = {"ours": ("#0072B2", "o"), "upstream": ("#E69F00", "s"), "flashinfer": ("#009E73", "^"), "sdpa": ("#CC79A7", "D")}
_DASHES = {"ours": "-", "upstream": "--", "flashinfer": ":", "sdpa": "-."}
#: Of the shapes of one panel, in turn.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#222222", "#999933")


def draw(measurements: Sequence[Measurement], rates: Rates, device: str, path: Path) -> None:
    """Draw into ``path``, a .png or .svg file.

    Raises:
        ConfigError: another suffix, or a folder that is not there.
        UnsupportedError: matplotlib is not installed, or nothing was timed.
        InvalidArgumentError: the path cannot be written.
    """
    check_path(path)
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to load, and optional

    if not any(True for _ in _timings(measurements)):
        raise UnsupportedError("there is nothing to draw: no side ran a node", "see the reasons above")
    panels = [name for name in ("n_kv", "n_q") if len({getattr(one.shape.node, name) for one in measurements}) > 1]
    figure = Figure(figsize=(6.4 * (1 + len(panels)), 5.2), layout="constrained")
    axes = figure.subplots(1, 1 + len(panels), squeeze=False)[0]
    figure.suptitle(f"Attention on {device}: copies {rates.copied:.0f} GB/s, multiplies {rates.computed / 1000:.3g} TFLOP/s")
    _roofline(axes[0], measurements, rates)
    for place, name in enumerate(panels, 1):
        _times(axes[place], measurements, name)
    try:
        figure.savefig(path, dpi=120)
    except OSError as failure:
        raise InvalidArgumentError(f"`{path}` cannot be written: {failure.strerror}", "give a path in a folder that exists and may be written to") from None


def check_path(path: Path) -> None:
    """Refuse what cannot be drawn, before anything is measured.

    Raises:
        ConfigError: another suffix, or a folder that is not there.
        UnsupportedError: matplotlib is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"`{path}` is no {' or '.join(SUFFIXES)} file", "give it one of these suffixes")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"`{path}` cannot be written: there is no folder `{path.absolute().parent}`", "give a path in a folder that exists")
    if importlib.util.find_spec("matplotlib") is None:
        raise UnsupportedError("matplotlib is not installed", "pip install 'pyllm[plots]'")


def _timings(measurements: Sequence[Measurement]) -> Iterator[tuple[Measurement, Timing]]:
    for one in measurements:
        yield from ((one, timing) for timing in one.timings if not timing.refusal)


def _roofline(axes: Any, measurements: Sequence[Measurement], rates: Rates) -> None:
    """GFLOP/s against operations for each byte of K and V, below what a copy and a product of matrices allow."""
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for one, timing in _timings(measurements):
        points[timing.side].append((one.operations / one.bytes, one.operations / timing.us / 1e3))
    every = [x for side in points.values() for x, _ in side]
    low, high = min(every) / 2, max(*every, rates.computed / rates.copied) * 2
    knee = rates.computed / rates.copied
    axes.plot([low, knee, high], [low * rates.copied, rates.computed, rates.computed], color="#222222", linewidth=1)
    for side, found in points.items():
        colour, marker = _STYLES[side]
        axes.scatter([x for x, _ in found], [y for _, y in found], color=colour, marker=marker, s=22, label=side, alpha=0.8)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="operations for a byte of K and V as stored",
        ylabel="GFLOP/s",
        title="Roofline: memory on the slope, arithmetic on top",
    )
    axes.legend()
    axes.grid(visible=True, which="both", alpha=0.2)


def _times(axes: Any, measurements: Sequence[Measurement], name: str) -> None:
    """Microseconds against ``n_kv`` or ``n_q``: a colour for the rest of the shape, a marker and a dash for each side."""
    from matplotlib.ticker import LogFormatter, NullLocator  # noqa: PLC0415 - as above

    lines: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    for one, timing in _timings(measurements):
        lines[timing.side, _rest(one.shape.node, name)].append((getattr(one.shape.node, name), timing.us))
    drawn = {key: sorted(points) for key, points in lines.items() if len({x for x, _ in points}) > 1}
    rests = list(dict.fromkeys(rest for _, rest in drawn))
    for (side, rest), points in drawn.items():
        colour = _COLOURS[rests.index(rest) % len(_COLOURS)]
        style = {"color": colour, "marker": _STYLES[side][1], "linestyle": _DASHES[side]}
        axes.plot(*zip(*points, strict=True), **style, markersize=4, linewidth=1, label=f"{rest}, {side}")
    axes.set(xscale="log", yscale="log", xlabel={"n_kv": "KV rows", "n_q": "query rows"}[name], ylabel="µs", title=f"Time against {name}")
    axes.set_xticks(sorted({x for points in drawn.values() for x, _ in points}), minor=False)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1024:g}k" if x >= 1024 else f"{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.6)))
    if drawn:
        axes.legend(fontsize=7 if len(drawn) <= 16 else 5)
    axes.grid(visible=True, alpha=0.2)


def _rest(node: Node, name: str) -> str:
    """The shape without ``name``."""
    other = "n_q" if name == "n_kv" else "n_kv"
    streams = f" × {node.streams}" if node.streams > 1 else ""
    kind = node.type_k if node.type_k == node.type_v else f"{node.type_k}/{node.type_v}"
    return f"{node.d_k}/{node.d_v} {node.n_head}/{node.n_head_kv} {kind} {other} {getattr(node, other)}{streams}"
