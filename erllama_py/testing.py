"""Helpers for tests of code that uses erllama_py: models that need no file.

The stub backend answers every call deterministically and at once; in this process it
also starts in milliseconds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from erllama_py import api
from erllama_py.config import EVERYDAY_POLICY
from erllama_py.types import Event

__all__ = ("record", "stub_model")


@contextlib.contextmanager
def stub_model(
    model_id: str | None = None, *, in_process: bool = True, **config: Any
) -> Iterator[api.Model]:
    """Load a stub model for the length of a ``with`` block.

    :param in_process: on threads of this process; ``False`` for a process of its own.
    :param config: further keys of the load config.  ``stub_opts`` slows it down or makes
        it fail, see :class:`~erllama_py._backends.base.StubOptions`.
    """
    options: Mapping[str, Any] = {
        "backend": "erllama_model_stub",
        "in_process": in_process,
        "policy": EVERYDAY_POLICY,
        **config,
    }
    model = api.load_model(options) if model_id is None else api.load_model(model_id, options)
    with model:
        yield model


def record(stream: api.Stream) -> list[Event]:
    """Return all events of a stream, its terminal event last."""
    return list(stream)
