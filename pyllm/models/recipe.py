"""The tiny models that can be made, by name."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

from pyllm.errors import ConfigError, NotFoundError
from pyllm.models.architectures import dflash, eagle3, falcon_h1, gemma4, llama, nemotron_h, qwen35, step35
from pyllm.models.blueprint import Part

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyllm.models.blueprint import Blueprint

    Plan = Callable[[int, int | None], Blueprint]

Family = Literal["random", "successor"]
Kind = Literal["target", "drafter"]
Spec = Literal["mtp", "dflash", "eagle3", "draft"]
BOTH: tuple[Family, ...] = ("random", "successor")
TINY = "tiny"


@dataclass(frozen=True)
class Recipe:
    """One model that can be made.

    Attributes:
        name: what :func:`pyllm.models.make` takes.
        description: one sentence.
        architecture: ``general.architecture`` of the file.
        kind: whether it generates by itself or drafts for others.
        plan: makes the blueprint from width and layers; for a block drafter, that of its target.
        larger: the same for sizes other than tiny, by name. They come in the successor family only.
        families: weight families it comes in.
        spec: for a drafter, how it drafts.
        targets: for a drafter, the recipes it fits.
        drafters: for a target, how it can be drafted for and by which recipe; None where the drafter is in its own
            file.
        depth: the most tokens drafted at once by it or the drafter in it; None without a limit of its own.
        taps: for a block drafter, the layers of its target whose inputs it reads.
        scaled: for a block drafter, whether its target's graph multiplies embeddings with the root of the width.
        mrope: for a block drafter, whether its target has M-RoPE.
        window: for a block drafter, tokens that every other layer of it sees; 0 for all.
        selects: for a block drafter, whether it is DFlash2, which selects among the best tokens of each position.

    """

    name: str
    description: str
    architecture: str
    kind: Kind
    plan: Plan = field(repr=False, compare=False)
    larger: dict[str, Plan] = field(default_factory=dict, repr=False, compare=False)
    families: tuple[Family, ...] = BOTH
    spec: Spec | None = None
    targets: tuple[str, ...] = ()
    drafters: tuple[tuple[Spec, str | None], ...] = ()
    depth: int | None = None
    taps: tuple[int, ...] = ()
    scaled: bool = False
    mrope: bool = False
    window: int = 0
    selects: bool = False

    @property
    def sizes(self) -> tuple[str, ...]:
        """Names of the sizes it comes in."""
        return (TINY, *self.larger)

    @property
    def has_drafter(self) -> bool:
        """Whether the file drafts, for itself or for another."""
        return self.spec is not None or any(name is None for _, name in self.drafters)

    @property
    def n_positions(self) -> int:
        """Draft positions that can err on their own: one where a single head is fed with its own draft."""
        return self.depth if self.has_drafter and self.depth else 1

    def blueprint(self, family: Family, width: int = 1, layers: int | None = None, *, size: str = TINY) -> Blueprint:
        """Return what the file consists of.

        Raises:
            ConfigError: a size that it does not come in, or a number of layers that the architecture's pattern does
                not allow.

        """
        if size not in self.sizes:
            raise ConfigError(f"{self.name} has no size {size!r}", f"it comes in: {', '.join(self.sizes)}")
        plan = self.plan if size == TINY else self.larger[size]
        if not self.taps:
            return plan(width, layers)
        target = plan(width, None)
        exact = family == "successor"
        return dflash.blueprint(
            target,
            list(self.taps),
            layers=layers or (2 if exact else 3),
            embed_scale=target.n_embd**0.5 if self.scaled else None,
            exact=exact,
            mrope=self.mrope,
            window=self.window,
            selects=self.selects,
        )


def _block_drafter(target: Recipe, *taps: int, scaled: bool = False, mrope: bool = False, window: int = 0, selects: bool = False) -> Recipe:
    seen = f"; every other layer sees {window} tokens" if window else ""
    kind = "DFlash2: short convolutions, and a selector among the best tokens of each position; reads" if selects else "reads"
    return Recipe(
        f"{target.name}-dflash{'2' if selects else ''}{'-swa' if window else ''}",
        f"Block drafter for {target.name}: {kind} the inputs of layers {', '.join(map(str, taps))}{seen}.",
        "dflash",
        "drafter",
        target.plan,
        target.larger,
        spec="dflash",
        targets=(target.name,),
        depth=dflash.BLOCK_SIZE - 1,
        taps=taps,
        scaled=scaled,
        mrope=mrope,
        window=window,
        selects=selects,
    )


def _assistant(target: Recipe, size: gemma4.Size, description: str, slice_of: gemma4.Size | None = None) -> Recipe:
    return Recipe(
        f"{target.name}-assistant",
        description,
        "gemma4-assistant",
        "drafter",
        partial(gemma4.assistant, size),
        {"slice": partial(gemma4.assistant, slice_of)} if slice_of else {},
        spec="mtp",
        targets=(target.name,),
    )


_LLAMA = Recipe(
    "llama",
    "Dense model with full attention in every layer: head dim 64, heads 8/2.",
    "llama",
    "target",
    llama.blueprint,
    {"60m": partial(llama.blueprint, size=llama.M60), "8b": partial(llama.blueprint, size=llama.B8)},
    drafters=(("dflash", "llama-dflash"), ("dflash", "llama-dflash-swa"), ("dflash", "llama-dflash2"), ("eagle3", "llama-eagle3"), ("draft", "llama-draft")),
)
_LLAMA_EAGLE3 = Recipe(
    "llama-eagle3",
    f"EAGLE-3 drafter for llama: one layer, reads the inputs of layers {', '.join(map(str, eagle3.TAPS))}; pyllm-server runs it, the engine does not.",
    "eagle3",
    "drafter",
    partial(eagle3.blueprint, llama.blueprint),
    families=("random",),
    spec="eagle3",
    targets=("llama",),
)
_LLAMA_DRAFT = Recipe(
    "llama-draft",
    "A model of its own that drafts for any recipe with the common vocabulary: two layers, head dim 128, heads 4/2.",
    "llama",
    "drafter",
    partial(llama.blueprint, size=llama.DRAFT, part=Part.DRAFT),
    spec="draft",
    targets=("llama", "falcon-h1"),
)
_LLAMA_OTHER_VOCAB = Recipe(
    "llama-other-vocab",
    "The llama recipe with another vocabulary, of another size: fits no other recipe.",
    "llama",
    "target",
    partial(llama.blueprint, foreign_vocabulary=True),
    families=("random",),
)
_GEMMA4 = Recipe(
    "gemma4",
    "Gemma 4 E4B in small: head dims 256 (sliding window) and 512 (global), heads 8/2, the last two layers share KV.",
    "gemma4",
    "target",
    partial(gemma4.target, gemma4.E4B),
    drafters=(("mtp", "gemma4-assistant"), ("dflash", "gemma4-dflash")),
)
_GEMMA4_12B = Recipe(
    "gemma4-12b",
    "Gemma 4 12B in small: global layers with heads 16/1 whose keys serve as values, sliding-window layers with 16/8.",
    "gemma4",
    "target",
    partial(gemma4.target, gemma4.DENSE_12B),
    drafters=(("mtp", "gemma4-12b-assistant"),),
)
_GEMMA4_31B = Recipe(
    "gemma4-31b",
    "Gemma 4 31B in small: global layers with heads 16/2 whose keys serve as values, sliding-window layers with 16/8.",
    "gemma4",
    "target",
    partial(gemma4.target, gemma4.DENSE_31B),
    {"slice": partial(gemma4.target, gemma4.SLICE_31B)},
    drafters=(("mtp", "gemma4-31b-assistant"), ("dflash", "gemma4-31b-dflash")),
)
_QWEN35 = Recipe(
    "qwen35",
    "Qwen3.5 hybrid: gated delta net, gated full attention (256, 12/2) in every fourth layer, one nextn block inside.",
    "qwen35",
    "target",
    qwen35.blueprint,
    {
        "60m": partial(qwen35.blueprint, size=qwen35.M60),
        "8b": partial(qwen35.blueprint, size=qwen35.B8),
        "slice": partial(qwen35.blueprint, size=qwen35.SLICE_27B),
    },
    drafters=(("mtp", None), ("dflash", "qwen35-dflash"), ("dflash", "qwen35-dflash2")),
)
_FALCON_H1 = Recipe(
    "falcon-h1",
    "Falcon-H1 hybrid: attention (head dim 64, heads 8/2) and Mamba-2 side by side; its state cannot be rolled back.",
    "falcon-h1",
    "target",
    falcon_h1.blueprint,
    drafters=(("draft", "llama-draft"),),
)
_NEMOTRON_H = Recipe(
    "nemotron-h",
    "Nemotron-H hybrid: Mamba-2, attention without RoPE (head dim 128, heads 32/2) and dense feed-forward blocks.",
    "nemotron_h",
    "target",
    partial(nemotron_h.blueprint, moe=False),
    drafters=(("dflash", "nemotron-h-dflash"),),
)
_NEMOTRON_H_MOE = Recipe(
    "nemotron-h-moe",
    "Nemotron-H hybrid with mixture-of-experts blocks and one nextn block inside.",
    "nemotron_h_moe",
    "target",
    partial(nemotron_h.blueprint, moe=True),
    drafters=(("mtp", None), ("dflash", "nemotron-h-moe-dflash")),
)
_STEP35 = Recipe(
    "step35",
    "Step-3.5 in small, dense: sliding-window and full layers, three chained nextn blocks inside.",
    "step35",
    "target",
    step35.blueprint,
    {"60m": partial(step35.blueprint, size=step35.M60), "8b": partial(step35.blueprint, size=step35.B8)},
    drafters=(("mtp", None),),
    depth=step35.N_NEXTN,
)

_RECIPES: tuple[Recipe, ...] = (
    _LLAMA,
    _block_drafter(_LLAMA, 1, 2, 3),
    _block_drafter(_LLAMA, 1, 2, 3, window=16),
    _block_drafter(_LLAMA, 1, 2, 3, selects=True),
    _LLAMA_EAGLE3,
    _LLAMA_DRAFT,
    _LLAMA_OTHER_VOCAB,
    _GEMMA4,
    _assistant(_GEMMA4, gemma4.E4B, "MTP assistant of gemma4: heads 4/2, queries only, attends to its target's KV cache."),
    _block_drafter(_GEMMA4, 1, 3, 5, scaled=True),
    _GEMMA4_12B,
    _assistant(_GEMMA4_12B, gemma4.DENSE_12B, "MTP assistant of gemma4-12b: heads 8/1 on global layers."),
    _GEMMA4_31B,
    _assistant(_GEMMA4_31B, gemma4.DENSE_31B, "MTP assistant of gemma4-31b: heads 8/2 on global layers.", gemma4.SLICE_31B),
    _block_drafter(_GEMMA4_31B, 1, 3, 5, scaled=True),
    _QWEN35,
    _block_drafter(_QWEN35, 1, 2, 3, mrope=True),
    _block_drafter(_QWEN35, 1, 2, 3, mrope=True, selects=True),
    _FALCON_H1,
    _NEMOTRON_H,
    _block_drafter(_NEMOTRON_H, 1, 3, 5),
    _NEMOTRON_H_MOE,
    _block_drafter(_NEMOTRON_H_MOE, 1, 3, 5),
    _STEP35,
)
_BY_NAME = {recipe.name: recipe for recipe in _RECIPES}


def recipes() -> tuple[Recipe, ...]:
    """Return every recipe, each target followed by its drafters."""
    return _RECIPES


def find(name: str) -> Recipe:
    """Return the recipe of that name.

    Raises:
        NotFoundError: there is none; the hint names the nearest and all others.

    """
    recipe = _BY_NAME.get(name)
    if recipe is None:
        near = difflib.get_close_matches(name, _BY_NAME, n=1, cutoff=0.5)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise NotFoundError(f"no model recipe is named {name!r}", f"{guess}recipes: {', '.join(_BY_NAME)}")
    return recipe
