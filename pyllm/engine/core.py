"""The native side of an engine: models, contexts and the chain of drafters, sized so that they fit each other."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from pyllm._ffi import Batch, Context, Cut, Drafter, Model, allow_cpu_attention, check_route_table, force_route, model_fingerprint
from pyllm.checkpoints import archive
from pyllm.config import MODEL_TYPES, NGRAM_TYPES, EngineConfig, check_batch
from pyllm.errors import ConfigError
from pyllm.slots import Memory

if TYPE_CHECKING:
    from pathlib import Path

    from pyllm.config import SpecConfig, SpecType

#: Upstream's defaults of --spec-draft-n-max and of the n-gram values' length.
HEAD_DEPTH = 3
NGRAM_DEPTH = 48

#: Recurrent models keep one snapshot of their state for each token that may be rolled back, so n-gram drafts stay short there.
RECURRENT_NGRAM_DEPTH = 8

#: What a draft model is for, by its architecture; a file with prediction heads is for `draft-mtp`, any other model for `draft-simple`.
PURPOSES: dict[str, SpecType] = {"dflash": "draft-dflash", "gemma4-assistant": "draft-mtp"}


def purpose(model: Model, wanted: tuple[SpecType, ...]) -> SpecType:
    """The drafter type that ``model`` serves."""
    architecture = model.info.architecture
    if architecture in PURPOSES:
        return PURPOSES[architecture]
    return "draft-mtp" if model.info.n_layer_nextn > 0 and "draft-mtp" in wanted else "draft-simple"


def planned_depth(spec: SpecConfig, model: Model, drafts: dict[SpecType, Model]) -> dict[SpecType, int]:
    """Tokens that one slot drafts at most with each type, as it can be told before a drafter exists."""
    depths: dict[SpecType, int] = {}
    for name in spec.types:
        if name in NGRAM_TYPES:
            longest = spec.ngram_size_m or NGRAM_DEPTH
            if model.info.recurrent or model.info.hybrid:
                longest = min(longest, RECURRENT_NGRAM_DEPTH)
            depths[name] = min(spec.n_max or longest, longest)
        elif name == "draft-dflash" and name in drafts and drafts[name].info.block_size > 1:
            block = drafts[name].info.block_size
            depths[name] = min(spec.n_max or block, block - 1)
        else:
            depths[name] = spec.n_max or HEAD_DEPTH
    return depths


def _tune(path: Path | None) -> str:
    """Put the table of a tuning in force, or the first one again; says what came of it."""
    # The table's rows take a second to make: only who asks for them waits. Nobody else puts another table in force.
    if path is None and "pyllm.routes.decision" not in sys.modules:
        return ""
    from pyllm.routes.decision import use_table  # noqa: PLC0415
    from pyllm.routes.present import present_devices  # noqa: PLC0415
    from pyllm.routes.tuning import choose  # noqa: PLC0415

    if path is None:
        use_table(None)
        return ""
    choice = choose(path, present_devices())
    use_table(choice.table)
    return choice.says


class Core:
    """Everything native that one engine owns. ``depth`` is the number of tokens that a slot drafts at most, 0 without speculation.

    ``tuning`` says what came of the configuration's file of that name.

    Raises:
        ConfigError: sizes that cannot work together, with the numbers.
        PyllmError: what loading a model or creating a context raises.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._stack = ExitStack()
        try:
            self._open(config)
        except BaseException:
            self.close()
            raise

    def _open(self, config: EngineConfig) -> None:
        spec = config.spec
        check_route_table()
        allow_cpu_attention(allow=config.allow_cpu_attention)
        force_route(None)
        for phase, route in config.force_route.items():
            force_route(route, phase)
        self.tuning = _tune(config.tuning)
        drafts = self._load_drafts(config)
        self.draft_models = list(drafts.values())
        own_heads = spec is not None and "draft-mtp" in spec.types and "draft-mtp" not in drafts
        self.model: Model = self._stack.enter_context(
            Model(
                config.model,
                gpu_layers=config.gpu_layers,
                split_mode=config.split_mode,
                mmap=config.mmap,
                load_mtp=own_heads,
                devices=config.devices,
            )
        )
        if not self.model.info.has_decoder:
            raise ConfigError(f"`{config.model}` (architecture `{self.model.info.architecture}`) generates no text", "give a decoder model")

        depths = planned_depth(spec, self.model, drafts) if spec is not None else {}
        self.depth = max(depths.values(), default=0)
        n_ctx = config.ctx or self.model.info.n_ctx_train
        check_batch(batch=min(config.batch, n_ctx), slots=config.slots, depth=self.depth)
        recurrent = self.model.info.recurrent or self.model.info.hybrid
        self.context: Context = self._stack.enter_context(
            Context(
                self.model,
                n_ctx=config.ctx,
                n_batch=config.batch,
                n_ubatch=config.ubatch,
                n_seq_max=config.slots,
                n_rs_seq=self.depth if recurrent else 0,
                n_outputs_max=config.slots * (1 + self.depth),
                n_threads=config.threads,
                type_k=config.kv_types[0],
                type_v=config.kv_types[1],
                flash_attn=config.flash_attn,
                kv_unified=config.unified,
                swa_full=config.swa_full,
                trace=config.trace,
            )
        )
        self.info = self.context.info
        self.drafter: Drafter | None = self._chain(config, drafts, depths) if spec is not None else None
        if self.drafter is not None:
            self.depth = min(self.depth, self.drafter.info.n_max)
        #: How the target's decodes are cut into micro-batches.
        self.cut = self._cut(recurrent=recurrent)
        self.batch: Batch = self._stack.enter_context(Batch(self.context))
        #: Positions of one slot.
        self.n_ctx_slot = min(self.info.n_ctx_seq, self.info.n_ctx)
        self.memory = Memory(self.context, self.drafter, n_swa=0 if config.swa_full else self.model.info.n_swa, recurrent=recurrent)
        if config.context_shift and not (self.info.can_shift and (self.drafter is None or self.drafter.info.can_shift)):
            what = "target" if not self.info.can_shift else "drafter"
            raise ConfigError(f"context_shift is asked for, but the positions of this {what}'s memory cannot be shifted", "leave context_shift out")
        #: What binds a checkpoint of this engine: of the files as they were loaded, which may be replaced later.
        self.facts = self._facts(config)

    def _load_drafts(self, config: EngineConfig) -> dict[SpecType, Model]:
        """Draft models by the type that each serves."""
        spec = config.spec
        drafts: dict[SpecType, Model] = {}
        paths: dict[SpecType, Path] = {}
        if spec is None:
            return drafts
        for path in config.draft:
            draft = self._stack.enter_context(
                Model(
                    path,
                    gpu_layers=config.gpu_layers if spec.gpu_layers is None else spec.gpu_layers,
                    split_mode="layer" if len(spec.devices) == 1 else config.split_mode,
                    mmap=config.mmap,
                    load_mtp="draft-mtp" in spec.types,
                    devices=spec.devices or config.devices,
                )
            )
            serves = purpose(draft, spec.types)
            if serves not in spec.types:
                # One file for one type that needs a file: what is wrong with the pair is for the drafter to say.
                open_types = [name for name in spec.types if name not in NGRAM_TYPES and name not in drafts]
                if len(config.draft) > 1 or not open_types:
                    raise ConfigError(f"`{path}` is for drafter type `{serves}`, which spec does not name", f"add {serves} to spec, or leave the file out")
                serves = open_types[0]
            if serves in drafts:
                raise ConfigError(f"`{paths[serves]}` and `{path}` are both for drafter type `{serves}`", "give one file for each type")
            drafts[serves] = draft
            paths[serves] = path
        for name in spec.types:
            if name in MODEL_TYPES and name not in drafts:
                raise ConfigError(f"`{name}` needs a draft model", f"give draft, the GGUF of a {MODEL_TYPES[name]}")
        return drafts

    def _chain(self, config: EngineConfig, drafts: dict[SpecType, Model], depths: dict[SpecType, int]) -> Drafter:
        spec = config.spec
        if spec is None:
            raise ConfigError("there is no drafter type", "give spec")
        drafter: Drafter = self._stack.enter_context(Drafter(self.context))
        for name in spec.types:
            drafter.add(
                name,
                drafts.get(name),
                n_max=depths[name],
                n_min=spec.n_min,
                p_min=spec.p_min,
                ngram_size_n=spec.ngram_size_n or 0,
                ngram_size_m=min(spec.ngram_size_m or NGRAM_DEPTH, depths[name]) if name in NGRAM_TYPES else 0,
                ngram_min_hits=spec.ngram_min_hits or 0,
                type_k=config.draft_kv_types[0],
                type_v=config.draft_kv_types[1],
                n_ctx=spec.ctx * (1 if config.unified else config.slots),
                n_threads=config.threads,
            )
        return drafter

    def _cut(self, *, recurrent: bool) -> Cut:
        if self.info.n_seq_max == 1:
            return Cut.ROWS
        if not self.info.kv_unified or (recurrent and self.info.n_rs_seq > 0):
            return Cut.NEIGHBOURS
        return Cut.EQUAL if recurrent else Cut.ROWS

    def _facts(self, config: EngineConfig) -> dict[str, str]:
        drafters: list[str] = []
        if self.drafter is not None:
            # Drafters that keep nothing of their own bind nothing.
            kept = [link.type for link in self.drafter.links if link.type.startswith("draft-")]
            files = [model_fingerprint(model) for model in self.draft_models]
            drafters = [*kept, *files, "/".join(config.draft_kv_types)] if kept else []
        return archive.facts_of(
            model=model_fingerprint(self.model),
            architecture=self.model.info.architecture,
            kv_types=config.kv_types,
            drafters=" ".join(drafters),
        )

    def close(self) -> None:
        """Free drafter, contexts and models, in that order."""
        self._stack.close()
