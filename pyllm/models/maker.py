"""Makes tiny models, and some of a real one's size."""

from __future__ import annotations

import hashlib
import os
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pyllm.errors import ConfigError
from pyllm.models import families, recipe, writer
from pyllm.models.families.poison import Poison
from pyllm.models.successor import rates
from pyllm.models.vocabulary import N_VOCAB

if TYPE_CHECKING:
    from pyllm.models.families.poison import NanAfter
    from pyllm.models.recipe import Recipe
    from pyllm.models.successor import ErrorRate, Rates

MAX_WIDTH = 64
MAX_LAYERS = 64
MAX_VOCAB = 1 << 18


@dataclass(frozen=True)
class _Choice:
    """Everything that decides the content besides the code. See :func:`make`."""

    name: str
    family: recipe.Family
    seed: int
    error_rates: Rates
    nan_after: NanAfter | None
    width: int
    layers: int | None
    size: str
    n_vocab: int | None
    tensor_type: str


def make(
    name: str,
    out: str | Path | None = None,
    *,
    family: str = "random",
    seed: int = 0,
    error_rate: ErrorRate = 0.0,
    nan_after: NanAfter | None = None,
    width: int = 1,
    layers: int | None = None,
    size: str = recipe.TINY,
    n_vocab: int | None = None,
    tensor_type: str = "f16",
) -> Path:
    """Write one model and return where it is.

    Args:
        name: a recipe, see :func:`pyllm.models.recipes`.
        out: the file; None for one in pyllm's cache, named by everything that decides its content, and reused when it
            is there.
        family: ``"random"`` or ``"successor"``.
        seed: of the weights, or of the successor function. A target and its drafter need the same one.
        error_rate: share of the tokens, 0 … 1, after which a successor drafter is wrong. Several numbers are the
            shares at the first, second … place of a draft, for block drafters and chained heads; places beyond the
            last have the last one's. Files without a drafter ignore it.
        nan_after: ``"always"``, or the token after which a drafter's logits are NaN, which only the successor family
            knows. Files without a drafter ignore it.
        width: multiplies the stream's and the feed-forward width. A drafter needs its target's.
        layers: blocks of the target, or of the drafter, instead of the recipe's own number. A block drafter reads fixed
            layers of its target, which therefore must not have fewer than its recipe.
        size: ``"tiny"``; ``"60m"``, of about 60 million weights; ``"8b"``, of a real model's shape; ``"slice"``, a real
            model's widths, heads and trained context in fewer layers. A drafter in a file of its own needs its target's,
            where it has one. Layers of the larger ones are noise, alike for every seed.
        n_vocab: tokens, those beyond the recipe's own unused. A drafter needs its target's.
        tensor_type: of the larger sizes' layers: ``"f16"``, ``"q8_0"`` or ``"q4_0"``. Block drafters stay in F16.

    Raises:
        NotFoundError: no such recipe.
        ConfigError: a value outside its limits, or layers that the architecture's pattern does not allow.
        OSError: the file cannot be written.

    """
    chosen = recipe.find(name)
    known = rates(error_rate)
    choice = _Choice(name, cast("recipe.Family", family), seed, known, nan_after, width, layers, size, n_vocab, tensor_type)
    _check(chosen, choice)
    _check_drafter(chosen, choice)
    _check_size(chosen, choice)
    path = Path(out) if out is not None else _cached(choice)
    if out is None and path.exists():
        return path
    blueprint = chosen.blueprint(choice.family, width, layers, size=size)
    if n_vocab is not None:
        blueprint.pad(n_vocab)
    if nan_after is not None:
        Poison(blueprint, always=nan_after == "always").mark(blueprint)
    weights = families.fill(blueprint, choice.family, seed, known, nan_after)
    # the exact sizes of the successor family survive F16, the random family's margins are those of F32
    matrices = "f32" if family == "random" else tensor_type if blueprint.dense else "f16"
    writer.write(path, f"{name} ({family}, seed {seed})", blueprint, weights, matrices)
    return path


def _check(chosen: Recipe, choice: _Choice) -> None:
    family, seed = choice.family, choice.seed
    if family not in recipe.BOTH:
        raise ConfigError(f"family is {family!r}, not one of {', '.join(recipe.BOTH)}", "leave it out for 'random'")
    if family not in chosen.families:
        raise ConfigError(f"{chosen.name} does not come in the {family} family", f"it comes in: {', '.join(chosen.families)}")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ConfigError(f"seed is {seed!r}, outside 0 … {2**32 - 1}", "any whole number in that range will do")
    for label, value, limit in (("width", choice.width, MAX_WIDTH), ("layers", choice.layers, MAX_LAYERS), ("n_vocab", choice.n_vocab, MAX_VOCAB)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
            raise ConfigError(f"{label} is {value!r}, outside 1 … {limit}", f"leave it out for {chosen.name}'s own")


def _check_drafter(chosen: Recipe, choice: _Choice) -> None:
    given, after = choice.error_rates, choice.nan_after
    if any(given) and choice.family != "successor":
        raise ConfigError(
            f"error_rate is {', '.join(map(str, given))}, but the {choice.family} family has none",
            "ask for family 'successor', or leave it out",
        )
    if len(given) > 1 and chosen.has_drafter and len(given) > chosen.n_positions:
        if chosen.n_positions == 1:
            raise ConfigError(
                f"error_rate has {len(given)} values, but {chosen.name} drafts every token with the same head, which does not know the place in a draft",
                "give one number, or use a block drafter (…-dflash) or chained heads (step35)",
            )
        raise ConfigError(f"error_rate has {len(given)} values, but {chosen.name} drafts {chosen.n_positions} tokens at most", "give fewer")
    if after is None or after == "always":
        return
    if isinstance(after, bool) or not isinstance(after, int) or not 0 <= after < N_VOCAB:
        raise ConfigError(
            f"nan_after is {after!r}, neither 'always' nor a token 0 … {N_VOCAB - 1}", "pyllm.models.vocabulary.piece_id gives a character's token"
        )
    if choice.family != "successor":
        raise ConfigError(
            f"nan_after is {after}, but a drafter of the {choice.family} family cannot tell tokens apart",
            "ask for family 'successor', or for 'always'",
        )


def _check_size(chosen: Recipe, choice: _Choice) -> None:
    if choice.size not in chosen.sizes:
        raise ConfigError(f"{chosen.name} has no size {choice.size!r}", f"it comes in: {', '.join(chosen.sizes)}")
    if choice.size != recipe.TINY and choice.family != "successor":
        raise ConfigError(f"size {choice.size!r} does not come in the {choice.family} family", "ask for family 'successor'")
    if choice.tensor_type not in writer.TYPES:
        raise ConfigError(f"tensor_type is {choice.tensor_type!r}, not one of {', '.join(writer.TYPES)}", "leave it out for 'f16'")
    if choice.tensor_type != "f16" and choice.size == recipe.TINY:
        raise ConfigError(f"tensor_type is {choice.tensor_type!r}, but a tiny model is not quantised", f"{chosen.name} comes in: {', '.join(chosen.sizes)}")


def _cached(choice: _Choice) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyllm" / "models"
    key = hashlib.sha256(repr(astuple(choice)).encode())
    # the code that draws the weights decides the content as much as the arguments do
    root = Path(__file__).parent
    for source in sorted(root.rglob("*.py")):
        key.update(source.relative_to(root).as_posix().encode())
        key.update(source.read_bytes())
    return base / f"{choice.name}-{choice.family}-{key.hexdigest()[:16]}.gguf"
