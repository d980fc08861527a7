"""Settings of an engine and of one request, checked before anything is loaded.

Names and meanings are llama.cpp's (``llama-server --help``); ``SpecConfig`` also reads vLLM's ``speculative_config`` dict.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pyllm.errors import ConfigError

KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
Route = Literal["vec", "tile", "mma", "sparse", "verify", "reference"]
Phase = Literal["prefill", "decode", "verify", "draft"]
SpecType = Literal["draft-mtp", "draft-dflash", "draft-simple", "ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod"]
Verification = Literal["exact", "rejection"]

#: Short names people write, and upstream's names for them.
SPEC_ALIASES = {"mtp": "draft-mtp", "dflash": "draft-dflash", "draft": "draft-simple", "ngram": "ngram-map-k"}

#: Names by which one request might ask for a drafter. Drafters are chosen when the engine is made.
DRAFTER_CHOICES = ("spec", "spec_type", "drafter", "draft", "speculative_config")

#: Types that need no draft model and no prediction heads.
NGRAM_TYPES = ("ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod")


#: Types that cannot do without a draft model's file, and what that file is.
MODEL_TYPES = {"draft-dflash": "DFlash drafter", "draft-simple": "small model of the same vocabulary"}


class Settings(BaseModel):
    """Base of all settings: immutable, unknown names refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def parse(kind: type[Settings], values: dict[str, Any]) -> Any:
    """Build ``kind`` from ``values``.

    Raises:
        ConfigError: for the first wrong value, with the value, what is allowed and, for an unknown name, the nearest known one.
    """
    try:
        return kind(**values)
    except ValidationError as failure:
        first = failure.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or kind.__name__
        if first["type"] == "extra_forbidden":
            known = sorted(kind.model_fields)
            near = difflib.get_close_matches(where, known, 1)
            hint = f"did you mean `{near[0]}`?" if near else f"known settings: {', '.join(known)}"
            raise ConfigError(f"setting `{where}` is not known", hint) from None
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):
            raise cause from None
        raise ConfigError(f"setting `{where}` is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}", f"see `{kind.__name__}`") from None


def forced_routes(text: str) -> dict[str, str]:
    """Read ``mma`` (all phases) or ``decode=vec,verify=mma``: a route for each phase.

    Raises:
        ConfigError: a route or a phase that is not known.
    """
    routes, phases = get_args(Route), get_args(Phase)
    forced: dict[str, str] = {}
    for part in text.split(","):
        phase, _, route = part.strip().rpartition("=")
        if route not in routes:
            near = difflib.get_close_matches(route, routes, 1)
            allowed = f"choose from {', '.join(routes)}"
            raise ConfigError(f"route `{route}` is not known", f"did you mean `{near[0]}`? {allowed}" if near else allowed)
        if phase and phase not in phases:
            raise ConfigError(f"phase `{phase}` is not known", f"choose from {', '.join(phases)}")
        forced |= dict.fromkeys((phase,) if phase else phases, route)
    return forced


class SpecConfig(Settings):
    """How to draft. ``types`` are asked in this order, the next one where the one before has nothing.

    ``n_max`` None is the type's default: 3 for heads and draft models, the block for DFlash, 48 for n-grams. With ``depth_control`` it is the
    most that a slot drafts: how many pay is measured while it runs, and may be none. ``ctx`` is the drafter's context in tokens per slot, 0 for the
    target's; a shorter one sees the recent past only. ``gpu_layers`` and ``devices`` place the draft model, by default as the target.
    ``verification`` at a temperature: ``exact`` draws as without speculation and keeps drafts that are drawn, with the same text for the same
    seed; ``rejection`` samples the drafts too and accepts with min(1, p/q), the same distribution, as a rule with more accepted.
    """

    types: tuple[SpecType, ...] = Field(min_length=1)
    n_max: Annotated[int, Field(ge=1, le=4096)] | None = None
    depth_control: bool = True
    verification: Verification = "exact"
    ctx: Annotated[int, Field(ge=0, le=2**30)] = 0
    gpu_layers: int | None = None
    devices: tuple[str, ...] = ()
    n_min: Annotated[int, Field(ge=0, le=4096)] = 0
    p_min: Annotated[float, Field(ge=0, le=1)] = 0.0
    ngram_size_n: Annotated[int, Field(ge=1, le=1024)] | None = None
    ngram_size_m: Annotated[int, Field(ge=1, le=1024)] | None = None
    ngram_min_hits: Annotated[int, Field(ge=1, le=1024)] | None = None

    @field_validator("types", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list | tuple):
            return value
        known = SpecType.__args__  # type: ignore[attr-defined]
        types = tuple(SPEC_ALIASES.get(str(name).strip(), str(name).strip()) for name in names)
        for name in types:
            if name not in known:
                near = difflib.get_close_matches(name, [*known, *SPEC_ALIASES], 1)
                allowed = f"choose from {', '.join(known)}"
                raise ConfigError(f"drafter type `{name}` is not known", f"did you mean `{near[0]}`? {allowed}" if near else allowed)
        return types

    @classmethod
    def of(cls, value: SpecConfig | str | dict[str, Any] | None) -> SpecConfig | None:
        """From a name (``"mtp"``, ``"draft-dflash,ngram-map-k"``), vLLM's dict or these fields; None stays None."""
        if value is None or isinstance(value, SpecConfig):
            return value
        if isinstance(value, str):
            return parse(cls, {"types": value})  # type: ignore[no-any-return]
        fields = dict(value)
        fields.pop("model", None)
        if "method" in fields:
            fields["types"] = fields.pop("method")
        if "num_speculative_tokens" in fields:
            fields["n_max"] = fields.pop("num_speculative_tokens")
        return parse(cls, fields)  # type: ignore[no-any-return]

    @property
    def needs_model(self) -> bool:
        """Whether a type can only work with a draft model of its own file."""
        return any(name in MODEL_TYPES for name in self.types)


