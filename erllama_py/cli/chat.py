"""``erllama chat``: conversations with a name, which go on after a restart.

What makes that quick is the cache's disk tier: the next process renders the same messages
to the same tokens, and finds their KV there.  The file of the conversation only says which
messages those are.
"""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from erllama_py.cli.loading import (
    loaded,
    lora_facts,
    lora_option,
    sampler_options,
    template_option,
    thinking_options,
)
from erllama_py.cli.output import age, columns, count, emit, json_option
from erllama_py.cli.reading import read_input

if TYPE_CHECKING:
    from erllama_py.cli.conversations import Conversation
    from erllama_py.cli.streaming import Reply
    from erllama_py.config import Lora

__all__ = ("chat",)

_DEFAULT_MODEL = "smollm2"
_DEFAULT_MAX = 512
_SHOWN_CHARS = 2000
"""Of each message of the last exchange."""


@click.command()
@click.argument("name", required=False)
@click.option("--model", help=f"Known name or GGUF file; at first {_DEFAULT_MODEL}.")
@click.option("--system", help="System message; of a new conversation only.")
@sampler_options(None)
@thinking_options
@template_option
@lora_option
@click.option("--no-lora", "bare", is_flag=True, help="Without adapters from now on.")
@click.option("--n-ctx", type=int, help="Context cells; 0: the training length, at most 4096.")
@click.option("--list", "listing", is_flag=True, help="List the conversations.")
@click.option("--rm", "removing", is_flag=True, help="Delete the conversation NAME.")
@json_option
def chat(
    name: str | None,
    model: str | None,
    system: str | None,
    limit: int | None,
    temperature: float | None,
    seed: int | None,
    thinking: str | None,
    thinking_budget: int | None,
    template: str | None,
    loras: list[Lora],
    bare: bool,
    n_ctx: int | None,
    listing: bool,
    removing: bool,
    as_json: bool,
) -> None:
    """Begin the conversation NAME, or go on with it.

    At a terminal it asks for messages until Ctrl-D; from a pipe it takes one.  Ctrl-C stops a
    reply and keeps what was said.  Options given are kept for the next time.
    """
    from erllama_py.cli import conversations

    if listing:
        _list(as_json)
        return
    if name is None:
        raise click.UsageError("give the conversation a NAME, or --list")
    if removing:
        conversations.remove(name)
        return
    if loras and bare:
        raise click.UsageError("--lora and --no-lora exclude each other")
    talk = conversations.load(name)
    if talk is not None and talk.messages and system is not None and system != talk.system:
        raise click.UsageError(f"{name} has a system message from its start; take another NAME")
    if talk is None:
        talk = conversations.Conversation(model=_DEFAULT_MODEL)
    if model is not None:
        talk.model = _lasting(model)
    if system is not None:
        talk.system = system
    if template is not None:
        talk.chat_template = template
    if loras or bare:
        talk.lora = loras
    given: dict[str, int | float | str | None] = {
        "max": limit,
        "temperature": temperature,
        "seed": seed,
        "n_ctx": n_ctx,
        "thinking": thinking,
        "thinking_budget": thinking_budget,
    }
    talk.options |= {key: value for key, value in given.items() if value is not None}
    if sys.stdin is not None and sys.stdin.isatty() and not as_json:
        _at_terminal(name, talk)
    else:
        _one_message(name, talk, read_input(), as_json=as_json)


def _list(as_json: bool) -> None:
    from erllama_py.cli.conversations import conversations

    found = conversations()
    if as_json:
        emit(
            [
                {"name": name, "damaged": True}
                if one is None
                else {
                    "name": name,
                    "model": one.model,
                    "messages": len(one.messages),
                    "created": one.created,
                    "updated": one.updated,
                }
                for name, one in found
            ]
        )
        return
    rows = [
        (name, "damaged", "", "")
        if one is None
        else (
            name,
            count(len(one.messages), "message"),
            f"{age(time.time() - one.updated)} ago",
            one.model,
        )
        for name, one in found
    ]
    for row in columns(rows):
        click.echo(row)


