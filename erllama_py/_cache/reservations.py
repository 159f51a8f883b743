"""Rows that were put into the index by name, and the reservations of those who save them.

A save by hand goes through states, so that two writers of one row do not both write it,
and a writer's death leaves no row that is not there:

=============  ==================================  =====================================
state          entered by                          if the writer dies, or says nothing
                                                   for a minute
=============  ==================================  =====================================
``pre_link``   :meth:`~Table.reserve_save`         dropped; a temporary file stays
``post_link``  :meth:`~Table.mark_published`       the file is checked (:class:`Recover`):
                                                   a row if it is whole, else deleted
available      :meth:`~Table.announce`             stays
=============  ==================================  =====================================

Pure: times are asked of a clock that is passed in, files are checked by the owner, who
also wakes those who wait.  No locks: the owner has one.

These rows stand beside those of the engine's own cache.  What they name may be restored
only if they say which tokens they stand for and which file has the payload; the file then
says by whom it was computed.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from typing import Any, Final, NamedTuple

import msgspec

from erllama_py._cache import kvc
from erllama_py.errors import ErllamaError
from erllama_py.types import Atom, Ref, next_serial

__all__ = ("HIT_NS", "SWEEP_S", "TTL_NS", "ExternalRow", "Published", "Recover", "Table")

TTL_NS: Final = 60_000_000_000
"""How long a silent reservation lives, from its last step."""

SWEEP_S: Final = 30
"""How often the owner is to call :meth:`Table.sweep`."""

HIT_NS: Final = 1_000_000_000
"""A hit of an earlier life is worth a second of recency."""


class ExternalRow(msgspec.Struct, kw_only=True):
    """An available row."""

    key: bytes
    tier: str
    size: int
    used: int
    """Nanoseconds of the clock; later than now for rows with hits of an earlier life."""
    header: bytes
    location: tuple[Any, ...]
    """``(ram,)``, or a tier and the path as ``bytes``."""
    tokens: bytes | None = None
    refcount: int = 0
    hits: int = 0

    @property
    def usable(self) -> bool:
        """Whether its payload may be restored at all."""
        return self.tokens is not None and self.path is not None

    @property
    def path(self) -> bytes | None:
        """The file it names, if any."""
        match self.location:
            case (_, bytes() as path):
                return path
            case _:
                return None

    def term(self) -> tuple[Any, ...]:
        """Return the original's row of ten."""
        return (
            *(self.key, Atom(self.tier), self.size, self.used, self.refcount),
            *(Atom("available"), self.header, self.location, self.tokens, self.hits),
        )


class Published(NamedTuple):
    """What a file says that was found whole."""

    size: int
    header: bytes
    tokens: bytes


class Recover(NamedTuple):
    """A file whose writer is gone, to be checked and reported to :meth:`Table.recovered`.

    Until then the row counts as being written.
    """

    key: bytes
    token: Ref
    tier: str
    path: bytes


class _Reservation(msgspec.Struct, kw_only=True):
    token: Ref
    tier: str
    writer: object
    created: int
    expires: int
    path: bytes | None = None
    """Set once the file has its name."""
    recovering: bool = False

    def placeholder(self, key: bytes) -> tuple[Any, ...]:
        """Return the original's row of nine."""
        return (key, Atom(self.tier), 0, self.created, 0, Atom("writing"), b"", None, None)


