"""The program ``pyllm``: its commands, its errors and its exit codes."""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from pyllm._version import __version__
from pyllm.errors import InternalError, PyllmError

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Shows the traceback of an internal error.
TRACEBACK = "PYLLM_TRACEBACK"

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERNAL = 70
EXIT_INTERRUPTED = 130

ENVIRONMENT = (
    "Environment: PYLLM_SERVER names the server binary, PYLLM_REPRO the folder of scenario files, XDG_CACHE_HOME "
    "the cache; NO_COLOR turns colours off, PYLLM_TRACEBACK=1 shows where an internal error happened."
)
EXIT_CODES = (
    "Exit codes: 0 done; 1 an error, or something that was checked failed; 2 wrong usage; "
    "70 a defect of pyllm; 130 interrupted. `serve` ends with the server's own code, 128 + N after signal N."
)

#: Commands and the module of each, in the order of the help.
_MODULES = {
    "run": "pyllm.cli.run",
    "serve": "pyllm.cli.serve",
    "routes": "pyllm.cli.routes",
    "repro": "pyllm.cli.repro",
    "models": "pyllm.cli.models",
    "slots": "pyllm.cli.slots",
    "bench": "pyllm.cli.bench",
    "doctor": "pyllm.cli.doctor",
}


class LazyGroup(TyperGroup):
    """Commands whose modules are imported when they are asked for."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the signature is click's
        """Names in the order of the help."""
        return list(_MODULES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - the signature is click's
        """The command of a name, None when there is none."""
        if cmd_name not in _MODULES:
            return None
        command = typer.main.get_command(importlib.import_module(_MODULES[cmd_name]).app)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As click does, with the nearest name for an unknown one."""
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in _MODULES:
            found = difflib.get_close_matches(name, list(_MODULES), 1)
            ctx.fail(f"there is no command `{name}`" + (f", did you mean `{found[0]}`?" if found else f"; commands: {', '.join(_MODULES)}"))
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=LazyGroup,
    name="pyllm",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"{EXIT_CODES}\n\n{ENVIRONMENT}",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"pyllm {__version__}")
        raise typer.Exit


@app.callback()
def _pyllm(
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_version, is_eager=True),
) -> None:
    """A hardened llama.cpp for speculative serving, driven from Python."""


def main(args: Sequence[str] | None = None) -> None:
    """The entry point; ends the process with one of the exit codes."""
    raise SystemExit(call(args))


def call(args: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    # A polite end from outside unwinds like Ctrl-C does, so that children are ended too.
    before = signal.signal(signal.SIGTERM, _terminate) if _main_thread() else None
    try:
        code = typer.main.get_command(app)(list(args) if args is not None else None, prog_name="pyllm", standalone_mode=False)
        # Newer versions of typer turn Ctrl-C into its code, older ones raise Abort.
        return _interrupted() if code == EXIT_INTERRUPTED else code if isinstance(code, int) else 0
    except PyllmError as failure:
        return _error(failure)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except BrokenPipeError:
        # The reader of our data has gone; Python would complain once more while it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as failure:  # noqa: BLE001 - the last place that can say something
        return _usage(failure) if hasattr(failure, "format_message") else _defect(failure)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _interrupted() -> int:
    print("interrupted", file=sys.stderr)
    return EXIT_INTERRUPTED


def _main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _terminate(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def _error(failure: PyllmError) -> int:
    print(failure.render(), file=sys.stderr)
    if isinstance(failure, InternalError):
        return _traced(EXIT_INTERNAL)
    return _traced(EXIT_FAILED)


def _usage(failure: Any) -> int:
    """Refusals of click itself, in the form of all others; a group without a command prints its help."""
    context = getattr(failure, "ctx", None)
    text = str(failure.format_message())
    if type(failure).__name__ == "NoArgsIsHelpError":
        print(text, file=sys.stderr)
        return EXIT_USAGE
    possible = getattr(failure, "possibilities", None)
    if possible:
        text = f"{failure.message}, did you mean `{min(possible)}`?"
    path = "pyllm" if context is None else context.command_path
    print(f"error: {text[:1].lower()}{text[1:].rstrip('.')}\n\nhint: see `{path} --help`", file=sys.stderr)
    return int(getattr(failure, "exit_code", EXIT_USAGE))


def _defect(failure: Exception) -> int:
    hint = f"this is a defect of pyllm; set {TRACEBACK}=1 to see where, and report it"
    print(InternalError(f"internal error: {type(failure).__name__}: {failure}", hint).render(), file=sys.stderr)
    return _traced(EXIT_INTERNAL)


def _traced(code: int) -> int:
    if os.environ.get(TRACEBACK) == "1":
        traceback.print_exc()
    return code
