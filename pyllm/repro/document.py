"""YAML with line numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from pyllm.errors import NotFoundError, ScenarioError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Place = tuple[int, int]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without its surprises: only ``true`` and ``false`` are booleans, so that ``-fa on`` stays text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:bool"] for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|false)$"), list("tf"))


@dataclass(frozen=True)
class Document:
    """A parsed file: its value, and where each key and item stands (line and column, from 1)."""

    path: Path
    value: Any
    places: dict[tuple[str | int, ...], Place]

    def place(self, keys: Sequence[str | int]) -> Place:
        """Where ``keys`` leads to, or the nearest enclosing part that is written down.

        An index that the file does not have is passed over: a lone item may stand where a list belongs.
        """
        found: tuple[str | int, ...] = ()
        for key in keys:
            if (*found, key) in self.places:
                found = (*found, key)
            elif not isinstance(key, int):
                break
        return self.places[found]

    def fault(self, keys: Sequence[str | int], text: str, hint: str = "") -> ScenarioError:
        """An error at ``keys``: ``FILE:LINE:COLUMN: text``."""
        line, column = self.place(keys)
        return ScenarioError(f"{self.path}:{line}:{column}: {text}", hint)


def read(path: Path) -> Document:
    """Parse one file.

    Raises:
        NotFoundError: there is no such file.
        ScenarioError: it is not UTF-8 or not YAML, or says a key twice; with line and column.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError) as failure:
        raise NotFoundError(f"there is no scenario file `{path}`", "see `pyllm repro list`") from failure
    except UnicodeDecodeError as failure:
        raise ScenarioError(f"{path}:1:1: the file is not UTF-8 text", "scenario files are YAML") from failure
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        places: dict[tuple[str | int, ...], Place] = {(): (1, 1)}
        if root is not None:
            _note(path, root, (), places)
        value = None if root is None else loader.construct_document(root)
    except yaml.MarkedYAMLError as failure:
        mark = failure.problem_mark or failure.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise ScenarioError(f"{path}:{line}:{column}: not YAML: {failure.problem}", "check quotes, colons and indentation") from failure
    except yaml.YAMLError as failure:
        raise ScenarioError(f"{path}:1:1: not YAML: {failure}", "scenario files are YAML") from failure
    finally:
        loader.dispose()
    return Document(path, value, places)


def _note(path: Path, node: yaml.Node, keys: tuple[str | int, ...], places: dict[tuple[str | int, ...], Place]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*keys, str(key.value))
            at = (key.start_mark.line + 1, key.start_mark.column + 1)
            if below in places:
                line, _ = places[below]
                raise ScenarioError(f"{path}:{at[0]}:{at[1]}: key `{key.value}` is given twice", f"the first is on line {line}")
            places[below] = at
            _note(path, value, below, places)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            item = (*keys, index)
            places[item] = (value.start_mark.line + 1, value.start_mark.column + 1)
            _note(path, value, item, places)
