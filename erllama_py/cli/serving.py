"""Start a node for the command line, with its errors in words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from erllama_py import api
from erllama_py.cli.progress import Progress
from erllama_py.config import EVERYDAY_POLICY

if TYPE_CHECKING:
    from erl_bridge.service import ErllamaNode

__all__ = ("load_for_node", "running_node")


@contextlib.contextmanager
def running_node(name: str, *, roots: Sequence[Path], **options: Any) -> Iterator[ErllamaNode]:
    """Run a node for the length of a ``with`` block.

    :raises click.ClickException: it cannot start.
    """
    from erl_bridge import CookieError, EpmdError, NameTaken
    from erl_bridge.service import ErllamaNode

    try:
        served = ErllamaNode(name, roots=roots, **options)
        served.start()
    except (ValueError, CookieError, EpmdError, NameTaken) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        where = f"{options.get('listen_host')}:{options.get('port')}"
        raise click.ClickException(f"cannot listen on {where}: {error.strerror}") from error
    try:
        yield served
    finally:
        served.stop()


def load_for_node(entry: str, slots: int, n_ctx: int, *, keep: bool) -> str:
    """Load ``[ID=]MODEL`` and return the id it serves under."""
    model_id, _, path = entry.rpartition("=")
    context = {"n_seq_max": slots, "n_ctx": n_ctx}
    with Progress(lambda: f"loading {path}"):
        return api.load_model(
            model_id or Path(path).stem,
            {
                "model_path": path,
                "policy": EVERYDAY_POLICY,
                "context_opts": context,
                "keep": keep,
            },
        )
