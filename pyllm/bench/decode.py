"""Tokens per second of the engine and of ``pyllm-server``: same model, same prompts, same slots, in turn."""

from __future__ import annotations

import concurrent.futures
import os
import platform
import statistics
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pyllm.engine import LLM
from pyllm.errors import ConfigError
from pyllm.server.client import ServerClient
from pyllm.server.process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from pyllm.config import EngineConfig
    from pyllm.engine.result import Chunk
    from pyllm.server.client import ServerChunk


@dataclass(frozen=True)
class Workload:
    """``slots`` prompts of ``prompt_tokens`` tokens at once, ``max_tokens`` generated for each, greedy, ``rounds`` times on each side.

    ``decoding`` leaves the prompts out: they stay the same, so that both sides may reuse what they hold of them, and a rate counts what comes
    after each request's first tokens.
    """

    slots: int
    prompt_tokens: int
    max_tokens: int
    rounds: int
    decoding: bool = False


@dataclass(frozen=True)
class Measurement:
    """Generated tokens per second over all slots, prompt included in the time unless only decoding is timed: median, lowest and highest round.

    ``ratio`` is the median over rounds of engine over server, each round against its own: the machine's speed drifts by more between
    rounds than the two sides differ. ``same_tokens`` says whether both sides wrote the same in every round; ``depth`` is that of the drafts.
    """

    speculation: bool
    depth: int
    slots: int
    engine: float
    engine_range: tuple[float, float]
    server: float
    server_range: tuple[float, float]
    ratio: float
    ratio_range: tuple[float, float]
    step_ms: float
    acceptance: float
    same_tokens: bool

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def prompts(workload: Workload, n_vocab: int, salt: int) -> list[list[int]]:
    """Prompts that share no prefix with each other or with those of another ``salt``, so that nothing is cached. Tokens over 258 are text."""
    low, high = (259, n_vocab) if n_vocab > 300 else (1, n_vocab)
    span = high - low
    return [
        [low + ((salt + 1) * 7919 + slot * 104729 + place * place * 31 + place * 17) % span for place in range(workload.prompt_tokens)]
        for slot in range(workload.slots)
    ]


@dataclass(frozen=True)
class _Piece:
    at: float
    tokens: tuple[int, ...]


def _rate(streams: list[list[_Piece]]) -> tuple[float, list[list[int]]]:
    """Tokens per second after the first piece of each stream, and all tokens."""
    if any(len(pieces) < 2 for pieces in streams):
        raise ConfigError("a request wrote all its tokens at once: nothing is left to time", "generate more: -n 64")
    rates = [sum(len(piece.tokens) for piece in pieces[1:]) / (pieces[-1].at - pieces[0].at) for pieces in streams]
    return sum(rates), [[token for piece in pieces for token in piece.tokens] for pieces in streams]


def _pieces(chunks: Iterable[Chunk | ServerChunk]) -> list[_Piece]:
    return [_Piece(time.perf_counter(), chunk.tokens) for chunk in chunks if chunk.tokens]


def _time_engine(llm: LLM, workload: Workload, salt: int) -> tuple[float, list[list[int]]]:
    texts = prompts(workload, llm.model.info.n_vocab, salt)
    if workload.decoding:
        requests = [llm.submit(text, max_tokens=workload.max_tokens, temperature=0.0, ignore_eos=True) for text in texts]
        with concurrent.futures.ThreadPoolExecutor(workload.slots) as pool:
            return _rate(list(pool.map(_pieces, requests)))
    begin = time.perf_counter()
    results = llm.generate(texts, max_tokens=workload.max_tokens, temperature=0.0, ignore_eos=True)
    seconds = time.perf_counter() - begin
    return sum(len(result.tokens) for result in results) / seconds, [list(result.tokens) for result in results]


def _time_server(client: ServerClient, workload: Workload, salt: int, n_vocab: int) -> tuple[float, list[list[int]]]:
    texts = prompts(workload, n_vocab, salt)
    with concurrent.futures.ThreadPoolExecutor(workload.slots) as pool:
        if workload.decoding:
            return _rate(list(pool.map(lambda text: _pieces(client.stream(text, n=workload.max_tokens)), texts)))
        begin = time.perf_counter()
        answers = list(pool.map(lambda text: client.completion(text, n=workload.max_tokens, cache=False), texts))
        seconds = time.perf_counter() - begin
    tokens = [list(answer.tokens) for answer in answers]
    return sum(len(row) for row in tokens) / seconds, tokens


