"""Start a node for the command line, with its errors in words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from erllama_py import api
from erllama_py.cli.progress import Progress
from erllama_py.config import EVERYDAY_POLICY, Lora, parse_loras

if TYPE_CHECKING:
    from erl_bridge.service import ErllamaNode

__all__ = ("id_of", "load_for_node", "loras_of", "running_node")


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


def id_of(entry: str) -> str:
    """Return the id that ``[ID=]MODEL`` serves under."""
    model_id, _, path = entry.rpartition("=")
    return model_id or Path(path).stem


def loras_of(entries: Sequence[str], ids: Sequence[str]) -> dict[str, list[Lora]]:
    """Return the adapters of each model, as ``[ID=]PATH[:SCALE]`` say.

    What stands before the first ``=`` is an ID where it is one of those, and else a part of
    the path.

    :raises click.UsageError: no ID where there are several models, or none.
    :raises ErllamaError: as of :func:`~erllama_py.config.parse_loras`.
    """
    texts: dict[str, list[str]] = {}
    for entry in entries:
        model_id, _, rest = entry.partition("=")
        if model_id not in ids:
            if len(set(ids)) != 1:
                raise click.UsageError(
                    f"--lora {entry}: for which model?  ID=PATH, with an ID of --load"
                    + (f": {', '.join(ids)}" if ids else "")
                )
            model_id, rest = ids[0], entry
        texts.setdefault(model_id, []).append(rest)
    return {model_id: parse_loras(those) for model_id, those in texts.items()}


def load_for_node(entry: str, slots: int, n_ctx: int, *, keep: bool) -> str:
    """Load ``[ID=]MODEL`` and return the id it serves under."""
    path = entry.rpartition("=")[2]
    context = {"n_seq_max": slots, "n_ctx": n_ctx}
    with Progress(lambda: f"loading {path}"):
        return api.load_model(
            id_of(entry),
            {
                "model_path": path,
                "policy": EVERYDAY_POLICY,
                "context_opts": context,
                "keep": keep,
            },
        )
