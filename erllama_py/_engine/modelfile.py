"""Which file a model is loaded from, as keys and namespaces name it.

The *fingerprint* is part of every key: the caller's, or made from the file.  The *content*
is ours and part of the namespace: a caller who gives one fingerprint for two files, or
thirty-two zero bytes for all of them, must still never be served another model's KV.  Both
depend on nothing but the file, so that a copied model, or one in a new container, finds
what is cached; with ``fast_unsafe``, on its path and time of change.

Where ``safe`` was asked for by name and takes longer than a load may wait, the digest is
made on a thread: the model serves, uncached, and is cached from the moment it is there.
The alternatives are worse.  A load that waits half a minute is what nobody may have; keys
made of a quicker digest until then would leave everything saved under them unfound.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from erllama_py._machine.catalogue import nearest_name
from erllama_py._machine.digests import Digests
from erllama_py._machine.fingerprint import Facts, Fingerprint, facts_of, identify, whole
from erllama_py.config import LoadConfig
from erllama_py.errors import ErllamaError

__all__ = ("ModelFile",)

_UNKNOWN = bytes(32)
_JOIN_S = 2.0
"""A piece takes milliseconds; a network file system that hangs is not waited for."""

_log = logging.getLogger(__name__)


class ModelFile:
    """A model's file, looked at when made and whenever the model is started again.

    :raises ErllamaError: ``load_failed``: it cannot be read.
    """

    def __init__(self, config: LoadConfig) -> None:
        self._config = config
        self._digests = Digests()
        self._facts: Facts = ()
        self._found: Fingerprint | None = None
        self._hashing: threading.Thread | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._waiting: list[Callable[[], None]] = []
        self.look()

    @property
    def known(self) -> bool:
        """Whether there is a fingerprint."""
        return self._found is not None or not self._config.model_path

    @property
    def fingerprint(self) -> bytes:
        """The first part of keys; 32 zero bytes where there is no file, or until it is known."""
        made = self._found.digest if self._found else _UNKNOWN
        return self._config.fingerprint or made

    @property
    def mode(self) -> str:
        """How the fingerprint was made; of one the caller gave, what the caller says."""
        named = self._config.fingerprint_mode
        if self._config.fingerprint is not None:
            return named or "safe"
        return self._found.mode if self._found else named or "safe"

    @property
    def content(self) -> str:
        """Mode and digest of the file itself; empty where there is none."""
        return f"{self._found.mode}:{self._found.digest.hex()}" if self._found else ""

    def look(self) -> None:
        """See whether the file is still what it was: it may have been replaced.

        :raises ErllamaError: ``load_failed``: it cannot be read.
        """
        path, config = self._config.model_path, self._config
        if not path:
            return
        try:
            facts = facts_of(path)
            if facts == self._facts:
                return
            # With a fingerprint of the caller's the file's own digest is only a check.
            named = config.fingerprint_mode
            mode = named if config.fingerprint is None or named == "fast_unsafe" else None
            found = identify(facts, mode, self._digests)
        except OSError as error:
            near = nearest_name(str(path))
            raise ErllamaError(
                "load_failed",
                f"{path!r} cannot be read: {error.strerror}",
                f"did you mean {near}?" if near else "check the path",
            ) from error
        with self._lock:
            self._facts, self._found = facts, found
            if found is None:
                self._hashing = threading.Thread(
                    target=self._hash, args=(facts,), name="fingerprint", daemon=True
                )
                self._hashing.start()

    def when_known(self, callback: Callable[[], None]) -> None:
        """Call back once there is a fingerprint: at once, or on a thread; perhaps never."""
        with self._lock:
            if not self.known:
                self._waiting.append(callback)
                return
        callback()

    def close(self) -> None:
        """Stop hashing: the model is gone."""
        self._closed = True
        if self._hashing is not None:
            self._hashing.join(_JOIN_S)

    def _hash(self, facts: Facts) -> None:
        try:
            found = whole(facts, self._digests, lambda: self._closed or self._facts != facts)
        except OSError as error:
            _log.warning("%s is not cached: it cannot be read: %s", facts[0].path, error)
            return
        with self._lock:
            if found is None or self._facts != facts:
                return
            self._found = found
            waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback()
