"""The ``erllama`` command.

One module for each subject.  What a module imports at its top is click and little else, so
that ``--help`` is quick; the rest comes when a command runs.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TextIO

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


_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class _Warnings(logging.Handler):
    """Says on standard error what went less well than it should, and stopped nothing."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != "erllama_py.native":  # the engine's own are of no use to anybody
            click.echo(f"warning: {record.getMessage()}", err=True)


class _Group(click.Group):
    """Shows our errors as one line, with the hint on a second."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _ready():
                return super().invoke(ctx)
        except ErllamaError as error:
            lines = [error.message] + ([f"hint: {error.hint}"] if error.hint else [])
            raise click.ClickException("\n  ".join(lines)) from error
        except OSError as error:
            # What is written has no file's name with it.
            if error.errno not in _NO_ROOM or error.filename is not None:
                raise
            _let_go(sys.stdout)
            raise click.ClickException(f"the output cannot be written: {error.strerror}") from error


def _let_go(stream: TextIO) -> None:
    """Have what could not be written dropped: Python would try, and complain, at its end."""
    with contextlib.suppress(OSError), Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


@contextlib.contextmanager
def _ready() -> Iterator[None]:
    """See to it that no character ends a command, and that no warning is lost."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    log, warnings = logging.getLogger("erllama_py"), _Warnings(logging.WARNING)
    log.addHandler(warnings)
    try:
        yield
    finally:
        log.removeHandler(warnings)


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