def _lasting(model: str) -> str:
    """Return a model's name as it means the same in any folder."""
    from erllama_py import api

    known, path = api.resolve_model(model)
    return model if known else str(Path(path).absolute())


def _loaded(talk: Conversation) -> contextlib.AbstractContextManager[Any]:
    return loaded(talk.model, int(talk.options.get("n_ctx", 0)), talk.lora)


def _one_message(name: str, talk: Conversation, text: str, *, as_json: bool) -> None:
    if not text.strip():
        raise click.UsageError("the message on standard input is empty")
    with _loaded(talk) as model:
        reply = _exchange(model, name, talk, text.strip(), quiet=as_json)
    if as_json:
        emit({"name": name, "model": talk.model, **lora_facts(talk.lora), **reply.facts})
    if reply.interrupted:
        raise SystemExit(130)


def _at_terminal(name: str, talk: Conversation) -> None:
    from erllama_py.errors import ErllamaError, ModelGone

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() its line editing
    with _loaded(talk) as model:
        _recall(name, talk)
        while True:
            try:
                text = input("> ").strip()
            except EOFError:
                click.echo()
                return
            except KeyboardInterrupt:  # meant for a reply that ended that moment, perhaps
                click.echo()
                click.echo("Ctrl-D ends it.", err=True)
                continue
            if not text:
                continue
            try:
                _exchange(model, name, talk, text, quiet=False)
            except ModelGone:
                raise
            except ErllamaError as error:  # one message was refused: the next may not be
                click.echo(f"Error: {error}", err=True)


def _recall(name: str, talk: Conversation) -> None:
    """Show where a conversation stands."""
    if not talk.messages:
        click.echo(f"{name}: a new conversation with {talk.model}.  Ctrl-D ends it.", err=True)
        return
    when = age(time.time() - talk.updated)
    said = count(len(talk.messages), "message")
    click.echo(f"{name}: {said}, the last {when} ago, with {talk.model}", err=True)
    for message in talk.messages[-2:]:
        text = message.content
        shown = text if len(text) <= _SHOWN_CHARS else f"… {text[-_SHOWN_CHARS:]}"
        click.echo(f"> {shown}" if message.role == "user" else shown)


def _exchange(model: Any, name: str, talk: Conversation, text: str, *, quiet: bool) -> Reply:
    """Send a message, stream the reply, and keep both; refused, it is not kept."""
    from erllama_py.cli import conversations
    from erllama_py.cli.conversations import Message
    from erllama_py.cli.streaming import Thinking, chat_tokens, stream, thinking_request
    from erllama_py.errors import ErllamaError

    turns = [*talk.messages, Message("user", text)]
    messages = [turn.rendered for turn in turns]
    mode = str(talk.options.get("thinking", "show"))
    budget = int(talk.options.get("thinking_budget", 0)) or None
    options = {
        "response_tokens": int(talk.options.get("max", _DEFAULT_MAX)),
        "temperature": talk.options.get("temperature"),
        "seed": talk.options.get("seed"),
        "parent_key": bytes.fromhex(talk.finish_key) if talk.finish_key else None,
        **thinking_request(mode, budget),
    }
    shown = Thinking(shown=not quiet and mode == "show")

    def say(part: str) -> None:
        if not quiet:
            click.echo(part, nl=False)

    try:
        tokens = chat_tokens(model, messages, talk.system, talk.chat_template)
        reply = stream(model, tokens, options, say, shown)
    except ErllamaError as error:
        if error.reason == "context_overflow":
            error.hint = "the conversation is too long: a larger --n-ctx, or another NAME"
        raise
    if not quiet:
        click.echo()
        click.echo(f"[{reply.summary}]", err=True)
    talk.messages = [*turns, Message("assistant", reply.text, reply.thinking or None)]
    key = reply.stats.get("finish_key")
    talk.finish_key = None if key is None else key.hex()
    conversations.save(name, talk)
    return reply
