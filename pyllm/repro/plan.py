"""The plan level: each node of a scenario decided by the reported engine's selector and by our routes. It needs no device and no model."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyllm.errors import ConfigError
from pyllm.repro.engines import codes_there
from pyllm.repro.nodes import REFUSED
from pyllm.repro.verdict import Failure, Verdict
from pyllm.routes.devices import DEVICES
from pyllm.routes.kernels import mma_smem
from pyllm.routes.key import Key

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pyllm.repro.engines import Engine, EngineRow
    from pyllm.repro.nodes import Plan, PlannedNode
    from pyllm.repro.scenario import Scenario
    from pyllm.routes.decision import Decision
    from pyllm.routes.devices import Device

#: What holes are called in a sentence: of one node, of several.
_VERBS = {"abort": ("aborts", "abort"), "cpu": ("goes to the CPU", "go to the CPU"), "refuse": ("is refused", "are refused")}


@dataclass(frozen=True, slots=True)
class Planned:
    """Node ``place`` of a plan, from 1, on ``device``: what row number ``row`` of the reported engine does with it, and what is done here.

    ``here`` is None for a node that is refused because of the ``contradiction`` in it.
    """

    place: int
    device: Device
    node: PlannedNode
    text: str
    row: int
    there: EngineRow
    here: Decision | None
    contradiction: str

    @property
    def route(self) -> str:
        """Our route, or that there is none."""
        return REFUSED if self.here is None else self.here.route

    @property
    def reason(self) -> str:
        """Why."""
        return self.contradiction if self.here is None else self.here.reason

    def deviations(self) -> Iterator[tuple[str, str, str]]:
        """What differs from the scenario's expectation: whose decision it is, what was expected, what came."""
        expect = self.node.expect
        if (expect.then, expect.site) != (self.there.then, self.there.site):
            yield "the reported engine", str(expect), f"{self.there} (row {self.row}{': ' * bool(self.there.says)}{self.there.says})"
        wanted = self.node.ours or "any route"
        met = self.here is not None if self.node.ours is None else self.route == self.node.ours
        if not met or self.node.says not in self.reason:
            yield "pyllm", wanted + (f" that says {self.node.says!r}" if self.node.says else ""), f"{self.route}: {self.reason}"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        here: dict[str, Any] = {REFUSED: self.contradiction}
        if self.here is not None:
            here = {key: value for key, value in self.here.to_json().items() if key not in {"device", "node"}}
            if self.here.route == "mma":
                needs = mma_smem(self.device, self.here.key.node.d_k, self.here.key.node.d_v, *self.here.params)
                here["smem"] = {"needs": needs, "limit": self.device.smem}
        there = {"kv": self.node.kv, "then": self.there.then, "site": self.there.site, "says": self.there.says, "row": self.row}
        return {"place": self.place, "role": self.node.role, "device": self.device.name, "node": self.text, "there": there, "here": here}


def decide_all(plan: Plan, engine: Engine) -> list[Planned]:
    """Every node on every device that it is about."""
    return [
        _decide(place, DEVICES[name], node, plan.split, engine)
        for name in plan.devices
        for place, node in enumerate(plan.nodes, 1)
        if name in (node.on or plan.devices)
    ]


def _decide(place: int, device: Device, node: PlannedNode, split: int, engine: Engine) -> Planned:
    from pyllm.routes.decision import decide  # noqa: PLC0415 - loads the native library

    row, there = engine.decide(codes_there(device, node.there(split), node.kv))
    try:
        key = Key(device, node.here(split))
    except ConfigError as failure:
        return Planned(place, device, node, f"{node.shapes(split)} {node.kv}", row, there, None, failure.message)
    return Planned(place, device, node, str(key.node), row, there, decide(key), "")


def judge(scenario: Scenario, plan: Plan, engine: Engine) -> Verdict:
    """The verdict of the plan level."""
    begin = time.monotonic()
    planned = decide_all(plan, engine)
    deviations = [(one, *deviation) for one in planned for deviation in one.deviations()]
    failure = None
    if deviations:
        first, who, expected, got = deviations[0]
        others = tuple(f"node {one.place}, {one.node.role}, on {one.device.name}: {who} expected {a}, got {b}" for one, who, a, b in deviations[1:])
        failure = Failure(
            f"{first.node.role}, on {first.device.name}: {engine.engine if who != 'pyllm' else who} decides otherwise",
            first.place,
            expected,
            got,
            others,
            f"pyllm repro run {scenario.name} --level plan --nodes",
        )
    return Verdict(
        scenario.name,
        "plan",
        "fail" if deviations else "pass",
        failure=failure,
        seconds=round(time.monotonic() - begin, 3),
        target=f"the route table {os.environ.get('PYLLM_ROUTES') or 'of this version'}",
        oracle=f"the selector of {engine.engine}",
        sentence=sentence(engine.engine, planned),
        nodes=tuple(one.to_json() for one in planned),
    )


def sentence(engine: str, planned: Sequence[Planned]) -> str:
    """What a plan shows: how many nodes have no kernel there, and what runs them here."""
    devices = " and ".join(dict.fromkeys(one.device.name for one in planned))
    holes = Counter(one.there.then for one in planned if one.there.hole)
    sites = ", ".join(dict.fromkeys(one.there.site.rsplit("/", 1)[-1] for one in planned if one.there.hole))
    lost = " and ".join(f"{count} {_VERBS[then][count > 1]}" for then, count in holes.items())
    routes = Counter(one.route for one in planned if one.here is not None)
    kept = ", ".join(f"{route} {count}" for route, count in routes.most_common())
    refused = sum(one.here is None for one in planned)
    here = f"all run here: {kept}"
    if refused:
        here = f"{refused} contradict{'s itself and is' if refused == 1 else ' themselves and are'} refused here"
        here += f", the others run: {kept}" if kept else ""
    there = f"{lost} in {engine} ({sites})" if lost else f"all run in {engine}"
    return f"{len(planned)} node{'s' * (len(planned) != 1)} on {devices}: {there}, {here}"
