"""The LoRA adapters attached to one model, on the core's side.

The list outlives model processes: a restarted one is given it before its first request.
It changes as a whole: the model process is told the new set and loads what it has not
got, and only when it has answered is the set the model's.  Requests that run keep theirs
(:mod:`erllama_py._engine.adapting`).

Every set has a number, by which frames speak of it, and a namespace of the cache of its
own: its effective fingerprint is part of every key.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from erllama_py._cache.key import applied_scale
from erllama_py._engine.adapterset import NO_ADAPTERS, Adapter, AdapterSet
from erllama_py._machine.adapter_file import (
    MAX_PATH_BYTES,
    AdapterFile,
    NotThisModel,
    check_lora,
    examine,
    stamp_of,
)
from erllama_py.errors import BadCall, ErllamaError, system_reason
from erllama_py.types import Ref, next_serial

__all__ = ("Adapters", "Attached", "Scales")

_MAX_SCALE = 2.0**31
"""Scales enter the fingerprint as numbers of 64 bits, 32 of them binary places."""

Scales = tuple[tuple[bytes, float], ...]
"""A set as fingerprints have it: SHA-256 of the file, and scale."""

_log = logging.getLogger(__name__)


class Attached(NamedTuple):
    """One entry of the list."""

    handle: Ref
    file: AdapterFile
    scale: float


class Adapters:
    """Thread-safe; changes are made one after the other.

    :param apply: has the model compute with a set from its next request on, and then
        calls what it is given, before anything else can happen to the model process.
    :param model_path: the model's file; empty where any file will do as an adapter.
    """

    def __init__(
        self,
        apply: Callable[[AdapterSet, Scales, Callable[[], None]], None],
        model_path: str,
    ) -> None:
        self._apply = apply
        self._model_path = model_path
        self._changing = threading.Lock()
        self._entries: tuple[Attached, ...] = ()
        self._numbers: dict[tuple[tuple[int, float], ...], int] = {}
        """Of sets that were, as they were applied."""
        self.present: tuple[AdapterSet, Scales] = (NO_ADAPTERS, ())
        """What the model's next request computes with."""

    def list(self) -> list[dict[str, Any]]:
        """Return ``handle``, ``scale`` and ``path`` of each, in the order of attachment."""
        return [
            {"handle": one.handle, "scale": one.scale, "path": one.file.path}
            for one in self._entries
        ]

    def load(self, path: str, scale: Any = 1.0) -> Ref:
        """Attach a file and return its handle.

        :raises ErllamaError: why it cannot be; nothing has changed.
        :raises BadCall: the scale is no number.
        :raises ModelGone: the model is gone.
        """
        value = _scale(scale)
        file = self._examine(path)
        with self._changing:
            entry = Attached(Ref(next_serial()), file, value)
            before = self._entries
            self._become((*before, entry))
            if _stamp(path) != file.stamp:
                # Its key would be that of other weights.
                self._become(before)
                raise ErllamaError("load_failed", f"{path} was changed while it was read")
        return entry.handle

    def unload(self, handle: Any) -> None:
        """Detach an adapter; what is none is ignored.

        :raises ErllamaError: the engine refused.
        """
        with self._changing:
            if (found := self._find(handle)) is not None:
                self._become(tuple(one for one in self._entries if one is not found))

    def scale(self, handle: Any, scale: Any) -> None:
        """Change the scale of an adapter, which moves to the end of the list.

        :raises ErllamaError: ``not_found``; ``badarg`` for a scale out of range.
        :raises BadCall: the scale is no number.
        """
        value = _scale(scale)
        with self._changing:
            found = self._find(handle)
            if found is None:
                raise ErllamaError("not_found", f"no adapter {handle} is attached")
            left = tuple(one for one in self._entries if one is not found)
            self._become((*left, found._replace(scale=value)))

    def intact(self) -> bool:
        """Whether every file is still what was attached, for a process that starts anew."""
        for one in self._entries:
            path = one.file.path
            try:
                same = stamp_of(path) == one.file.stamp or examine(path).sha == one.file.sha
            except OSError as error:
                _log.error("adapter %s: %s", path, error.strerror)
                return False
            if not same:
                _log.error("adapter %s: the file was changed since it was attached", path)
                return False
        return True

    def _find(self, handle: Any) -> Attached | None:
        if not isinstance(handle, Ref):
            return None
        return next((one for one in self._entries if one.handle == handle), None)

    def _become(self, entries: tuple[Attached, ...]) -> None:
        # In an order that does not depend on that of attachment, like the fingerprint.
        ordered = sorted(entries, key=lambda one: (one.file.sha, one.scale, one.handle.serial))
        adapters = tuple(
            Adapter(one.handle.serial, os.fsencode(one.file.path), applied_scale(one.scale))
            for one in ordered
        )
        scales = tuple((one.file.sha, one.scale) for one in ordered)
        key = tuple((one.number, one.scale) for one in adapters)
        number = self._numbers.setdefault(key, len(self._numbers) + 1) if key else 0
        new = AdapterSet(number, adapters)

        def commit() -> None:
            self._entries = entries
            self.present = new, scales

        self._apply(new, scales, commit)

    def _examine(self, path: str) -> AdapterFile:
        if not path or "\0" in path or len(os.fsencode(path)) > MAX_PATH_BYTES:
            raise ErllamaError(
                "badarg", f"a path has 1 to {MAX_PATH_BYTES} bytes and no NUL, not {path!r:.60}"
            )
        path = os.path.abspath(path)  # noqa: PTH100 - a path is text here, maybe with escapes
        try:
            file = examine(path)
            if self._model_path:
                check_lora(path, self._model_path)
        except OSError as error:
            raise ErllamaError(
                system_reason(error), f"{path} cannot be read: {error.strerror}", "check the path"
            ) from error
        except NotThisModel as error:
            raise ErllamaError(
                error.reason,
                f"{path}: {error}",
                "convert_lora_to_gguf.py of llama.cpp makes adapters for one model",
            ) from error
        return file


def _stamp(path: str) -> tuple[int, ...] | None:
    try:
        return stamp_of(path)
    except OSError:
        return None


def _scale(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadCall("function_clause", f"a scale is a number, not {value!r:.60}")
    try:
        scale = float(value)
    except OverflowError:
        scale = math.inf
    if not -_MAX_SCALE < scale < _MAX_SCALE:
        raise ErllamaError("badarg", f"a scale lies between -2^31 and 2^31: {value!r:.60} does not")
    return scale