def server_arguments(config: EngineConfig, depth: int) -> list[str]:
    """The flags of llama-server that mean the same as ``config``; ``depth`` is the engine's, since the defaults differ."""
    flags = [
        *("-m", str(config.model), "-np", str(config.slots), "-c", str(config.ctx), "-b", str(config.batch), "-ub", str(config.ubatch)),
        *("-ctk", config.kv_types[0], "-ctv", config.kv_types[1], "-ngl", "999" if config.gpu_layers < 0 else str(config.gpu_layers)),
        *("--kv-unified" if config.unified else "--no-kv-unified", "--cache-ram", "0", "--no-webui", "--ignore-eos", "-fa", config.flash_attn),
    ]
    if config.threads:
        flags += ["-t", str(config.threads)]
    if config.spec is not None:
        flags += ["--spec-type", ",".join(config.spec.types)]
        if any(name.startswith("draft") for name in config.spec.types):
            flags += ["--spec-draft-n-max", str(depth)]
        if config.draft:
            flags += ["-md", str(config.draft[0])]
    return flags


def measure(config: EngineConfig, workload: Workload, binary: Path, progress: Callable[[str], None]) -> Measurement:
    """Run the workload on the engine and on ``binary``, round by round in turn.

    Raises:
        ConfigError: a workload that does not fit the context, or is too short to be timed.
    """
    per_slot = config.ctx // config.slots
    if config.ctx and workload.prompt_tokens + workload.max_tokens + 2 > per_slot:
        raise ConfigError(
            f"{workload.prompt_tokens} prompt and {workload.max_tokens} generated tokens do not fit a slot of {per_slot}",
            f"use ctx {(workload.prompt_tokens + workload.max_tokens + 2) * config.slots} or more",
        )
    engine: list[float] = []
    server: list[float] = []
    same = True
    with (
        LLM(**config.model_dump()) as llm,
        ServerProcess(binary, server_arguments(config, llm.stats()["draft"]["depth"])) as process,
        ServerClient(process.url) as client,
    ):
        n_vocab = llm.model.info.n_vocab
        _time_engine(llm, workload, salt=-1)
        _time_server(client, workload, -1, n_vocab)
        before = llm.stats()
        for number in range(workload.rounds):
            progress(f"{workload.slots} slots, round {number + 1} of {workload.rounds}")
            # Who goes first alternates: a machine that slows down over a round would favour one side.
            salt = -1 if workload.decoding else number
            for side in ("engine", "server") if number % 2 == 0 else ("server", "engine"):
                if side == "engine":
                    rate, ours = _time_engine(llm, workload, salt)
                    engine.append(rate)
                else:
                    rate, theirs = _time_server(client, workload, salt, n_vocab)
                    server.append(rate)
            same = same and ours == theirs
        after = llm.stats()
    steps = after["steps"] - before["steps"]
    drafted = after["draft"]["drafted"] - before["draft"]["drafted"]
    accepted = after["draft"]["accepted"] - before["draft"]["accepted"]
    tokens = workload.slots * workload.max_tokens * workload.rounds
    ratios = [ours / theirs for ours, theirs in zip(engine, server, strict=True)]
    seconds = sum(workload.slots * workload.max_tokens / rate for rate in engine)
    return Measurement(
        speculation=config.spec is not None,
        depth=after["draft"]["depth"],
        slots=workload.slots,
        engine=statistics.median(engine),
        engine_range=(min(engine), max(engine)),
        server=statistics.median(server),
        server_range=(min(server), max(server)),
        ratio=statistics.median(ratios),
        ratio_range=(min(ratios), max(ratios)),
        step_ms=1000 * seconds / steps if tokens else 0.0,
        acceptance=accepted / drafted if drafted else 0.0,
        same_tokens=same,
    )


def machine() -> dict[str, str]:
    """What a measurement belongs to."""
    from pyllm._ffi import build_info, devices, upstream_commit  # noqa: PLC0415 - only where the native library is needed
    from pyllm._version import __version__  # noqa: PLC0415

    return {
        "pyllm": __version__,
        "upstream": upstream_commit(),
        "device": ", ".join(f"{device.name}: {device.description}" for device in devices()),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "build": build_info(),
    }
