"""The oracle of greedy text: equal, or apart only where the plain run's two best logits all but tie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyllm

#: Two best logits closer than this may change places with the batch. Rounding moves the logits of the recipes by up to 0.006 over an f16 cache; into
#: a quantised one it can move a value by a whole step.
TOLERANCES = {"f16": 0.02, "q8_0": 0.05, "q4_0": 0.15}

#: Add these to a plain run's parameters: its margins are known then.
MARGINS: dict[str, Any] = {"logprobs": 2}


def first_difference(plain: pyllm.Completion, tokens: tuple[int, ...]) -> int | None:
    """Where ``tokens`` leave a plain run's, None where they do not."""
    if plain.tokens == tokens:
        return None
    length = min(len(plain.tokens), len(tokens))
    return next((place for place in range(length) if plain.tokens[place] != tokens[place]), length)


def assert_same(plain: pyllm.Completion, tokens: tuple[int, ...], tolerance: float = TOLERANCES["f16"]) -> bool:
    """Fail unless ``tokens`` are the plain run's, or leave it at a near tie. Whether they are all the same."""
    place = first_difference(plain, tokens)
    if place is None:
        return True
    assert place < min(len(plain.tokens), len(tokens)), f"{len(tokens)} tokens instead of {len(plain.tokens)}"
    (best, first), (other, second) = plain.logprobs[place].top[:2]
    assert tokens[place] in {best, other}, f"token {tokens[place]} at {place} is neither of the two best, {best} and {other}"
    assert first - second < tolerance, f"at {place}: {tokens[place]} instead of {plain.tokens[place]}, which leads by {first - second:.3f}"
    return False
