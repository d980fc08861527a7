"""``pyllm repro``: replay reported failures."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import TYPE_CHECKING, Annotated

import typer

from pyllm.cli import console
from pyllm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyllm.repro import Level, Runner, Scenario, Verdict

app = typer.Typer(help="Replay reported failures.", no_args_is_help=True, add_completion=False)


@app.command("list")
def list_scenarios(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the scenario files (in ./repro, or the folder that PYLLM_REPRO names)."""
    from pyllm.repro import find_scenarios, load  # noqa: PLC0415 - httpx and pydantic load slower than the help

    scenarios = [(path, load(path)) for path in find_scenarios()]
    if as_json:
        console.print_json([{"path": str(path), **scenario.model_dump(mode="json", by_alias=True, exclude_defaults=True)} for path, scenario in scenarios])
        return
    for _, scenario in scenarios:
        print(scenario.name, f"{scenario.source.repository}{scenario.source.thread}", scenario.reported.symptom, sep="\t")


@app.command("run")
def run(  # noqa: PLR0917 - options are given by name
    files: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders or names (`reports/003` is enough); all scenarios without."),
    ] = None,
    level: Annotated[
        list[str] | None,
        typer.Option("--level", help="plan, engine or server; may be given again. All of them without; `server` with --against."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Another server: the URL of one that runs, or the path of a binary to start.", metavar="URL|PATH"),
    ] = None,
    keep_logs: Annotated[Path | None, typer.Option(help="Keep the log files in this folder.", metavar="DIR")] = None,
    nodes: Annotated[bool, typer.Option("--nodes", help="Print every attention node of the plan level, with the decisions there and here and why.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Replay scenarios and print what came of each; exits 1 when one failed."""
    from pyllm.repro import Runner, find_scenarios, load, report  # noqa: PLC0415 - httpx and pydantic load slower than the help

    levels = _levels(level or [], against)
    scenarios = [(path, load(path)) for path in find_scenarios(files or [])]
    verdicts = _play(Runner(against, keep_logs), scenarios, levels)
    if as_json:
        print(report.as_json(verdicts, against))
    elif console.out().is_terminal:
        console.out().print(report.table(verdicts))
    else:
        print("\n".join(report.lines(verdicts)))
    if not as_json:
        for block in [*(report.nodes(verdicts) if nodes else ()), *report.failures(verdicts)]:
            print(f"\n{block}")
    found = report.counts(verdicts)
    console.say(f"{found['pass']} passed, {found['fail']} failed, {found['skipped']} skipped")
    if found["fail"]:
        raise typer.Exit(1)


def _levels(wanted: Sequence[str], against: str | None) -> list[Level]:
    from pyllm.repro import LEVELS  # noqa: PLC0415 - httpx and pydantic load slower than the help

    for name in wanted:
        if name not in LEVELS:
            raise ConfigError(f"level `{name}` is not known", f"choose from {', '.join(LEVELS)}")
    if not wanted:
        return ["server"] if against is not None else list(LEVELS)
    return [level for level in LEVELS if level in wanted]


def _play(runner: Runner, scenarios: Sequence[tuple[Path, Scenario]], levels: Sequence[Level]) -> list[Verdict]:
    verdicts: list[Verdict] = []
    with console.bar("", len(scenarios) * len(levels)) as progress:
        runner.talk = lambda name, level, text: progress(len(verdicts), f"{name} · {level} · {text}")
        for path, scenario in scenarios:
            for level in levels:
                verdicts.append(runner.run(scenario, level, path.parent))
                progress(len(verdicts), scenario.name)
    return verdicts
