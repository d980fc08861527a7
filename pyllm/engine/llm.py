"""The engine as a Python object."""

from __future__ import annotations

import os  # noqa: TC003 - named in a signature that tools resolve
from dataclasses import asdict
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from pyllm._ffi import check_grammar, enable_crash_report, grammar_from_json_schema, route_counts
from pyllm.config import EngineConfig, SamplingParams, SpecConfig, check_choice, parse
from pyllm.engine import chat, conversations, taps
from pyllm.engine.request import Request
from pyllm.engine.worker import Worker
from pyllm.errors import ClosedError, InvalidArgumentError, LimitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from typing_extensions import Self

    from pyllm._ffi import AttentionNode, Model
    from pyllm.checkpoints import Checkpoint
    from pyllm.engine.core import Core
    from pyllm.engine.result import Chunk, Completion
    from pyllm.engine.scheduler import Scheduler
    from pyllm.engine.taps import HiddenStates
    from pyllm.slots import SlotInfo

#: Text, tokens, or the messages of a conversation, which go through the model's chat template.
Prompt = str | list[int] | list[dict[str, Any]]
T = TypeVar("T")


class LLM:
    """A model with its slots, and a drafter when ``spec`` says so. A context manager.

    ``model`` and ``draft`` are GGUF files. ``spec`` is a drafter type (``"mtp"``, ``"dflash"``, ``"ngram"``, or several with
    commas), vLLM's ``speculative_config`` dict (its ``model`` becomes ``draft``), or a :class:`~pyllm.config.SpecConfig`.
    ``slots`` requests run at once; ``ctx`` KV cells are shared by all of them. The other settings are those of
    :class:`~pyllm.config.EngineConfig`.

    Raises:
        ConfigError: settings that are unknown or cannot work together.
        NotFoundError, ModelFormatError: a file that is missing or damaged.
        IncompatibleError, UnsupportedError: a drafter that does not fit the target.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        draft: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        spec: SpecConfig | str | dict[str, Any] | None = None,
        slots: int = 1,
        ctx: int = 0,
        kv_types: str | tuple[str, str] = "f16",
        **settings: Any,
    ) -> None:
        if isinstance(spec, dict) and draft is None and spec.get("model"):
            draft = Path(str(spec["model"]))
        values = {
            "model": Path(model),
            "draft": draft,
            "spec": SpecConfig.of(spec),
            "slots": slots,
            "ctx": ctx,
            "kv_types": kv_types,
        }
        self.config: EngineConfig = parse(EngineConfig, values | settings)
        if self.config.crash_reports is not None:
            enable_crash_report(self.config.crash_reports, repr(self.config))
        self._worker = Worker(self.config)
        self._core: Core | None = self._worker.core

    @property
    def model(self) -> Model:
        """The target: its header's facts and its vocabulary."""
        return self._open().model

    @overload
    def generate(self, prompts: Prompt, params: SamplingParams | None = None, **overrides: Any) -> Completion: ...
    @overload
    def generate(self, prompts: Sequence[Prompt], params: SamplingParams | None = None, **overrides: Any) -> list[Completion]: ...
    def generate(self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | None = None, **overrides: Any) -> Completion | list[Completion]:
        """Continue one prompt, or several at once over the slots.

        A prompt is text, a list of tokens, or a list of messages (dicts with ``role`` and ``content``), whose last turn then gets a checkpoint in front
        of it. ``overrides`` are fields of :class:`~pyllm.config.SamplingParams`. Ctrl-C cancels what runs and is raised on.

        Raises:
            LimitError: a prompt that does not fit a slot's context.
            ConfigError: an unknown or impossible sampling parameter.
            NotFoundError: messages, and the model carries no chat template.
            InvalidArgumentError: malformed messages, or the template refuses them.
        """
        single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], Integral | dict))
        listed: Sequence[Prompt] = [prompts] if single else prompts  # type: ignore[list-item, assignment]
        requests = [self._request(prompt, params, overrides) for prompt in listed]
        self._worker.submit(*requests)
        try:
            results = [request.result() for request in requests]
        except BaseException:
            for request in requests:
                request.cancel()
            raise
        return results[0] if single else results

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **overrides: Any) -> Iterator[Chunk]:
        """Continue one prompt, or answer messages, piece by piece. Leaving the loop early cancels the request."""
        return iter(self.submit(prompt, params, **overrides))

    def chat(self, messages: Sequence[dict[str, Any]], params: SamplingParams | None = None, **overrides: Any) -> Completion:
        """Answer a conversation, through the model's jinja template: ``generate`` of messages. ``stream`` and ``submit`` take messages as well.

        Raises:
            NotFoundError: the model carries no chat template.
            InvalidArgumentError: malformed messages, or the template refuses them.
        """
        tokens, turns = self._conversation(messages, params)
        return self.generate(tokens, params, **(turns | overrides))

    def apply_template(self, messages: Sequence[dict[str, Any]], **variables: Any) -> list[int]:
        """Tokens of a conversation with the opening of the assistant's turn; ``variables`` go to the template."""
        return chat.render(self.model, messages, **variables)

    def submit(self, prompt: Prompt, params: SamplingParams | None = None, **overrides: Any) -> Request:
        """Start a request and return its handle: ``result()``, iteration over chunks, ``cancel()``."""
        request = self._request(prompt, params, overrides)
        self._worker.submit(request)
        return request

    def slots(self) -> list[SlotInfo]:
        """All slots: how many tokens each holds, whether it is free, held or cached, and where its checkpoints are."""
        return self._call(lambda scheduler: scheduler.pool.infos())

    def save(self, what: int | Checkpoint, path: str | os.PathLike[str]) -> None:
        """Write an idle slot's conversation, or a checkpoint, to a file: target, drafter and all that it needs to go on exactly.

        Raises:
            InvalidArgumentError: no such slot, an empty one, or one that runs a request.
            LimitError: the disk is full, or the folder cannot be written; an older file stays whole.
        """
        self._call(lambda scheduler: conversations.save(scheduler, what, path))

    def restore(self, what: Checkpoint | str | os.PathLike[str], slot: int | None = None) -> int:
        """Load a checkpoint, or the file of one, into an idle slot (an empty one, else the least recently used) and return its number.

        Raises:
            NotFoundError: there is no such file.
            StateError: it is damaged, or of another model, drafter, KV type or format; each difference is named.
            LimitError: it does not fit, or all slots are busy.
            ContextFullError: requests fill the cache that all slots share.
        """
        return self._call(lambda scheduler: conversations.restore(scheduler, what, slot))

    def checkpoint(self, slot: int) -> Checkpoint:
        """An idle slot's conversation, in memory."""
        return self._call(lambda scheduler: conversations.checkpoint(scheduler, slot))

    def fork(self, slot: int, to: int | None = None) -> int:
        """Let another idle slot hold the same conversation and return its number; nothing is computed."""
        return self._call(lambda scheduler: conversations.fork(scheduler, slot, to))

    def erase(self, slot: int) -> None:
        """Empty an idle slot."""
        self._call(lambda scheduler: conversations.erase(scheduler, slot))

    def suspend(self, request: Request) -> Checkpoint:
        """Take a running generation out; its ``result()`` is what there is, with ``suspended``. ``resume`` goes on as if nothing had been.

        Raises:
            InvalidArgumentError: it has no token yet, or has ended.
        """
        return self._call(lambda scheduler: conversations.suspend(scheduler, request))

    def resume(self, what: Checkpoint | str | os.PathLike[str]) -> Request:
        """Go on with a suspended generation, in this process or another: same tokens, same drafts.

        Raises:
            StateError: it holds no generation, is damaged, or belongs to another engine.
        """
        request = self._call(lambda scheduler: conversations.resumed(scheduler, what, self.config.model.stem))
        self._worker.submit(request)
        return request

    def hidden_states(self, prompt: str | list[int], layers: Sequence[int] = (), *, nextn: bool = False) -> HiddenStates:
        """What drafters are trained on: the input of each of ``layers`` and, with ``nextn``, the rows before the output head, for every token.

        Raises:
            UnsupportedError: the architecture does not hand them out.
            LimitError: the prompt does not fit a slot, or all slots are busy.
        """
        tokens = self._tokens(prompt)
        return self._call(lambda scheduler: taps.hidden_states(scheduler, tokens, layers, nextn=nextn))

    def _conversation(self, messages: Sequence[dict[str, Any]], params: SamplingParams | None) -> tuple[list[int], dict[str, Any]]:
        """Tokens of messages, and where the last of them begins, as a field of the sampling parameters unless ``params`` names turns."""
        tokens = self.apply_template(messages)
        turn = chat.last_turn(self.model, messages, tokens)
        named = params is not None and "turns" in params.model_fields_set
        return tokens, {"turns": (turn,)} if turn and not named else {}

    def _tokens(self, prompt: str | list[int]) -> list[int]:
        core = self._open()
        tokens = core.model.tokenize(prompt) if isinstance(prompt, str) else [int(token) if isinstance(token, Integral) else token for token in prompt]
        if not tokens:
            raise InvalidArgumentError("the prompt has no tokens", "give at least one")
        n_vocab = core.model.info.n_vocab
        for place, token in enumerate(tokens):
            if not isinstance(token, int) or not 0 <= token < n_vocab:
                raise InvalidArgumentError(
                    f"prompt token {token!r} at place {place} is not in [0, {n_vocab})", "give text, or tokens of this model's vocabulary"
                )
        if len(tokens) >= core.n_ctx_slot:
            raise LimitError(
                f"the prompt has {len(tokens)} tokens, a slot holds {core.n_ctx_slot} and needs room for one more",
                f"shorten it, or use ctx {self._ctx_for(len(tokens) + 1)} or more",
            )
        return tokens

    def _request(self, prompt: Prompt, params: SamplingParams | None, overrides: dict[str, Any]) -> Request:
        if not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], dict):
            prompt, turns = self._conversation(prompt, params)
            overrides = turns | overrides
        tokens = self._tokens(prompt)  # type: ignore[arg-type]
        check_choice(overrides, self.config.spec)
        if params is None or overrides:
            base = params.model_dump(exclude_unset=True) if params is not None else {}
            params = parse(SamplingParams, base | overrides)
        core = self._open()
        if params.draft_depth is not None and params.draft_depth > core.depth:
            raise LimitError(f"draft_depth {params.draft_depth} is over {core.depth}, what this engine drafts at most", "raise n_max in spec, or ask for less")
        if params.slot is not None and params.slot >= self.config.slots:
            raise LimitError(f"slot {params.slot} is not in [0, {self.config.slots})", "leave it out, or use more slots")
        grammar = params.grammar or ""
        if params.json_schema is not None:
            grammar = grammar_from_json_schema(params.json_schema)
        elif grammar:
            check_grammar(grammar)
        return Request(tokens, params, self.config.model.stem, grammar)

    def _ctx_for(self, tokens: int) -> int:
        return tokens if self.config.unified else tokens * self.config.slots

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Tokens of ``text``."""
        return self.model.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Text of ``tokens``; bytes that are not UTF-8 become U+FFFD."""
        return self.model.detokenize(list(tokens), special=special)

    def stats(self) -> dict[str, Any]:
        """Counts since the start: steps, tokens, drafts, and the slots as they are now.

        ``attention`` counts the attention nodes of the process by device, route and phase; on a GPU model, route ``cpu`` is what to look for.
        """

        def collect(scheduler: Scheduler) -> dict[str, Any]:
            admission = scheduler.admission
            draft = scheduler.drafting.stats()
            draft["failures"] += scheduler.failures.count
            return {
                "steps": scheduler.n_steps,
                "prompt_tokens": scheduler.n_prompt_tokens,
                "generated_tokens": scheduler.n_generated_tokens,
                "shifts": scheduler.n_shifts,
                "waiting": len(scheduler.waiting),
                "running": len(scheduler.running),
                "slots": scheduler.pool.counts(),
                "checkpoints": {
                    "stored": len(admission.store),
                    "bytes": admission.store.used + scheduler.pool.mark_bytes(),
                    "budget": admission.store.budget,
                    "evicted": admission.store.n_evicted,
                    "copied": admission.n_copied,
                    "restored": admission.n_restored,
                    "failed": admission.n_failed,
                },
                "draft": draft,
                "attention": [asdict(count) for count in route_counts()],
                "tuning": scheduler.core.tuning,
            }

        return self._call(collect)

    def attention_nodes(self) -> list[AttentionNode]:
        """Distinct attention nodes that the target has issued; needs ``trace=True``."""
        return self._call(lambda scheduler: scheduler.core.context.trace())

    def check_integrity(self) -> None:
        """Check that slots add up and that each slot's memory holds what it books.

        Raises:
            InternalError: with the numbers.
        """
        self._call(lambda scheduler: scheduler.check_integrity())

    def _call(self, function: Callable[[Scheduler], T]) -> T:
        self._open()
        return self._worker.call(function)

    def _open(self) -> Core:
        if self._core is None:
            raise ClosedError("this engine is closed", "make a new LLM, or close it later")
        return self._core

    def close(self) -> None:
        """End unfinished requests with ``ClosedError`` and free everything. Closing twice is silent."""
        if self._core is not None:
            self._core = None
            self._worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
