"""Why calls of peers are refused, in words, for whoever runs the node.

A peer gets the reason the original gives, an atom more often than not.  What is wrong and
what to do is in the error's message; it goes to the node's log.  Loads are few and their
mend is the node's (``--root``, memory), so they are always told, but for an id that is
loaded already, which an application that starts again expects.  Requests by the thousand
are told to those who listen (``erllama node --verbose``).
"""

from __future__ import annotations

import logging
from typing import Final

from erllama_py.errors import ErllamaError

__all__ = ("note_refusal",)

log = logging.getLogger(__name__)

_LOADS: Final = frozenset({"load_model", "load_adapter", "start_model", "start_link"})


def note_refusal(module: str, function: str, arity: int, error: ErllamaError) -> None:
    """Say in the log why a call was refused."""
    always = function in _LOADS and error.reason != "already_loaded"
    level = logging.WARNING if always else logging.INFO
    log.log(level, "%s:%s/%d was refused: %s", module, function, arity, error)
