"""A condition of a row: one axis against constants, and the sentence for when it does not hold."""

from __future__ import annotations

from dataclasses import dataclass

from pyllm.routes.axes import axis

OPERATORS = ("in", "not_in", "min", "max", "multiple_of", "not_multiple_of")

_SENTENCES = {
    "in": "{phrase}: {value}, needs {limit}",
    "not_in": "{phrase}: {value}, which is excluded ({limit})",
    "min": "{phrase}: {value}, needs at least {limit}",
    "max": "{phrase}: {value}, at most {limit}",
    "multiple_of": "{phrase}: {value}, needs a multiple of {limit}",
    "not_multiple_of": "{phrase}: {value}, a multiple of {limit}",
}


@dataclass(frozen=True, slots=True)
class Condition:
    """``axis`` compared with ``values`` (encoded); ``why`` says what the limit comes from, and may be empty."""

    axis: str
    operator: str
    values: tuple[int, ...]
    why: str = ""

    def implies(self, other: Condition) -> bool:
        """Whether ``other`` holds wherever this does, as far as one look at both tells: the rule of native/route/table.cpp."""
        if self.axis != other.axis:
            return False
        if self.operator == "in":
            return all(map(other.holds, self.values))
        if self.operator != other.operator:
            return False
        here, there = self.values[0], other.values[0]
        if self.operator == "not_in":
            return set(other.values) <= set(self.values)
        if self.operator in {"min", "max"}:
            return here >= there if self.operator == "min" else here <= there
        return here % there == 0 if self.operator == "multiple_of" else there % here == 0

    def holds(self, code: int) -> bool:
        """Whether a value of the axis, encoded, fulfils the condition."""
        if self.operator == "in":
            return code in self.values
        if self.operator == "not_in":
            return code not in self.values
        limit = self.values[0]
        if self.operator == "min":
            return code >= limit
        if self.operator == "max":
            return code <= limit
        return (code % limit == 0) == (self.operator == "multiple_of")

    @property
    def limit(self) -> str:
        """The constants as people write them."""
        return " or ".join(axis(self.axis).decode(value) for value in self.values)

    def sentence(self, code: int) -> str:
        """Why ``code`` does not fulfil it, with the value and the limit."""
        about = axis(self.axis)
        text = _SENTENCES[self.operator].format(phrase=about.phrase, value=about.decode(code), limit=self.limit)
        return f"{text} ({self.why})" if self.why else text


def one_of(name: str, *values: object, why: str = "") -> Condition:
    """``name`` is one of ``values``."""
    return Condition(name, "in", tuple(axis(name).encode(value) for value in values), why)


def none_of(name: str, *values: object, why: str = "") -> Condition:
    """``name`` is none of ``values``."""
    return Condition(name, "not_in", tuple(axis(name).encode(value) for value in values), why)


def at_least(name: str, limit: int, why: str = "") -> Condition:
    """``name`` is ``limit`` or more."""
    return Condition(name, "min", (limit,), why)


def at_most(name: str, limit: int, why: str = "") -> Condition:
    """``name`` is ``limit`` or less."""
    return Condition(name, "max", (limit,), why)


def multiple_of(name: str, divisor: int, why: str = "") -> Condition:
    """``name`` is divisible by ``divisor``."""
    return Condition(name, "multiple_of", (divisor,), why)


def not_multiple_of(name: str, divisor: int, why: str = "") -> Condition:
    """``name`` is not divisible by ``divisor``."""
    return Condition(name, "not_multiple_of", (divisor,), why)
