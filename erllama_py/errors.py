"""Every exception the package raises, one class per way a call can fail.

The original raises in three ways, and code written for it matches on which:

==============  ========================================  =====================
Erlang          when                                      here
==============  ========================================  =====================
``{error, R}``  the call was understood and refused       :class:`ErllamaError`
``exit(R)``     the model is unknown, or died meanwhile   :class:`ModelGone`
``error(R)``    the arguments are not of the right kind   :class:`BadCall`
==============  ========================================  =====================

``reason`` is the Erlang reason as a Python term: an :class:`~erllama_py.types.Atom`
for an atom, ``str`` or ``bytes`` for a binary, tuples for tuples.  The message is
for people: it names the input and the mend.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from erllama_py.types import Atom

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ("BadCall", "ErllamaError", "ModelGone", "NotSupported")


class ErllamaError(Exception):
    """A call that was refused: what Erlang code sees as ``{error, Reason}``.

    :param reason: the Erlang reason as a Python term; a ``str`` counts as an atom.
    :param message: one sentence for people; made from the reason when left out.
    :param hint: what the reader can do about it, if anything.
    """

    def __init__(self, reason: Any, message: str = "", hint: str = "") -> None:
        self.reason: Any = Atom(reason) if type(reason) is str else reason
        self.message = message or describe(self.reason)
        self.hint = hint
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.message, self.hint)

    def _render_traceback_(self) -> list[str]:
        """Two lines for IPython instead of our stack.

        IPython prints exactly this list; unlike ``UsageError`` the exception still
        counts as one for Run All, nbclient and nbval.
        """
        lines = [f"{type(self).__name__}: {self.message}"]
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return lines


class ModelGone(ErllamaError):
    """The model is unknown, unloaded or dead: Erlang callers see ``exit(Reason)``."""


class BadCall(ErllamaError):
    """An argument of the wrong kind: Erlang callers see ``error:Reason``."""


class NotSupported(ErllamaError):
    """The function exists in erllama and is not built here, or not by this backend."""

    def __init__(self, what: str) -> None:
        super().__init__("not_supported", f"{what} is not supported")
        self._what = what

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._what,)


def system_reason(error: OSError) -> Atom:
    """Return the Erlang name of a system error: ``enoent``, ``enospc``."""
    return Atom(errno.errorcode.get(error.errno or 0, "eio").lower())


def refusal_of(error: OSError, path: Path) -> ErllamaError:
    """Return a system error as what a call about a file raises."""
    return ErllamaError(system_reason(error), f"{path}: {error.strerror}")


def describe(reason: Any) -> str:
    """Say an Erlang reason in words, for reasons that have no message of their own."""
    known = _WORDS.get(reason) if isinstance(reason, str) else None
    if known:
        return known
    if isinstance(reason, tuple) and reason and reason[0] == "invalid" and len(reason) == 3:
        return f"{reason[1]} cannot be {reason[2]!r}"
    return f"refused: {reason!r}"


_WORDS = {
    "already_loaded": "a model with this id is loaded already",
    "not_found": "no model with this id is loaded",
    "model_not_loaded": "no model with this id is loaded",
    "load_failed": "the model file could not be loaded",
    "malformed_gguf": "the model file is damaged: the engine died reading it",
    "context_failed": "the engine refused to create a context with these options",
    "oom": "out of memory",
    "badarg": "an argument is of the wrong kind",
    "too_large": "the input is too large",
    "invalid_token": "a token id is not in the model's vocabulary",
    "context_overflow": "the prompt does not fit into the model's context",
    "empty_prompt": "the prompt has no tokens",
    "empty_prefix": "the prefix has no tokens",
    "grammar_failed": "the grammar could not be parsed",
    "no_template": "the model carries no chat template",
    "template_failed": "the model's chat template failed",
    "invalid_content": "a message's content is not text",
    "unloaded": "the model was unloaded meanwhile",
    "not_supported": "not supported",
    "busy": "it is in use; try again later",
}
