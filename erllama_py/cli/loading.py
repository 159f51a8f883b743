"""Load a model for the length of a command."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from erllama_py.cli.progress import Progress

if TYPE_CHECKING:
    from erllama_py import api
    from erllama_py.config import Lora

__all__ = (
    "attach",
    "load_config",
    "loaded",
    "lora_facts",
    "lora_option",
    "model_option",
    "sampler_options",
    "template_option",
    "thinking_options",
)

model_option = click.option(
    "--model", default="smollm2", show_default=True, help="Known name or GGUF file."
)

template_option = click.option(
    "--chat-template",
    "template",
    metavar="NAME",
    help="Of the chat: one in the model's file, or a format such as chatml.",
)


def _loras(_context: click.Context, _option: click.Parameter, texts: Sequence[str]) -> list[Lora]:
    if not texts:
        return []
    from erllama_py.config import parse_loras
    from erllama_py.errors import ErllamaError

    try:
        return parse_loras(texts)
    except ErllamaError as error:
        raise click.UsageError(f"{error.message}: {error.hint}") from None


lora_option = click.option(
    "--lora",
    "loras",
    multiple=True,
    metavar="PATH[:SCALE]",
    callback=_loras,
    help="Compute with this LoRA adapter, a GGUF file.  Repeatable.",
)


def sampler_options(limit: int | None) -> Callable[[Any], Any]:
    """Add ``--max``, ``--temperature`` and ``--seed`` to a command.

    :param limit: the default of ``--max``.
    """
    options = (
        click.option(
            "--max", "limit", type=int, default=limit, show_default=True, help="Tokens to generate."
        ),
        click.option("--temperature", type=float, help="Above 0: draw, not take the likeliest."),
        click.option("--seed", type=int, help="Seed of the draws."),
    )

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def thinking_options(command: Any) -> Any:
    """Add ``--thinking`` and ``--thinking-budget`` to a command."""
    mode = click.option(
        "--thinking",
        type=click.Choice(("show", "hide", "off")),
        help="Of a model that thinks: on standard error (show, the default), not at all, or "
        "off: in the reply.",
    )
    budget = click.option(
        "--thinking-budget", type=click.IntRange(1), help="Tokens of thinking, at most."
    )
    return mode(budget(command))


def load_config(model: str, n_ctx: int = 0) -> dict[str, Any]:
    """Return what a command's model is loaded with."""
    from erllama_py.config import EVERYDAY_POLICY

    return {"model_path": model, "policy": EVERYDAY_POLICY, "context_opts": {"n_ctx": n_ctx}}


def attach(model: str, loras: Iterable[Lora]) -> None:
    """Attach LoRA adapters to a model.

    :raises ErllamaError: why one of them cannot be.
    """
    from erllama_py import api
    from erllama_py.errors import ErllamaError

    for one in loras:
        try:
            with Progress(functools.partial("loading {}".format, one.path)):
                api.load_adapter(model, one.path, one.scale)
        except ErllamaError as error:
            if error.reason == "enoent":
                error.hint += "; a scale is a number behind a colon, as in style.gguf:0.5"
            raise


def lora_facts(loras: Iterable[Lora]) -> dict[str, Any]:
    """Return what ``--json`` says of the adapters; nothing where there are none."""
    told = [one._asdict() for one in loras]
    return {"lora": told} if told else {}


@contextlib.contextmanager
def loaded(model: str, n_ctx: int = 0, loras: Iterable[Lora] = ()) -> Iterator[api.Model]:
    """Load a model for a ``with`` block, with adapters, and say so where it takes long.

    :raises ErllamaError: why it does not load.
    """
    from erllama_py import api

    with Progress(lambda: f"loading {model}"):
        one = api.load_model(load_config(model, n_ctx))
    with one:
        attach(one, loras)
        yield one
