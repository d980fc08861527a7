"""A plan as a picture: layers from left to right, phases from top to bottom, one cell for each layer, phase and device, in the colour of its route.

Colours are Okabe and Ito's, which people tell apart with every kind of colour vision; each run of equal cells also carries its route in words
where there is room, and a route that is not wanted (the reference, or none) is hatched.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyllm.errors import ConfigError, UnsupportedError
from pyllm.routes.plan import PHASES
from pyllm.routes.row import ABOUT, ROUTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pyllm.routes.plan import Entry, Plan

SUFFIXES = (".png", ".svg")

COLOURS = {"vec": "#56B4E9", "tile": "#E69F00", "mma": "#009E73", "sparse": "#CC79A7", "verify": "#0072B2", "reference": "#F0E442", "refused": "#D55E00"}
_HATCHES = {"reference": "//", "refused": "xx"}
_NOTHING = "#EEEEEE"
_INK = "#222222"
_PALE = "#555555"
_REFUSED = "a forced route that cannot run it"
_KIND_WORDS = {
    "global": "all of the context",
    "window": "the last tokens only",
    "latent": "one latent row for all heads (MLA)",
    "recurrent": "a recurrent state",
    "none": "feed-forward only",
}

# Inches. A panel is its title, the kinds of its layers, its rows, and the layers' numbers.
_CELL = 0.34
_WIDEST_CELL = 0.95
_ROOMY = 5.2
_MOST_WIDTH = 13.0
_LEAST_WIDTH = 7.6
_ROW = 0.34
_ABOVE = 0.34
_KINDS = 0.5 * _ROW
_BELOW = 0.4
_LEFT = 1.75
_RIGHT = 0.25
_LEGEND_ROW = 0.24
_LEGEND_MARGIN = 0.14
#: Inches that a character of a label takes.
_LETTER = 0.072


@dataclass(frozen=True, slots=True)
class Row:
    """One line of cells: a phase on a device."""

    phase: str
    step: str
    place: int
    label: str


@dataclass(frozen=True)
class Panel:
    """Layers of one file, from number ``first`` on, on the devices of one plan; ``cells`` by row and place among the layers."""

    title: str
    first: int
    kinds: tuple[str, ...]
    rows: tuple[Row, ...]
    cells: dict[tuple[Row, int], Entry]

    @property
    def cell(self) -> float:
        """Inches that a layer takes: few layers get room for their labels."""
        return min(_MOST_WIDTH / len(self.kinds), max(_CELL, min(_WIDEST_CELL, _ROOMY / len(self.kinds))))

    @property
    def width(self) -> float:
        """Inches of all layers."""
        return self.cell * len(self.kinds)

    @property
    def body(self) -> float:
        """Inches of the kinds and the rows."""
        return _KINDS + _ROW * len(self.rows)


def panels_of(plan: Plan) -> Iterator[Panel]:
    """The target, and the drafter where there is one."""
    devices = " + ".join(device.name for device in plan.devices)
    for part, header in (("target", plan.model), ("draft", plan.draft or plan.model)):
        entries = [entry for entry in plan.entries if entry.part == part]
        if not entries:
            continue
        inside = part == "draft" and bool(header.heads)
        layers = header.heads if inside else header.trunk
        graphs = dict.fromkeys((entry.phase, entry.step) for entry in sorted(entries, key=lambda entry: PHASES.index(entry.phase)))
        several = len(plan.devices) > 1
        rows = tuple(Row(phase, step, place, _label(phase, step, place if several else None)) for phase, step in graphs for place in range(len(plan.devices)))
        by_row = {(row.phase, row.step, row.place): row for row in rows}
        first = layers[0].index
        cells = {(by_row[entry.phase, entry.step, entry.place], layer - first): entry for entry in entries for layer in entry.layers}
        what = "prediction heads" if inside else {"target": "model", "draft": "drafter"}[part]
        yield Panel(f"{what}: {header.name}, on {devices}", first, tuple(layer.kind for layer in layers), rows, cells)


def _label(phase: str, step: str, place: int | None) -> str:
    text = f"{phase}: {step}" if step else phase
    return text if place is None else f"{text}, device {place}"


def draw(plans: Sequence[Plan], path: str | Path) -> None:
    """Draw ``plans`` below one another, as SVG or PNG by the suffix of ``path``.

    Raises:
        ConfigError: another suffix, or nothing to draw.
        UnsupportedError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"`{path}` ends in neither {' nor '.join(SUFFIXES)}", "choose one of them: the suffix is the format")
    panels = [panel for plan in plans for panel in panels_of(plan)]
    if not panels:
        raise ConfigError("there is nothing to draw: the model has no attention", "leave -o out")
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an extra, and slow to load
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError:
        raise UnsupportedError("a picture needs matplotlib, which is not installed", "pip install 'pyllm[plots]', or leave -o out") from None
    # Text stays text, and the same plan is the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pyllm", "font.family": "DejaVu Sans", "font.size": 8.5, "hatch.linewidth": 0.6}):
        figure = _figure(Figure, panels)
        figure.savefig(path, dpi=160, metadata={"Date": None} if path.suffix.lower() == ".svg" else {})


