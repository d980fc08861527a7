"""The model files of a scenario."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from pyllm.errors import ModelFormatError, NotFoundError

if TYPE_CHECKING:
    from pathlib import Path

    from pyllm.repro.scenario import ModelFile, Projector

_NORMAL = 1  # llama_token_type: an ordinary piece of text


def model_path(model: ModelFile, beside: Path) -> Path:
    """The GGUF file; a recipe's is made now when it is not in the cache. A relative ``path`` starts at ``beside``.

    Raises:
        NotFoundError: there is no such file.
    """
    if model.recipe is not None:
        from pyllm import models  # noqa: PLC0415 - numpy and gguf are slow to load

        return models.make(
            model.recipe,
            family=model.family,
            seed=model.seed,
            error_rate=model.error_rate,
            nan_after=model.nan_after,
            width=model.width,
            layers=model.layers,
        )
    path = beside / (model.path or "")
    if not path.is_file():
        raise NotFoundError(f"there is no model `{path}`", "a scenario's path starts at the scenario's folder")
    return path


def projector_path(projector: Projector, model: Path, out: Path) -> Path:
    """Write the image encoder of ``model`` to ``out``, and return that.

    Raises:
        ConfigError: a model without token embeddings.
    """
    from pyllm import models  # noqa: PLC0415 - numpy and gguf are slow to load

    return models.projector(model, out, seed=projector.seed, strength=projector.strength)


@cache
def text_tokens(path: Path) -> tuple[int, ...]:
    """Token numbers of a model's ordinary pieces of text: what random prompts are drawn from.

    Raises:
        ModelFormatError: the file is not GGUF, or has no vocabulary.
    """
    from gguf import GGUFReader  # noqa: PLC0415 - numpy and gguf are slow to load

    try:
        field = GGUFReader(path).get_field("tokenizer.ggml.token_type")
    except ValueError as failure:
        raise ModelFormatError(f"`{path}` is not a GGUF model: {failure}", "give a GGUF file") from failure
    kinds = [] if field is None else field.contents()
    tokens = tuple(number for number, kind in enumerate(kinds) if kind == _NORMAL)
    if not tokens:
        raise ModelFormatError(f"`{path}` has no vocabulary with ordinary text tokens", "use `text` or `tokens` prompts, or another model")
    return tokens
