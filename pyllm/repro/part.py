"""The base of everything in a scenario file: unknown keys are refused, with the nearest known one."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from pydantic import ValidationError

    from pyllm.errors import ScenarioError
    from pyllm.repro.document import Document

#: Type of the error for a key that a part does not have; its context carries ``key`` and ``hint``.
UNKNOWN = "unknown_key"
#: Type of every other error raised here; its context carries ``hint``.
REFUSED = "refused"


class Part(BaseModel):
    """A mapping of a scenario file."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _only_known(cls, value: Any) -> Any:
        if isinstance(value, dict):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            for key in value:
                if key not in known and key not in cls.model_fields:
                    raise PydanticCustomError(
                        UNKNOWN,
                        "key `{key}` is not known",
                        {"key": str(key), "hint": near(str(key), known, "known keys")},
                    )
        return value


def near(name: str, known: list[str], what: str) -> str:
    """A hint for a wrong name: the nearest known one, and all of them."""
    found = difflib.get_close_matches(name, known, 1)
    listing = f"{what}: {', '.join(known)}"
    return f"did you mean `{found[0]}`? {listing}" if found else listing


def refuse(text: str, hint: str = "", *at: str | int) -> PydanticCustomError:
    """An error for a validator to raise.

    The reader adds line and column, of the key that ``at`` leads to from the validated part.
    """
    return PydanticCustomError(REFUSED, "{text}", {"text": text, "hint": hint, "at": list(at)})


def translate(document: Document, failure: ValidationError) -> ScenarioError:
    """The first error of a validation, at its line and column."""
    first = failure.errors()[0]
    keys = list(first["loc"])
    context = first.get("ctx", {})
    if first["type"] == UNKNOWN:
        return document.fault([*keys, context["key"]], first["msg"], context["hint"])
    if first["type"] == REFUSED:
        return document.fault([*keys, *context["at"]], first["msg"], context["hint"])
    name = next((str(key) for key in reversed(keys) if isinstance(key, str)), "the file")
    if first["type"] == "missing" and isinstance(keys[-1], int):
        return document.fault(keys, f"`{name}` has no item {keys[-1] + 1}", "see the other files in repro/")
    if first["type"] == "missing":
        return document.fault(keys, f"key `{name}` is missing", "see the other files in repro/")
    return document.fault(
        keys,
        f"`{name}` is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}",
        "see the other files in repro/",
    )