def _figure(make: Any, panels: Sequence[Panel]) -> Any:
    legend = list(_legend(panels))
    width = max(_LEAST_WIDTH, *(_LEFT + panel.width + _RIGHT for panel in panels))
    height = sum(_ABOVE + panel.body + _BELOW for panel in panels) + _LEGEND_ROW * len(legend) + 2 * _LEGEND_MARGIN
    figure = make(figsize=(width, height), facecolor="white")
    top = height
    for panel in panels:
        top -= _ABOVE + panel.body
        _draw_panel(figure.add_axes((_LEFT / width, top / height, panel.width / width, panel.body / height)), panel)
        top -= _BELOW
    for number, line in enumerate(legend, 1):
        _draw_line(figure, line, top - _LEGEND_MARGIN - (number - 0.5) * _LEGEND_ROW)
    return figure


def _route(entry: Entry | None) -> str:
    if entry is None:
        return ""
    return entry.decision.route if entry.decision else "refused"


def _title(entry: Entry | None) -> str:
    if entry is None:
        return ""
    return entry.decision.title if entry.decision else "refused"


def _runs(items: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Equal neighbours: [first, end) and what they are."""
    first = 0
    for place in range(1, len(items) + 1):
        if place == len(items) or items[place] != items[first]:
            yield first, place, items[first]
            first = place


def _fitting(room: float, *texts: str) -> str:
    """The first of ``texts`` that ``room`` inches hold."""
    return next((text for text in texts if len(text) * _LETTER <= room), "")


def _draw_panel(axes: Any, panel: Panel) -> None:
    from matplotlib.patches import Rectangle  # noqa: PLC0415 - loaded by the caller

    n_layers, n_rows = len(panel.kinds), len(panel.rows)
    axes.set_xlim(0, n_layers)
    axes.set_ylim(n_rows, -_KINDS / _ROW)
    for number, row in enumerate(panel.rows):
        line = [panel.cells.get((row, layer)) for layer in range(n_layers)]
        for layer, entry in enumerate(line):
            style: dict[str, Any] = {
                "facecolor": COLOURS.get(_route(entry), _NOTHING),
                "hatch": _HATCHES.get(_route(entry)),
                "edgecolor": "white",
                "linewidth": 0.8,
            }
            axes.add_patch(Rectangle((layer, number), 1, 1, **style))
        for first, end, text in _runs([_title(entry) for entry in line]):
            shown = _fitting((end - first) * panel.cell, text, text.split(" ")[-1])
            colour = COLOURS.get(_route(line[first]), _NOTHING)
            # Its own ground keeps the lines between cells out of the label.
            ground = {"facecolor": colour, "edgecolor": "none", "pad": 1.2} if shown and end - first > 1 else None
            axes.text((first + end) / 2, number + 0.5, shown, ha="center", va="center_baseline", color=_INK, bbox=ground)
    for first, end, kind in _runs(panel.kinds):
        shown = _fitting((end - first) * panel.cell, kind, kind[0].upper())
        axes.text((first + end) / 2, -0.5 * _KINDS / _ROW, shown, ha="center", va="center", color=_PALE, fontsize=7.5)
        if first:
            axes.plot([first, first], [-_KINDS / _ROW, 0], color=_PALE, linewidth=0.6)
    step = next(size for size in (1, 2, 5, 10, 20, 50, 100) if size * panel.cell > 0.28)
    marks = [place for place in range(n_layers) if (place + panel.first) % step == 0] or [0]
    axes.set_xticks([mark + 0.5 for mark in marks], [str(mark + panel.first) for mark in marks])
    axes.set_yticks([number + 0.5 for number in range(n_rows)], [row.label for row in panel.rows])
    axes.text(-0.08 / panel.cell, n_rows + 0.42, "layer", ha="right", va="center", color=_PALE, fontsize=7.5)
    axes.tick_params(length=0, colors=_INK)
    axes.set_title(panel.title, loc="left", fontsize=9.5, fontweight="bold", color=_INK, pad=4)
    for spine in axes.spines.values():
        spine.set_visible(False)


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of the legend: a patch where there is a colour, a word, and what it means."""

    colour: str
    hatch: str | None
    word: str
    about: str


def _legend(panels: Sequence[Panel]) -> Iterator[_Line]:
    there = {_route(entry) for panel in panels for entry in panel.cells.values()}
    for route in (*ROUTES, "refused"):
        if route in there:
            yield _Line(COLOURS[route], _HATCHES.get(route), route, ABOUT.get(route, _REFUSED))
    if any(len(panel.cells) < len(panel.rows) * len(panel.kinds) for panel in panels):
        yield _Line(_NOTHING, None, "", "no attention node")
    kinds = dict.fromkeys(kind for panel in panels for kind in panel.kinds)
    yield _Line("", None, "layers", "; ".join(f"{kind[0].upper()} {kind}: {_KIND_WORDS[kind]}" for kind in kinds))


def _draw_line(figure: Any, line: _Line, y: float) -> None:
    from matplotlib.patches import Rectangle  # noqa: PLC0415 - loaded by the caller

    width, height = figure.get_size_inches()
    if line.colour:
        place = ((0.25 / width, (y - 0.075) / height), 0.3 / width, 0.15 / height)
        figure.add_artist(Rectangle(*place, facecolor=line.colour, hatch=line.hatch, edgecolor="white", transform=figure.transFigure))
    figure.text(0.65 / width, y / height, line.word, va="center", color=_INK, fontweight="bold")
    figure.text(1.4 / width, y / height, line.about, va="center", color=_INK)
