"""LoRA adapters."""

from __future__ import annotations

import os
from typing import Any

from erllama_py._engine.registry import core
from erllama_py.api._asking import ModelArg
from erllama_py.errors import ErllamaError
from erllama_py.types import Atom, Ref

__all__ = ("list_adapters", "load_adapter", "set_adapter_scale", "unload_adapter")


def load_adapter(model: ModelArg, path: str | bytes | os.PathLike[str], scale: float = 1.0) -> Ref:
    """Attach a LoRA adapter, a GGUF file.

    Requests admitted from now on compute with it and with those attached before; running
    ones go on as they began.  What is cached is kept apart: rows belong to the adapters
    and scales they were computed with.

    :return: a handle.
    :raises ErllamaError: ``enoent``, ``eacces``, ... where the file cannot be read;
        ``load_failed`` where it is no adapter for this model; ``badarg``,
        ``not_supported``, ``oom``, ``released``, ``exception``.  Nothing has changed.
    :raises BadCall: the scale is no number.
    """
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise ErllamaError("badarg", f"a path was expected, not {path!r:.60}") from None
    return core().host(model).adapters.load(text, scale)


def unload_adapter(model: ModelArg, handle: Any) -> Atom:
    """Detach a LoRA adapter, for requests admitted from now on.

    :return: ``ok``, also for what is no handle, or was detached before.
    """
    core().host(model).adapters.unload(handle)
    return Atom("ok")


def set_adapter_scale(model: ModelArg, handle: Any, scale: float) -> Atom:
    """Change how much a LoRA adapter counts, for requests admitted from now on.

    With 0 it is of no effect, but stays attached.  The adapter moves to the end of
    :func:`list_adapters`.

    :return: ``ok``.
    :raises ErllamaError: ``not_found``; ``badarg`` for a scale from 2^31 on.
    :raises BadCall: the scale is no number.
    """
    core().host(model).adapters.scale(handle, scale)
    return Atom("ok")


def list_adapters(model: ModelArg) -> list[dict[str, Any]]:
    """Return ``handle``, ``scale`` and ``path`` of the LoRA adapters, in the order of attachment.

    ``path`` is absolute; Erlang's maps do not have it.
    """
    return core().host(model).adapters.list()
