"""Tiny GGUF models: real architectures, head dims and layer kinds, tiny widths, written in well under a second.

Some recipes also come in sizes for measurements, up to the shape of a real model, written in minutes at most.

    >>> from pyllm import models
    >>> target = models.make("gemma4")
    >>> drafter = models.make("gemma4-assistant")

Two families of weights serve two questions. *random*: is the context what it should be? Greedy text depends on it,
and any row of another sequence changes the text. *successor*: is the drafter fed what it should be? The next token is
a known function of the last, a drafter is wrong after a chosen share of tokens, and acceptance is predictable to the
token. Any target can be given eyes: :func:`projector` writes an image encoder for it.
"""

from __future__ import annotations

from pyllm.models.maker import make
from pyllm.models.recipe import Recipe, recipes
from pyllm.models.successor import drafter_table, expected_acceptance, successor
from pyllm.models.vision import projector

__all__ = ["Recipe", "drafter_table", "expected_acceptance", "make", "projector", "recipes", "successor"]
