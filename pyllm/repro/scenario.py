"""The scenario format: what a file says, and how it is read."""

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003 - pydantic reads annotations at run time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from pyllm.config import EngineConfig, check_batch, parse
from pyllm.errors import ConfigError, NotFoundError
from pyllm.repro import flags as command
from pyllm.repro.collection import engine_file, path_name
from pyllm.repro.document import read
from pyllm.repro.nodes import Plan  # noqa: TC001 - pydantic reads annotations at run time
from pyllm.repro.part import Part, near, refuse, translate
from pyllm.repro.step import Step  # noqa: TC001 - pydantic reads annotations at run time

Need = Literal["cpu", "gpu", "gpu2", "cuda", "hip", "vulkan"]
Level = Literal["plan", "engine", "server"]


class Source(Part):
    """Where it was reported."""

    repository: str
    thread: str
    url: str


class Reported(Part):
    """What the report says.

    ``flags`` are its own words, without the program's name; ``environment`` is what it set in front of them.
    """

    engine: str
    device: str
    flags: str
    symptom: str
    environment: str = ""


class ModelFile(Part):
    """A GGUF file: a tiny model by ``recipe``, or a ``path``. The other fields are those of ``pyllm models make``."""

    recipe: str | None = None
    path: Path | None = None
    family: Literal["random", "successor"] = "random"
    seed: Annotated[int, Field(ge=0)] = 0
    error_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    nan_after: Literal["always"] | Annotated[int, Field(ge=0)] | None = None
    width: Annotated[int, Field(ge=1, le=64)] = 1
    layers: Annotated[int, Field(ge=1, le=256)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _written(cls, value: Any) -> Any:
        return {"recipe": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_source(self) -> ModelFile:
        if (self.recipe is None) == (self.path is None):
            raise refuse("a model needs a recipe or a path, and only one of them", "see `pyllm models list`")
        return self

    @field_validator("recipe")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        from pyllm import models  # noqa: PLC0415 - numpy and gguf are slow to load

        known = [recipe.name for recipe in models.recipes()]
        if value is not None and value not in known:
            raise refuse(f"recipe `{value}` is not known", near(value, known, "recipes"))
        return value


class Projector(Part):
    """A tiny image encoder for the scenario's model: ``seed`` draws it, and ``strength`` is how much an image matters beside a token."""

    seed: Annotated[int, Field(ge=0)] = 0
    strength: Annotated[float, Field(gt=0, le=100)] = 1.0


class Substitution(Part):
    """Words of the reported flags, what is used in their place, and why. Empty ``reported`` adds words at the end."""

    reported: str
    used: str
    because: str


class ServerFlags(Part):
    """The server level: the reported flags with what had to be substituted.

    ``{model}``, ``{draft}`` and ``{projector}`` stand for the files. ``flags`` has to be exactly what the substitutions make of the
    reported flags: nothing changes without a reason beside it.
    """

    flags: str
    substituted: tuple[Substitution, ...] = ()


class Beyond(Part):
    """A part of the report that not every machine can show.

    Where one can, ``flags`` and ``engine`` settings are added to the scenario's.
    """

    needs: Need
    shows: str
    flags: str = ""
    engine: dict[str, Any] = Field(default_factory=dict)

    @field_validator("engine")
    @classmethod
    def _engine_fields(cls, value: dict[str, Any]) -> dict[str, Any]:
        return _settings(value)


class Whole(Part):
    """What has to come of the whole: ``start`` "refused" expects settings that are refused before any decode.

    ``never`` is a text that the log of a server started here must not have; its flags have to make it talkative enough.
    """

    start: Literal["ready", "refused"] = "ready"
    says: str | None = None
    never: str | None = None


class Scenario(Part):
    """One file. ``limit`` is in seconds, for each step and for the start; ``projector`` makes what a server needs for prompts with images."""

    name: str
    description: str
    source: Source
    reported: Reported
    requires: tuple[Need, ...] = ("cpu",)
    beyond: tuple[Beyond, ...] = ()
    model: ModelFile
    draft: ModelFile | None = None
    projector: Projector | None = None
    plan: Plan | None = None
    engine: dict[str, Any] | None = None
    server: ServerFlags | None = None
    skip: dict[Level, str] = Field(default_factory=dict)
    seed: Annotated[int, Field(ge=0)] = 0
    limit: Annotated[float, Field(gt=0, le=600)] = 60.0
    steps: Annotated[tuple[Step, ...], Field(min_length=1)]
    expect: Whole = Whole()

    @field_validator("name")
    @classmethod
    def _is_its_path(cls, value: str, info: ValidationInfo) -> str:
        wanted = info.context
        if wanted is not None and value != wanted:
            raise refuse(f"name `{value}` is not the file's path", f"write `name: {wanted}`")
        return value

    @field_validator("engine")
    @classmethod
    def _engine_fields(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if value is None else _settings(value)

    @model_validator(mode="after")
    def _earlier_steps(self) -> Scenario:
        for number, step in enumerate(self.steps, 1):
            like = step.expect.drafts_as
            if like is not None and (like >= number or self.steps[like - 1].prompt is None):
                raise refuse(f"drafts_as {like} is no earlier step with prompts", "steps count from 1", "steps", number - 1, "expect", "drafts_as")
        return self

    @model_validator(mode="after")
    def _seen(self) -> Scenario:
        for number, step in enumerate(self.steps):
            requests = (*(step.prompt or ()), *((step.cancel,) if step.cancel else ()))
            if not any(piece.image for request in requests for piece in request.content or ()):
                continue
            if self.projector is None:
                raise refuse("an image needs something that makes rows of it", "add `projector: {}`, and `--mmproj {projector}` to the flags", "steps", number)
            if self.engine is not None:
                raise refuse("the engine takes no images", "give `skip: {engine: …}` with this reason", "steps", number)
        return self

    @model_validator(mode="after")
    def _together(self) -> Scenario:
        if self.server is not None:
            self._check_flags(self.server)
        if self.engine is not None and self.expect.start == "ready":
            try:
                self.engine_config(Path("model.gguf"), None if self.draft is None else Path("draft.gguf"))
            except ConfigError as failure:
                raise refuse(failure.message, failure.hint, "engine") from failure
        for level, written in (("engine", self.engine), ("server", self.server)):
            if written is None and level not in self.skip:
                raise refuse(
                    f"the scenario has neither `{level}` nor a reason in `skip: {{{level}: …}}`",
                    "say how it runs there, or why it does not",
                )
        if self.plan is not None and "plan" in self.skip:
            raise refuse("the scenario has a `plan` and a reason in `skip: {plan: …}`", "keep one of them", "skip", "plan")
        return self

    def _check_flags(self, server: ServerFlags) -> None:
        changes = [(change.reported, change.used) for change in server.substituted]
        try:
            made = command.substitute(command.split(self.reported.flags), changes)
            used = command.split(server.flags)
        except ValueError as failure:
            raise refuse(
                f"`{failure}` cannot be substituted: it is not in the reported flags, or a quote is open",
                "copy the words as they are reported",
                "server",
                "substituted",
            ) from failure
        if made != used:
            place = next((i for i, (a, b) in enumerate(zip(made, used, strict=False)) if a != b), min(len(made), len(used)))
            got = " ".join(used[place : place + 3]) or "nothing"
            want = " ".join(made[place : place + 3]) or "nothing"
            raise refuse(
                f"flags have `{got}` where the reported flags and the substitutions make `{want}`",
                "write the missing substitution, with its reason",
                "server",
                "flags",
            )

    def engine_config(self, model: Path, draft: Path | None, parts: Sequence[Beyond] = ()) -> EngineConfig:
        """The engine's settings for these files, and for the parts that the machine can show.

        Raises:
            ConfigError: they cannot work together.
        """
        settings = dict(self.engine or {})
        for part in parts:
            settings |= part.engine
        config: EngineConfig = parse(EngineConfig, settings | {"model": model, "draft": draft})
        if config.spec is not None and "depth_control" not in config.spec.model_fields_set:
            # A replay drafts the same on every machine: depths do not follow from what a step takes there.
            config = config.model_copy(update={"spec": config.spec.model_copy(update={"depth_control": False})})
        if config.spec is not None and config.spec.n_max is not None:
            check_batch(batch=config.batch, slots=config.slots, depth=config.spec.n_max)
        return config

    def server_flags(self, model: Path, draft: Path | None, parts: Sequence[Beyond] = (), projector: Path | None = None) -> list[str]:
        """The server's flags for these files, and for the parts that the machine can show."""
        words = command.split("" if self.server is None else self.server.flags)
        words += [word for part in parts for word in command.split(part.flags)]
        return command.fill(words, {"model": str(model), "draft": str(draft or ""), "projector": str(projector or "")})

    def verbs(self) -> set[str]:
        """The verbs of its steps."""
        return {step.verb for step in self.steps}


def _settings(value: dict[str, Any]) -> dict[str, Any]:
    known = [name for name in EngineConfig.model_fields if name not in {"model", "draft"}]
    for key in value:
        if key not in known:
            raise refuse(f"engine setting `{key}` is not known", near(key, known, "settings"), key)
    return value


def load(path: Path) -> Scenario:
    """Read one scenario file.

    Raises:
        NotFoundError: there is no such file.
        ScenarioError: what is wrong, as ``FILE:LINE:COLUMN: …``.
    """
    document = read(path)
    if not isinstance(document.value, dict):
        raise document.fault((), "a scenario is a mapping", "see the other files in repro/")
    try:
        scenario = Scenario.model_validate(document.value, context=path_name(path))
        if scenario.plan is not None:
            engine_file(scenario.plan.engine, path.parent)
    except ValidationError as failure:
        raise translate(document, failure) from failure
    except NotFoundError as failure:
        raise document.fault(("plan", "engine"), failure.message, failure.hint) from failure
    return scenario
