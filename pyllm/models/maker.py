"""Makes tiny models."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pyllm.errors import ConfigError
from pyllm.models import families, recipe, writer

if TYPE_CHECKING:
    from pyllm.models.recipe import Family, Recipe

MAX_WIDTH = 64
MAX_LAYERS = 64


def make(
    name: str,
    out: str | Path | None = None,
    *,
    family: str = "random",
    seed: int = 0,
    error_rate: float = 0.0,
    width: int = 1,
    layers: int | None = None,
) -> Path:
    """Write one tiny model and return where it is.

    Args:
        name: a recipe, see :func:`pyllm.models.recipes`.
        out: the file; None for one in pyllm's cache, named by everything that decides its content, and reused when it
            is there.
        family: ``"random"`` or ``"successor"``.
        seed: of the weights, or of the successor function. A target and its drafter need the same one.
        error_rate: share of the tokens, 0 … 1, after which a successor drafter is wrong. Files without a drafter
            ignore it.
        width: multiplies the stream's and the feed-forward width. A drafter needs its target's.
        layers: blocks of the target, or of the drafter, instead of the recipe's own number. A block drafter reads fixed
            layers of its target, which therefore must not have fewer than its recipe. A successor block drafter has as
            many positions in its block as it has layers.

    Raises:
        NotFoundError: no such recipe.
        ConfigError: a value outside its limits, or layers that the architecture's pattern does not allow.
        OSError: the file cannot be written.

    """
    chosen = recipe.find(name)
    _check(chosen, family, seed=seed, error_rate=error_rate, width=width, layers=layers)
    known = cast("Family", family)
    path = Path(out) if out is not None else _cached(chosen, known, seed=seed, error_rate=error_rate, width=width, layers=layers)
    if out is None and path.exists():
        return path
    blueprint = chosen.blueprint(known, width, layers)
    weights = families.fill(blueprint, known, seed, error_rate)
    writer.write(path, f"{name} ({family}, seed {seed})", blueprint, weights, half=known == "successor")
    return path


def _check(chosen: Recipe, family: str, *, seed: int, error_rate: float, width: int, layers: int | None) -> None:
    if family not in recipe.BOTH:
        raise ConfigError(f"family is {family!r}, not one of {', '.join(recipe.BOTH)}", "leave it out for 'random'")
    if family not in chosen.families:
        raise ConfigError(f"{chosen.name} does not come in the {family} family", f"it comes in: {', '.join(chosen.families)}")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ConfigError(f"seed is {seed!r}, outside 0 … {2**32 - 1}", "any whole number in that range will do")
    if not isinstance(error_rate, (int, float)) or not math.isfinite(error_rate) or not 0.0 <= error_rate <= 1.0:
        raise ConfigError(f"error_rate is {error_rate!r}, outside 0 … 1", "it is the share of tokens after which the drafter is wrong")
    if error_rate and family != "successor":
        raise ConfigError(
            f"error_rate is {error_rate!r}, but the {family} family has none",
            "ask for family 'successor', or leave it out",
        )
    for label, value, limit in (("width", width, MAX_WIDTH), ("layers", layers, MAX_LAYERS)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
            raise ConfigError(f"{label} is {value!r}, outside 1 … {limit}", f"leave it out for {chosen.name}'s own")


def _cached(chosen: Recipe, family: Family, *, seed: int, error_rate: float, width: int, layers: int | None) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyllm" / "models"
    key = hashlib.sha256(repr((chosen.name, family, seed, float(error_rate), width, layers)).encode())
    # the code that draws the weights decides the content as much as the arguments do
    root = Path(__file__).parent
    for source in sorted(root.rglob("*.py")):
        key.update(source.relative_to(root).as_posix().encode())
        key.update(source.read_bytes())
    return base / f"{chosen.name}-{family}-{key.hexdigest()[:16]}.gguf"
