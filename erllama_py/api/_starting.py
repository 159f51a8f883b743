"""What takes long, without waiting for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from erllama_py.api._generation import start_request
from erllama_py.api._speculation import start_draft, start_verify
from erllama_py.api._text import start_embed
from erllama_py.types import Ref

__all__ = ("start",)

_STARTS: Final[Mapping[str, Callable[..., Ref]]] = {
    "complete": functools.partial(start_request, "complete"),
    "prefill_only": functools.partial(start_request, "prefill_only"),
    "embed": start_embed,
    "draft_tokens": start_draft,
    "verify": start_verify,
}


def start(function: str, args: Sequence[Any], on_over: Callable[[Any], None]) -> Ref:
    """Do a function that takes long without waiting for it.

    For servers, which cannot spare a thread for every caller, and whose callers may leave.
    Only ``embed`` may wait, for a model that is being restarted.

    :param function: ``complete``, ``prefill_only``, ``embed``, ``draft_tokens`` or
        ``verify``; ``args`` are the arguments it takes.
    :param on_over: takes the result, or the error that the function would raise, on a
        thread of ours; it must be quick and must not raise.
    :return: a ref for :func:`cancel`.  What was cancelled is over with what it has, or, where
        that is nothing, with the error ``cancelled``.
    :raises ErllamaError: what can be seen before it runs.
    """
    return _STARTS[function](*args, on_over=on_over)
