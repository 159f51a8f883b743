"""Digests of model files, kept between runs in ``$XDG_CACHE_HOME/erllama/fingerprints``.

One small JSON file for each model, named by a hash of its path.  It counts while path,
size, time of change and inode of every file of the model are those it was made of::

    {"version": 1, "files": [["/models/a.gguf", 98362432, 17…, 42]],
     "made": {"safe": "5f…"}, "chosen": "safe"}

Several processes may write at once: each replaces the file whole, under a lock, with what
was there and its own.  A file changed in the last two seconds is not recorded, since it may
change again without its time of change moving on.  The newest :data:`MAX_RECORDS` stay.

It saves time and nothing else: what cannot be read counts as absent, what cannot be written
is left out.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

__all__ = ("Digests", "FileFacts", "Known", "default_folder")

MAX_RECORDS: Final = 256
_MAX_BYTES: Final = 1 << 20
_VERSION: Final = 1
_HASH_BYTES: Final = 32
_RACY_NS: Final = 2_000_000_000
_TRIES, _TRY_S = 20, 0.005

_log = logging.getLogger(__name__)


class FileFacts(NamedTuple):
    """What changes when a file does, as far as can be told without reading it."""

    path: str
    size: int
    mtime_ns: int
    inode: int


class Known(NamedTuple):
    """What is recorded of a model."""

    made: dict[str, bytes]
    """Digest by mode."""
    chosen: str
    """The mode that was chosen where the caller named none; empty before that."""


class _Record(msgspec.Struct):
    version: int
    files: list[FileFacts]
    made: dict[str, str]
    chosen: str


def default_folder() -> Path:
    """Return where records are kept."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "erllama" / "fingerprints"


class Digests:
    """The records in a folder, which need not be there.  Processes may share it."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or default_folder()

    def read(self, facts: tuple[FileFacts, ...]) -> Known:
        """Return what is known of a model as it is now."""
        try:
            with self._file(facts).open("rb") as file:
                record = msgspec.json.decode(file.read(_MAX_BYTES), type=_Record)
            made = {mode: bytes.fromhex(text) for mode, text in record.made.items()}
        except (OSError, ValueError):  # absent, or not what we write
            return Known({}, "")
        same = record.files == list(facts)
        whole = all(len(digest) == _HASH_BYTES for digest in made.values())
        if record.version != _VERSION or not same or not whole:
            return Known({}, "")
        return Known(made, record.chosen)

    def add(self, facts: tuple[FileFacts, ...], mode: str, digest: bytes, *, chosen: bool) -> Known:
        """Record a digest; return what is recorded then.

        :param chosen: ``mode`` is the choice for callers that name none, unless one was
            made before.
        """
        known = Known({mode: digest}, mode if chosen else "")
        if time.time_ns() - max(one.mtime_ns for one in facts) < _RACY_NS:
            return known
        try:
            with self._locked():
                before = self.read(facts)
                known = Known({**known.made, **before.made}, before.chosen or known.chosen)
                self._write(facts, known)
                self._prune()
        except OSError as error:
            _log.debug("digests are not kept in %s: %s", self._folder, error)
        return known

    def _file(self, facts: tuple[FileFacts, ...]) -> Path:
        path = os.fsencode(facts[0].path)
        return self._folder / f"{hashlib.sha256(path).hexdigest()[:40]}.json"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._folder / "lock").open("wb") as lock:
            for _ in range(_TRIES):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(_TRY_S)
            else:
                # Its holder may be stopped: no load waits for that.
                raise BlockingIOError(0, "the lock is held")
            yield

    def _write(self, facts: tuple[FileFacts, ...], known: Known) -> None:
        made = {mode: digest.hex() for mode, digest in known.made.items()}
        record = _Record(_VERSION, list(facts), made, known.chosen)
        descriptor, draft = tempfile.mkstemp(dir=self._folder, suffix=".new")
        try:
            os.write(descriptor, _encoded(record))
            Path(draft).replace(self._file(facts))  # one left behind goes in _prune
        finally:
            os.close(descriptor)

    def _prune(self) -> None:
        """Drop the oldest records, and drafts of processes that died; called locked."""
        records = []
        for entry in self._folder.iterdir():
            if entry.suffix == ".new":
                entry.unlink(missing_ok=True)
            elif entry.suffix == ".json":
                records.append((entry.stat().st_mtime_ns, entry))
        for _, entry in sorted(records)[:-MAX_RECORDS]:
            entry.unlink(missing_ok=True)


def _encoded(record: _Record) -> bytes:
    try:
        return msgspec.json.encode(record)
    except UnicodeEncodeError as error:  # a path that is no UTF-8: its digest is not kept
        raise OSError(0, f"a path that cannot be written: {error}") from error
