"""llama-server command lines: reported, substituted, and without their drafter."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

#: Flags that only a drafter has, without a value of their own.
_DRAFT_SWITCHES = frozenset(
    """
    --spec-default --spec-draft-cpu-moe -cmoed --cpu-moe-draft --spec-draft-backend-sampling
    --no-spec-draft-backend-sampling
    """.split()  # noqa: SIM905 - a table, in lines of flags that belong together
)
#: Flags that only a drafter has, with one value. Everything that begins with `--spec-` has one too.
_DRAFT_FLAGS = frozenset(
    """
    -md --model-draft -hfd -hfrd --hf-repo-draft -td --threads-draft -tbd --threads-batch-draft -Cd --cpu-mask-draft
    -Crd --cpu-range-draft --cpu-strict-draft --prio-draft --poll-draft -Cbd --cpu-mask-batch-draft
    --cpu-strict-batch-draft --prio-batch-draft --poll-batch-draft -otd --override-tensor-draft -ncmoed
    --n-cpu-moe-draft --draft-p-split --draft-p-min -devd --device-draft -ngld --gpu-layers-draft
    --n-gpu-layers-draft -ctkd --cache-type-k-draft -ctvd --cache-type-v-draft -lcs --lookup-cache-static -lcd
    --lookup-cache-dynamic
    """.split()  # noqa: SIM905 - a table, in lines of flags that belong together
)


def split(flags: str) -> list[str]:
    """The words of a command line as reported: quotes count, a backslash at the end of a line joins two lines."""
    return shlex.split(flags.replace("\\\n", " "))


def substitute(words: Sequence[str], changes: Iterable[tuple[str, str]]) -> list[str]:
    """``words`` with each ``(reported, used)`` pair replaced, once and in order; an empty ``reported`` appends.

    Raises:
        ValueError: words that are to be replaced are not there; the message is those words.
    """
    result = list(words)
    for reported, used in changes:
        old, new = split(reported), split(used)
        place = next((i for i in range(len(result) - len(old) + 1) if result[i : i + len(old)] == old), None) if old else len(result)
        if place is None:
            raise ValueError(reported)
        result[place : place + len(old)] = new
    return result


def fill(words: Iterable[str], values: Mapping[str, str]) -> list[str]:
    """``words`` with ``{name}`` replaced by its value. Other braces stay."""
    return [_filled(word, values) for word in words]


def _filled(word: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        word = word.replace("{" + name + "}", value)
    return word


def without_drafter(words: Sequence[str]) -> list[str]:
    """The same command line for a server that decodes plainly."""
    result: list[str] = []
    rest = iter(words)
    for word in rest:
        if word in _DRAFT_SWITCHES:
            continue
        if word in _DRAFT_FLAGS or word.startswith("--spec-"):
            next(rest, None)
            continue
        result.append(word)
    return result
