"""Erlang's three ways to fail, as one exception for both directions.

A function we serve raises it to fail in the caller; a call of ours raises it when the
remote function failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from erl_bridge.etf import Atom, term_to_text

__all__ = ("ErlangError", "ExceptionClass", "Undef")

ExceptionClass = Literal["error", "exit", "throw"]


class ErlangError(Exception):
    """``error(Reason)``, ``exit(Reason)`` or ``throw(Reason)``.

    :param class_: which of the three.
    :param reason: any term.
    :param stack: for errors, the stack as Erlang lists it: ``{M, F, ArgsOrArity, Info}``.
    """

    def __init__(self, class_: ExceptionClass, reason: Any, stack: Sequence[Any] = ()) -> None:
        self.class_: ExceptionClass = class_
        self.reason = reason
        self.stack = list(stack)
        super().__init__(class_, reason)

    def __str__(self) -> str:
        return f"{self.class_}: {term_to_text(self.reason)}"


class Undef(ErlangError):
    """A function that is not served.  Raised with what was called."""

    def __init__(self, module: str, function: str, args: Sequence[Any]) -> None:
        where: tuple[Any, ...] = (Atom(module), Atom(function), list(args), [])
        super().__init__("error", Atom("undef"), [where])
        self.mfa = (module, function, len(args))

    def __reduce__(self) -> tuple[Any, ...]:
        module, function, args, _ = self.stack[0]
        return type(self), (module.name, function.name, args)