class EngineConfig(Settings):
    """An engine: files, slots and sizes.

    ``ctx`` counts KV cells over all slots, as ``-c`` does: each slot holds ``ctx / slots`` tokens, or up to all of them with
    ``unified``. 0 is the length that the model was trained with. ``force_route`` (a route for all phases, ``"decode=vec,verify=mma"`` or a
    dict), ``tuning`` (a file of ``pyllm bench attention --tune``; ``stats()`` says whether it is used) and ``allow_cpu_attention`` hold for the whole
    process: they are about its devices.

    ``draft`` are the GGUF files of the drafters that ``spec`` names; what each is for is read from the file.
    ``context_shift`` goes on in a full slot: after the first ``keep`` tokens of its prompt (a request's ``keep``), half of the rest is dropped.
    ``cache_bytes`` is what checkpoints and evicted conversations may take in memory; ``checkpoint_every`` tokens of a prompt a checkpoint is taken
    where the memory cannot go back by itself (sliding windows, recurrent state), and before each turn that a request names.
    ``crash_reports`` is a folder: what still ends the process leaves a report there.
    """

    model: Path
    draft: tuple[Path, ...] = ()
    spec: SpecConfig | None = None
    slots: Annotated[int, Field(ge=1, le=256)] = 1
    ctx: Annotated[int, Field(ge=0, le=2**30)] = 0
    batch: Annotated[int, Field(ge=1, le=2**24)] = 2048
    ubatch: Annotated[int, Field(ge=1, le=2**24)] = 512
    kv_types: tuple[KvType, KvType] = ("f16", "f16")
    draft_kv_types: tuple[KvType, KvType] = ("f16", "f16")
    unified: bool = False
    swa_full: bool = False
    context_shift: bool = False
    cache_bytes: Annotated[int, Field(ge=0, le=2**50)] = 2**30
    checkpoint_every: Annotated[int, Field(ge=1, le=2**30)] = 4096
    crash_reports: Path | None = None
    flash_attn: Literal["auto", "on", "off"] = "auto"
    threads: Annotated[int, Field(ge=0, le=512)] = 0
    gpu_layers: int = -1
    split_mode: Literal["none", "layer", "row", "tensor"] = "layer"
    devices: tuple[str, ...] = ()
    mmap: bool = True
    trace: bool = False
    force_route: dict[Phase, Route] = Field(default_factory=dict)
    tuning: Path | None = None
    allow_cpu_attention: bool = False

    @field_validator("spec", mode="before")
    @classmethod
    def _spec(cls, value: Any) -> SpecConfig | None:
        return SpecConfig.of(value)

    @field_validator("draft", mode="before")
    @classmethod
    def _drafts(cls, value: object) -> object:
        if value is None:
            return ()
        return (value,) if isinstance(value, str | Path) else value

    @field_validator("force_route", mode="before")
    @classmethod
    def _routes(cls, value: object) -> object:
        return forced_routes(value) if isinstance(value, str) else value or {}

    @field_validator("kv_types", "draft_kv_types", mode="before")
    @classmethod
    def _pair(cls, value: object) -> object:
        return (value, value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _together(self) -> EngineConfig:
        files = ", ".join(str(path) for path in self.draft)
        if self.draft and self.spec is None:
            raise ConfigError(f"a draft model `{files}` is given without a drafter type", "add spec, for example spec='mtp' or spec='dflash'")
        if not self.draft and self.spec is not None and self.spec.needs_model:
            name = next(name for name in self.spec.types if name in MODEL_TYPES)
            raise ConfigError(f"`{name}` needs a draft model", f"give draft, the GGUF of a {MODEL_TYPES[name]}")
        if self.draft and self.spec is not None and all(name in NGRAM_TYPES for name in self.spec.types):
            raise ConfigError(f"drafter type `{','.join(self.spec.types)}` uses no draft model, but `{files}` is given", "leave draft out")
        if self.batch < self.slots:
            raise ConfigError(
                f"a batch of {self.batch} tokens cannot hold one token for each of {self.slots} slots",
                f"use batch {self.slots} or more, or fewer slots",
            )
        return self


def check_choice(request: dict[str, Any], spec: SpecConfig | None) -> None:
    """A request's settings name no drafter: those of ``spec`` draft for all.

    Raises:
        ConfigError: with the name, the drafters that there are and what a request can choose.
    """
    for name in DRAFTER_CHOICES:
        if name in request:
            there = (
                f"this engine drafts with `{','.join(spec.types)}`, as `spec` said when it was made"
                if spec is not None
                else "this engine has none: make it with `spec`"
            )
            raise ConfigError(
                f"a request cannot choose its drafter, and `{name}` is {request[name]!r}",
                f"{there}; a request has `speculate`, `draft_depth` and `draft_p_min`",
            )


def check_batch(*, batch: int, slots: int, depth: int) -> None:
    """A decode has to hold every slot's sampled token and its whole draft: a slot's draft block is never split.

    Raises:
        ConfigError: with the numbers and what to change.
    """
    need = slots * (1 + depth)
    if need <= batch:
        return
    ways = [f"batch {need} or more"]
    if batch // slots >= 2:
        ways.append(f"draft depth {batch // slots - 1} or less")
    if batch >= 1 + depth:
        fit = batch // (1 + depth)
        ways.append("1 slot" if fit == 1 else f"{fit} slots or fewer")
    hint = ways[0] if len(ways) == 1 else ", ".join(ways[:-1]) + ", or " + ways[-1]
    raise ConfigError(f"a batch of {batch} tokens cannot hold {slots} slots × (1 + {depth} draft tokens) = {need}", f"use {hint}")


class SamplingParams(Settings):
    """One request. ``temperature`` 0 is greedy; ``seed`` None is random.

    ``speculate`` False decodes it without drafts; ``draft_depth`` is the most it drafts, 0 as well as False; its drafts end before a token that the
    drafter gives less than ``draft_p_min``, None for what ``spec`` says. ``grammar`` is GBNF, ``json_schema`` a schema as a dict or text. ``logprobs``
    N gives, for each token, its log-probability and those of the N best, before sampling. ``timeout`` counts seconds from submission; the request
    then ends with what it has. A higher ``priority`` is admitted first. ``slot`` asks for one slot.
    ``keep`` tokens of the prompt stay when the context is shifted. ``turns`` are positions in the prompt where a turn of the conversation begins:
    checkpoints are taken there.
    """

    max_tokens: Annotated[int, Field(ge=1, le=2**30)] = 128
    temperature: Annotated[float, Field(ge=0, le=1e6)] = 0.8
    top_k: Annotated[int, Field(ge=0, le=2**30)] = 40
    top_p: Annotated[float, Field(ge=0, le=1)] = 0.95
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.05
    repeat_penalty: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    frequency_penalty: Annotated[float, Field(ge=-1e6, le=1e6)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-1e6, le=1e6)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logit_bias: dict[int, float] = Field(default_factory=dict)
    grammar: str | None = None
    json_schema: dict[str, Any] | str | None = None
    logprobs: Annotated[int, Field(ge=0, le=128)] | None = None
    speculate: bool = True
    draft_depth: Annotated[int, Field(ge=0, le=4096)] | None = None
    draft_p_min: Annotated[float, Field(ge=0, le=1)] | None = None
    cache_prompt: bool = True
    keep: Annotated[int, Field(ge=0, le=2**30)] = 0
    turns: tuple[int, ...] = ()
    timeout: Annotated[float, Field(gt=0, le=1e9)] | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    slot: Annotated[int, Field(ge=0, le=255)] | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _stop(cls, value: object) -> object:
        words = (value,) if isinstance(value, str) else value
        if isinstance(words, list | tuple) and any(word == "" for word in words):
            raise ConfigError("a stop string is empty", "leave it out: an empty string stops at once")
        return words

    @model_validator(mode="after")
    def _one_grammar(self) -> SamplingParams:
        if self.grammar is not None and self.json_schema is not None:
            raise ConfigError("both grammar and json_schema are given", "give one of them")
        return self
