"""The ``erllama`` command.

One module for each subject.  What a module imports at its top is click and little else, so
that ``--help`` is quick; the rest comes when a command runs.
"""

from __future__ import annotations

from typing import Any

import click

from erllama_py import __version__
from erllama_py.cli.bench import bench as _bench
from erllama_py.cli.cache import cache as _cache
from erllama_py.cli.chat import chat as _chat
from erllama_py.cli.completing import complete, models
from erllama_py.cli.doctor import doctor as _doctor
from erllama_py.cli.node import node as _node
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
@click.option("--model", default="smollm2", show_default=True, help="Known name or GGUF file.")
def demo(model: str) -> None:
    """Answer a long prompt cold, then from the cache; then the same from Erlang."""
    from erllama_py.cli.tour import run

    run(model)


# The underscores leave the modules their names in this package.
for command in (complete, _chat, _node, models, _cache, _bench, _doctor):
    main.add_command(command)
