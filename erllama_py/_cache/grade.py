"""Grades: how a stored piece of KV came about, and what a reader may use.

The same tokens computed in another way give slightly other numbers (another batch
shape, another sequence beside it), so a payload's grade is part of its address.

========  =====================================  ==================================
grade     computed                               identical to a cold run's
========  =====================================  ==================================
P(chunk)  alone, in one whole aligned chunk,      at every multiple of the chunk
          after nothing but P
T(chunk,  alone, in the last, partial slice of    at exactly ``end`` tokens, with the
end)      such a prefill of ``end`` tokens        logits of that position
S(n)      any other way, with n decode threads    never promised
========  =====================================  ==================================

Two readers: ``token`` takes P and T of its chunk and S of its thread count, whichever
is there; ``bit`` takes P alone, or a whole row that ends in T.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ("Grade", "Want", "last_slice", "streamed", "whole_chunk")


class Grade(NamedTuple):
    """Build with :func:`whole_chunk`, :func:`last_slice` or :func:`streamed`."""

    kind: str
    """``P``, ``T`` or ``S``."""
    number: int
    """The chunk in tokens, or for S the thread count."""
    end: int = 0
    """T only: tokens of the prefill it was the last slice of."""

    def __str__(self) -> str:
        """Return what files say: ``P 256``, ``T 256 300``, ``S 2``."""
        return " ".join(str(part) for part in (self.kind, self.number, self.end) if part)


def whole_chunk(chunk: int) -> Grade:
    """P: prefilled alone in one whole aligned chunk."""
    return Grade("P", chunk)


def last_slice(chunk: int, end: int) -> Grade:
    """T: part of the last, partial slice of a canonical prefill of ``end`` tokens."""
    return Grade("T", chunk, end)


def streamed(threads: int) -> Grade:
    """S: decoded, prefilled beside others, or prefilled after either."""
    return Grade("S", threads)


class Want(NamedTuple):
    """What a reader can use.  Build with :meth:`of`."""

    bit: bool
    whole: Grade
    """P of its chunk."""
    stream: Grade
    """S of its thread count."""

    @classmethod
    def of(cls, exactness: str, chunk: int, threads: int) -> Want:
        """Return a reader's wants from its exactness, ``token`` or ``bit``.

        :raises ValueError: any other exactness.
        """
        if exactness not in ("token", "bit"):
            raise ValueError(f"exactness is {exactness!r}, must be 'token' or 'bit'")
        return cls(exactness == "bit", whole_chunk(chunk), streamed(threads))

    @property
    def chunk(self) -> int:
        """Its chunk in tokens."""
        return self.whole.number

    @property
    def loosely(self) -> Want:
        """The same reader at ``token`` exactness."""
        return self._replace(bit=False)
