"""The pressure scheduler: evicts from the cache when memory runs short.

While it is enabled a thread samples the source every ``interval_ms``.  At or above the
high watermark it asks the cache to free ``(high - low) * total`` bytes, whatever the
excess: where that was too little, the next check asks again.  It never touches models or
their live KV.

Checks and changes take turns, as they do in the original's process: when ``enable(False)``
returns, nothing is evicted any more.  The status waits for nobody.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from erllama_py._machine.environment import Environment
from erllama_py._machine.pressure import NOTHING, Reading, sample, source_term
from erllama_py.errors import BadCall, ErllamaError
from erllama_py.types import Atom

__all__ = ("Evict", "PressureScheduler", "environment_config", "validate_config")

log = logging.getLogger(__name__)

TIERS: Final = ("ram", "ram_file", "disk")

Evict = Callable[[int, tuple[str, ...]], tuple[int, int]]
"""Called with (bytes to free, tiers); returns (rows, bytes) that went."""

_OK: Final = Atom("ok")
_SKIPPED: Final = Atom("skipped")
_DEFAULTS: Final[Mapping[str, Any]] = {
    "enabled": False,
    "pressure_source": Atom("noop"),
    "interval_ms": 5000,
    "high_watermark": 0.85,
    "low_watermark": 0.75,
    "min_evict_bytes": 1 << 20,
    "evict_tiers": (Atom("ram"), Atom("ram_file")),
}


class Settings(msgspec.Struct, frozen=True):
    """How the scheduler is set; the keys of its map in the application environment."""

    enabled: bool
    pressure_source: Any
    interval_ms: int
    high_watermark: float
    low_watermark: float
    min_evict_bytes: int
    evict_tiers: str | tuple[str, ...]

    @property
    def tiers(self) -> tuple[str, ...]:
        """The tiers to evict from, those of ``all`` written out."""
        return TIERS if isinstance(self.evict_tiers, str) else self.evict_tiers


class _Seen(NamedTuple):
    """What the latest sample and the latest eviction came to; times in monotonic ns."""

    used: int = 0
    total: int = 1
    sampled_at: int | None = None
    evicted_bytes: int = 0
    evicted_at: int | None = None


class PressureScheduler:
    """Thread-safe.

    :param evict: frees bytes of the cache.
    :param config: as in :func:`validate_config`; further keys are ignored.
    :param clock: monotonic nanoseconds.
    :raises ErllamaError: ``{invalid_config, {Key, Text}}``.
    """

    def __init__(
        self,
        evict: Evict,
        config: Mapping[str, Any] | None = None,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._evict = evict
        self._clock = clock
        self._settings = _settings(config or {})
        self._seen = _Seen()
        self._turn = threading.RLock()
        """Held by whoever checks or changes something; a sampler may ask for changes."""
        self._stop: threading.Event | None = None
        self._complained = False
        if self._settings.enabled:
            self._start()

    # -- changes ------------------------------------------------------------------------

    def enable(self, on: Any) -> Atom:
        """Start polling afresh, or stop; the first check is one interval away.

        :raises BadCall: ``function_clause``: neither true nor false.
        """
        if not isinstance(on, bool):
            raise BadCall("function_clause", f"enable takes true or false, not {on!r}")
        with self._turn:
            self._change(enabled=on)
            if self._stop is not None:
                self._stop.set()
                self._stop = None
            if on:
                self._start()
        return _OK

    def set_pressure_source(self, source: Any) -> Atom:
        """Read another source from the next sample on; what is none reads nothing."""
        with self._turn:
            self._change(pressure_source=source)
            self._complained = False
        return _OK

    def set_thresholds(self, high: Any, low: Any) -> Atom:
        """Set both watermarks.

        :raises ErllamaError: ``bad_thresholds``, unless 0 <= low < high <= 1.
        """
        if not _watermarks_ok(high, low):
            raise ErllamaError(
                "bad_thresholds",
                f"the thresholds cannot be {high!r} and {low!r}",
                "give the high one first: 0 <= low < high <= 1",
            )
        with self._turn:
            self._change(high_watermark=high, low_watermark=low)
        return _OK

    def _change(self, **changes: Any) -> None:
        self._settings = msgspec.structs.replace(self._settings, **changes)

    # -- questions ----------------------------------------------------------------------

    def sample(self) -> Reading:
        """Read the source now, enabled or not, and evict nothing."""
        with self._turn:
            return self._sample()

    def force_check(self) -> tuple[Any, ...]:
        """Check now.

        :return: ``(evicted, rows, bytes)``, or ``(skipped, why)`` with ``disabled``,
            ``below_watermark`` or ``nothing_to_evict``.
        """
        with self._turn:
            return self._check()

    def status(self) -> dict[str, Any]:
        """Return the settings, and what was seen last: 13 keys."""
        settings, seen = self._settings, self._seen
        tiers = settings.evict_tiers
        return {
            "enabled": settings.enabled,
            "pressure_source": source_term(settings.pressure_source),
            "interval_ms": settings.interval_ms,
            "high_watermark": settings.high_watermark,
            "low_watermark": settings.low_watermark,
            "min_evict_bytes": settings.min_evict_bytes,
            "evict_tiers": Atom(tiers) if isinstance(tiers, str) else [*map(Atom, tiers)],
            "last_used": seen.used,
            "last_total": seen.total,
            "last_ratio": seen.used / max(1, seen.total),
            "last_evicted_bytes": seen.evicted_bytes,
            "sampled_at": seen.sampled_at,
            "last_evicted_at": seen.evicted_at,
        }

    # -- checks, in their turn ----------------------------------------------------------

    def _sample(self) -> Reading:
        used, total = self._read()
        self._seen = self._seen._replace(used=used, total=total, sampled_at=self._clock())
        return used, total

    def _read(self) -> Reading:
        try:
            return sample(self._settings.pressure_source)
        except Exception as error:  # a sampler is anyone's code  # noqa: BLE001
            if not self._complained:
                self._complained = True
                name = source_term(self._settings.pressure_source)
                log.warning("the pressure source %s cannot be read: %r", name, error)
            return NOTHING

    def _check(self) -> tuple[Any, ...]:
        if not self._settings.enabled:
            return _SKIPPED, Atom("disabled")
        used, total = self._sample()
        settings = self._settings  # after the sampler, which may have changed them
        if not settings.enabled:
            return _SKIPPED, Atom("disabled")
        if total == 0 or used / total < settings.high_watermark:
            return _SKIPPED, Atom("below_watermark")
        excess = int((settings.high_watermark - settings.low_watermark) * total)
        target = max(excess, settings.min_evict_bytes)
        if target <= 0:
            return _SKIPPED, Atom("below_watermark")
        rows, nbytes = self._evict(target, settings.tiers)
        if nbytes > 0:
            seen = self._seen
            self._seen = seen._replace(evicted_bytes=nbytes, evicted_at=seen.sampled_at)
        if not rows and not nbytes:
            return _SKIPPED, Atom("nothing_to_evict")
        return Atom("evicted"), rows, nbytes

    # -- the thread ---------------------------------------------------------------------

    def _start(self) -> None:
        self._stop = threading.Event()
        threading.Thread(
            target=self._run, args=(self._stop,), name="erllama-pressure", daemon=True
        ).start()

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(min(self._settings.interval_ms / 1000, threading.TIMEOUT_MAX)):
            with self._turn:
                if stop.is_set():
                    return
                try:
                    self._check()
                except Exception:
                    # The next check may go well: giving up would be out of memory later.
                    log.exception("a pressure check failed")


# -- configuration -------------------------------------------------------------------------


def validate_config(config: Any) -> Atom:
    """Check the watermarks and the interval of a config map, defaults filled in.

    :return: ``ok``.
    :raises ErllamaError: ``{invalid_config, {watermarks | interval_ms, Text}}``, the text
        as a list of characters.
    :raises BadCall: ``{badmap, Config}``.
    """
    if not isinstance(config, Mapping):
        raise BadCall((Atom("badmap"), config), f"a config must be a map, not {config!r}")
    given = {**_DEFAULTS, **config}
    if not _watermarks_ok(given["high_watermark"], given["low_watermark"]):
        levels = (given["high_watermark"], given["low_watermark"])
        raise _invalid("watermarks", levels, "require 0.0 <= low < high <= 1.0")
    interval = given["interval_ms"]
    if type(interval) is not int or interval <= 0:
        raise _invalid("interval_ms", interval, "must be a positive integer")
    return _OK


def environment_config() -> dict[str, Any]:
    """Return the scheduler's map from the environment, checked; empty where nobody set it.

    :raises ErllamaError: ``{invalid, Name, Value}`` for what is no map, and
        ``{invalid_config, {Key, Text}}`` for a value in it; the message says where it is.
    """
    found = Environment().setting("scheduler")
    if found.error:
        raise found.error
    config: dict[str, Any] = found.value or {}
    try:
        _settings(config)
    except ErllamaError as error:
        message = f"in {found.origin}: {error.message}"
        raise ErllamaError(error.reason, message, error.hint) from error
    return config


def _settings(config: Mapping[str, Any]) -> Settings:
    validate_config(config)
    given = {**_DEFAULTS, **config}
    if not isinstance(given["enabled"], bool):
        raise _invalid("enabled", given["enabled"], "must be true or false")
    smallest = given["min_evict_bytes"]
    if type(smallest) is not int or smallest < 0:
        raise _invalid("min_evict_bytes", smallest, "must be a non-negative integer")
    tiers = given["evict_tiers"]
    if isinstance(tiers, (list, tuple)) and all(tier in TIERS for tier in tiers):
        given["evict_tiers"] = tuple(tiers)
    elif tiers != "all":
        raise _invalid("evict_tiers", tiers, f"must be all, or a list of {', '.join(TIERS)}")
    source = given["pressure_source"]
    given["pressure_source"] = tuple(source) if isinstance(source, list) else source  # JSON
    return Settings(**{name: given[name] for name in Settings.__struct_fields__})


def _watermarks_ok(high: Any, low: Any) -> bool:
    numbers = all(type(value) in (int, float) for value in (high, low))
    return numbers and 0.0 <= low < high <= 1.0


def _invalid(key: str, value: Any, text: str) -> ErllamaError:
    return ErllamaError(
        # A list of characters: that is what a text in quotes is in the original.
        (Atom("invalid_config"), (Atom(key), list(text.encode()))),
        f"the scheduler's {key} cannot be {value!r}",
        f"it {text}" if text.startswith("must") else text,
    )
