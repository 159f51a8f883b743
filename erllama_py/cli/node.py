"""``erllama node``: models for Erlang and Elixir nodes."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import click

from erllama_py.cli.metering import metrics_address, served_metrics

__all__ = ("node",)


@click.command()
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
@click.option(
    "--lora",
    "lora_entries",
    multiple=True,
    metavar="[ID=]PATH[:SCALE]",
    help="Attach a LoRA adapter to the model ID of --load.  Repeatable.",
)
@click.option("--keep", is_flag=True, help="Models of --load never make room for others.")
@click.option("--slots", default=4, show_default=True, help="Sequences of each model.")
@click.option("--n-ctx", default=0, help="Context cells; 0: the training length, at most 4096.")
@click.option("--visible", is_flag=True, help="Show up in nodes() of peers.")
@click.option("--listen", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=0, help="Port to listen on; 0: a free one.")
@click.option(
    "--metrics",
    metavar="[HOST:]PORT",
    callback=metrics_address,
    help="Serve Prometheus metrics over HTTP; on loopback where no HOST is given.",
)
@click.option(
    "--root",
    "roots",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder from which peers may load models; by default the working directory.",
)
@click.option("--verbose", is_flag=True, help="Say who comes and goes, and why calls are refused.")
def node(
    name: str,
    cookie: str | None,
    cookie_file: Path | None,
    loads: tuple[str, ...],
    lora_entries: tuple[str, ...],
    keep: bool,
    slots: int,
    n_ctx: int,
    visible: bool,
    listen: str,
    port: int,
    metrics: tuple[str, int] | None,
    roots: tuple[Path, ...],
    verbose: bool,
) -> None:
    """Serve models to Erlang and Elixir nodes until interrupted."""
    from erllama_py import api
    from erllama_py.cli import pasting
    from erllama_py.cli.loading import attach
    from erllama_py.cli.serving import id_of, load_for_node, loras_of, running_node

    if cookie and cookie_file:
        raise click.UsageError("give --cookie or --cookie-file, not both")
    loras = loras_of(lora_entries, [id_of(entry) for entry in loads])
    secret = cookie_file.read_text().strip() if cookie_file else cookie
    _end_on_sigterm()
    try:
        with (
            _logged(logging.INFO if verbose else logging.WARNING),
            running_node(
                name, cookie=secret, hidden=not visible, listen_host=listen, port=port, roots=roots
            ) as served,
            served_metrics(metrics, served),
        ):
            ids = [load_for_node(entry, slots, n_ctx, keep=keep) for entry in loads]
            for model_id, those in loras.items():
                attach(model_id, those)
            click.echo(f"{served.name} is up" + (f" and serves {', '.join(ids)}" if ids else ""))
            source = pasting.cookie_source(cookie, cookie_file)
            for line in pasting.lines(served.name, source, ids[0] if ids else None):
                click.echo(line)
            click.echo("Ctrl-C ends it.")
            while True:  # signal.pause() sleeps through a Ctrl-C that comes just before it
                time.sleep(1.0)
    except KeyboardInterrupt:
        click.echo(f"\n{name} ends")
    finally:
        for host in api.list_models():
            api.unload(host["id"])


@contextlib.contextmanager
def _logged(level: int) -> Iterator[None]:
    """Write what the node has to say to standard error, as lines with a time."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    of_node = logging.getLogger("erl_bridge")
    before = of_node.level
    of_node.addHandler(handler)
    of_node.setLevel(level)
    try:
        yield
    finally:
        of_node.removeHandler(handler)
        of_node.setLevel(before)


def _end_on_sigterm() -> None:
    """Let a service manager end the node as Ctrl-C does."""

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
