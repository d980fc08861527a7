"""A checkpoint as a file: what it says of the engine that wrote it, and what an engine asks of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from pyllm._ffi import CheckpointFile, upstream_commit, write_checkpoint_file
from pyllm._version import __version__
from pyllm.checkpoints.checkpoint import Checkpoint, State
from pyllm.errors import StateError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from pyllm._ffi import Blob

#: Facts that have to be equal for a state to fit; the others are for people.
BINDING = ("writer", "model", "architecture", "kv_types", "drafters", "upstream")

WRITER = "pyllm engine"


def facts_of(*, model: str, architecture: str, kv_types: tuple[str, str], drafters: str) -> dict[str, str]:
    """What binds a checkpoint to an engine: fingerprints of the model and of each drafter, and how the cache is kept."""
    return {
        "writer": WRITER,
        "model": model,
        "architecture": architecture,
        "kv_types": "/".join(kv_types),
        "drafters": drafters,
        "upstream": upstream_commit(),
    }


def write(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write a checkpoint with its facts: the old file, or the whole new one, is there at any moment.

    Raises:
        LimitError: the disk is full, or the folder cannot be written.
        StateError: it does not say what it belongs to, and no engine would take it back.
    """
    missing = [name for name in BINDING if name not in checkpoint.facts]
    if missing:
        raise StateError(f"the checkpoint does not say its {', '.join(missing)}", "save one that LLM.checkpoint or LLM.suspend has made")
    layout = {
        "n_tokens": len(checkpoint.tokens),
        "first": checkpoint.state.first,
        "exact": checkpoint.exact,
        "marks": [{"n_tokens": mark.n_tokens, "first": mark.first} for mark in checkpoint.marks],
    }
    sections: dict[str, Blob] = {
        "layout": json.dumps(layout).encode(),
        "tokens": np.asarray(checkpoint.tokens, "<i4").tobytes(),
        "target": checkpoint.state.target,
        "drafter": checkpoint.state.drafter,
        "sampler": checkpoint.sampler,
        "generation": checkpoint.generation,
    }
    for place, mark in enumerate(checkpoint.marks):
        sections[f"mark.{place}.target"] = mark.target
        sections[f"mark.{place}.drafter"] = mark.drafter
    about = {"pyllm": __version__, "n_tokens": str(len(checkpoint.tokens)), "marks": str(len(checkpoint.marks))}
    write_checkpoint_file(path, checkpoint.facts | about, sections)


def read(path: str | os.PathLike[str], facts: Mapping[str, str]) -> Checkpoint:
    """Read a checkpoint that an engine with ``facts`` can take over.

    Raises:
        NotFoundError: there is no such file.
        StateError: it is damaged, of a newer format, or of an engine whose facts differ; the message names each.
    """
    with CheckpointFile(path) as file:
        check(f"`{path}`", facts, file.facts)
        file.verify()
        layout: dict[str, Any] = json.loads(bytes(file.read("layout")))
        tokens = [int(token) for token in np.frombuffer(file.read("tokens"), "<i4")]
        if len(tokens) != layout["n_tokens"]:
            raise StateError(f"`{path}` announces {layout['n_tokens']} tokens and holds {len(tokens)}", "it was not written by this version of pyllm")
        state = State(len(tokens), file.read("target"), file.read("drafter"), layout["first"])
        marks = [
            State(mark["n_tokens"], file.read(f"mark.{place}.target"), file.read(f"mark.{place}.drafter"), mark["first"], partial=True)
            for place, mark in enumerate(layout["marks"])
        ]
        return Checkpoint(tokens, state, marks, layout["exact"], bytes(file.read("generation")), bytes(file.read("sampler")), dict(facts))


def check(what: str, wanted: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Refuse a file, or a checkpoint in memory, whose binding facts differ.

    Raises:
        StateError: with every fact that differs, and both values.
    """
    differing = [f"{name} is `{found.get(name, 'not said')}`, here it is `{wanted[name]}`" for name in BINDING if found.get(name) != wanted[name]]
    if differing:
        raise StateError(
            f"{what} does not belong to this engine: {'; '.join(differing)}", "restore it with the model, drafter and KV types that it was saved with"
        )
