"""``pyllm run``: one prompt, once."""

from __future__ import annotations

import sys
from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyllm.cli import console, options
from pyllm.errors import ConfigError

if TYPE_CHECKING:
    from pyllm.engine.result import Completion

app = typer.Typer(add_completion=False)

_SAMPLING = "Sampling"
_OUTPUT = "Output"


@app.command()
def run(  # noqa: PLR0917 - options are given by name
    model: Annotated[Path, typer.Argument(help="GGUF file of the model.")],
    prompt: Annotated[str | None, typer.Argument(help="The prompt; `-` reads it from stdin.")] = None,
    draft: options.Draft = None,
    spec: options.Spec = None,
    n_max: options.Depth = None,
    slots: options.Slots = 1,
    ctx: options.Context = 0,
    type_k: options.KeyType = "f16",
    type_v: options.ValueType = "f16",
    force_route: options.ForceRoute = None,
    tuning: options.Tuning = None,
    allow_cpu_attention: options.AllowCpuAttention = False,
    n: Annotated[
        int,
        typer.Option("-n", "--n-predict", help="Tokens to generate at most.", rich_help_panel=_SAMPLING, metavar="N"),
    ] = 128,
    temperature: Annotated[float, typer.Option("--temp", help="Temperature; 0 is greedy.", rich_help_panel=_SAMPLING)] = 0.8,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampler; random without.", rich_help_panel=_SAMPLING)] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="Stop at this text; may be given again.", rich_help_panel=_SAMPLING, metavar="TEXT"),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Send the prompt as a user's message, through the model's chat template.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Print counts and speed to stderr.", rich_help_panel=_OUTPUT)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in OpenAI's shape, when it is complete.", rich_help_panel=_OUTPUT)] = False,
) -> None:
    """Generate once, and stream the text to stdout."""
    import pyllm  # noqa: PLC0415 - loads the native library

    text = _prompt(prompt)
    with console.spinner(f"loading {model.name}"):
        llm = pyllm.LLM(
            model,
            draft=draft,
            spec=options.speculation(spec, n_max),
            slots=slots,
            ctx=ctx,
            kv_types=(type_k, type_v),
            force_route=force_route,
            tuning=tuning,
            allow_cpu_attention=allow_cpu_attention,
        )
    with llm:
        if tuning is not None:
            console.say(f"tuning    {llm.stats()['tuning']}")
        content: Any = llm.apply_template([{"role": "user", "content": text}]) if chat else text
        request = llm.submit(content, max_tokens=n, temperature=temperature, seed=seed, stop=tuple(stop or ()))
        try:
            if not as_json:
                for chunk in request:
                    print(chunk.text, end="", flush=True)
                print()
            done = request.result()
        finally:
            request.cancel()
    if as_json:
        console.print_json(done.to_openai(chat=chat) | {"tokens": list(done.tokens)})
    if stats:
        console.say(_stats(done))


def _prompt(given: str | None) -> str:
    if given is None:
        raise ConfigError("there is no prompt", "give it after the model, or `-` to read it from stdin")
    return sys.stdin.read() if given == "-" else given


def _stats(done: Completion) -> str:
    usage, draft = done.usage, done.draft
    speed = usage.completion_tokens / done.seconds if done.seconds else 0.0
    parts = [
        f"{usage.prompt_tokens} prompt tokens",
        f"{usage.completion_tokens} generated in {done.seconds:.2f} s ({speed:.1f} tokens/s)",
        f"finish {done.finish_reason}",
    ]
    if draft.drafted:
        parts.append(f"{draft.accepted} of {draft.drafted} drafted tokens accepted in {draft.steps} steps")
    return ", ".join(parts)
