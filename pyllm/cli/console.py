"""stdout is data, stderr is talk."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Made anew for each use: tests and callers may have put other streams in place. rich honours NO_COLOR itself.


def out() -> Console:
    """Where data goes."""
    return Console(soft_wrap=True, highlight=False)


def err() -> Console:
    """Where talk goes."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


def say(text: str) -> None:
    """One line of talk, as it is."""
    err().print(text, markup=False)


def print_json(value: Any) -> None:
    """Data for machines."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


@contextlib.contextmanager
def spinner(text: str) -> Iterator[Callable[[str], None]]:
    """A line on stderr while something takes long, on a terminal only. Gives a function that changes its text."""
    console = err()
    if not console.is_terminal:
        yield lambda _: None
        return
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task(text)
        yield lambda now: progress.update(task, description=now)


@contextlib.contextmanager
def bar(text: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A progress bar on stderr, on a terminal only. Gives a function that takes what is done and a text."""
    console = err()
    if not console.is_terminal:
        yield lambda _done, _text: None
        return
    columns = (
        SpinnerColumn(),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(text, total=total)
        yield lambda done, text: progress.update(task, completed=done, description=text)