class Table:
    """Not thread-safe.

    :param clock: monotonic nanoseconds.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._rows: dict[bytes, ExternalRow] = {}
        self._reserved: dict[bytes, _Reservation] = {}

    # -- rows -------------------------------------------------------------------------

    def row(self, key: bytes) -> ExternalRow | None:
        """Return an available row."""
        return self._rows.get(key)

    def rows(self) -> list[ExternalRow]:
        """Return all available rows, in no order."""
        return list(self._rows.values())

    def placeholder(self, key: bytes) -> tuple[Any, ...] | None:
        """Return the row of nine that stands for one being written."""
        one = self._reserved.get(key)
        return None if one is None or key in self._rows else one.placeholder(key)

    def placeholders(self) -> list[tuple[Any, ...]]:
        """Return all rows that are being written."""
        found = (self.placeholder(key) for key in self._reserved)
        return [row for row in found if row is not None]

    def insert_available(
        self,
        key: bytes,
        tier: str,
        size: int,
        header: bytes,
        location: tuple[Any, ...],
        tokens: bytes | None = None,
    ) -> ExternalRow:
        """Put a row in, or in another's place; pins of the one that was there stay."""
        hits = kvc.hits_of(header)
        before = self._rows.get(key)
        row = ExternalRow(
            key=key,
            tier=tier,
            size=size,
            used=self._clock() + hits * HIT_NS,
            header=header,
            location=location,
            tokens=tokens,
            refcount=before.refcount if before else 0,
            hits=hits,
        )
        self._rows[key] = row
        return row

    def remove(self, key: bytes) -> ExternalRow | None:
        """Take a row out."""
        return self._rows.pop(key, None)

    def pin(self, key: bytes) -> ExternalRow | None:
        """Note a use, and protect a row from eviction; None where there is none."""
        row = self._rows.get(key)
        if row is not None:
            row.refcount += 1
            row.hits += 1
            row.used = self._clock()
        return row

    def unpin(self, key: bytes) -> None:
        """Undo one :meth:`pin`.  A row that is gone or not pinned is ignored."""
        row = self._rows.get(key)
        if row is not None:
            row.refcount = max(0, row.refcount - 1)

    def evictable(self, tiers: Container[str]) -> Iterator[ExternalRow]:
        """Give the unpinned rows of some tiers, the longest unused first."""
        order = sorted(self._rows.values(), key=lambda row: (row.used, row.key))
        return (row for row in order if row.refcount == 0 and row.tier in tiers)

    # -- reservations -----------------------------------------------------------------

    def writing(self, key: bytes) -> bool:
        """Whether a row is reserved and not available."""
        return key in self._reserved and key not in self._rows

    def reserve_save(self, key: bytes, tier: str, writer: object) -> Ref | Recover:
        """Reserve a row for a writer, compared by equality; return the token.

        Where an earlier writer left a file behind, that is to be checked first: ask
        again after :meth:`recovered`.

        :raises ErllamaError: ``already_present``, or ``conflict`` with a live writer.
        """
        if key in self._rows:
            raise ErllamaError("already_present", "this row is there already")
        one = self._reserved.get(key)
        if one is not None:
            if one.recovering or one.expires > self._clock():
                raise ErllamaError("conflict", "somebody else is saving this row")
            found = self._give_up(key, one)
            if found is not None:
                return found
        now = self._clock()
        token = Ref(next_serial())
        self._reserved[key] = _Reservation(
            token=token, tier=tier, writer=writer, created=now, expires=now + TTL_NS
        )
        return token

    def check(self, key: bytes, token: object) -> None:
        """Ask whether a reservation still holds, and extend it.

        :raises ErllamaError: ``expired``.
        """
        self._own(key, token).expires = self._clock() + TTL_NS

    def mark_published(self, key: bytes, token: object, path: bytes) -> None:
        """Note that the row's file has its name, and extend the reservation.

        :raises ErllamaError: ``expired``.
        """
        one = self._own(key, token)
        one.path = path
        one.expires = self._clock() + TTL_NS

    def announce(
        self, key: bytes, token: object, size: int, header: bytes, tokens: bytes | None = None
    ) -> ExternalRow:
        """Make a reserved row available.

        :raises ErllamaError: ``expired``.
        """
        one = self._own(key, token)
        del self._reserved[key]
        return self._install(key, one.tier, one.path, Published(size, header, b""), tokens)

    def cancel(self, key: bytes, token: object) -> None:
        """Give a reservation up; one that is not the token's is ignored."""
        one = self._reserved.get(key)
        if one is not None and one.token == token and not one.recovering:
            del self._reserved[key]

    def writer_died(self, writer: object) -> list[Recover]:
        """Give up what a writer had reserved; return the files to check."""
        return self._give_up_all(lambda one: one.writer == writer)

    def sweep(self) -> list[Recover]:
        """Give up what has expired; return the files to check."""
        now = self._clock()
        return self._give_up_all(lambda one: one.expires <= now)

    def recovered(self, which: Recover, found: Published | None) -> ExternalRow | None:
        """Report a checked file; return the row it is now, if it was whole."""
        one = self._reserved.get(which.key)
        if one is None or one.token != which.token:
            return None
        del self._reserved[which.key]
        if found is None or which.key in self._rows:
            return None
        return self._install(which.key, which.tier, which.path, found, found.tokens)

    def _own(self, key: bytes, token: object) -> _Reservation:
        one = self._reserved.get(key)
        if one is None or one.token != token or one.recovering:
            raise ErllamaError(
                "expired", "the reservation is not there any more", "reserve the row again"
            )
        return one

    def _install(
        self, key: bytes, tier: str, path: bytes | None, found: Published, tokens: bytes | None
    ) -> ExternalRow:
        location = (Atom("ram"),) if tier == "ram" else (Atom(tier), path)
        return self.insert_available(key, tier, found.size, found.header, location, tokens)

    def _give_up_all(self, which: Callable[[_Reservation], bool]) -> list[Recover]:
        gone = [
            item for item in self._reserved.items() if not item[1].recovering and which(item[1])
        ]
        found = [self._give_up(key, one) for key, one in gone]
        return [one for one in found if one is not None]

    def _give_up(self, key: bytes, one: _Reservation) -> Recover | None:
        if one.path is None:
            del self._reserved[key]
            return None
        one.recovering = True
        return Recover(key, one.token, one.tier, one.path)
