"""The application environment: ``ERLLAMA_*`` variables, then ``config.toml``.

Erlang's releases set it in ``sys.config``; here it is a TOML file in
``$XDG_CONFIG_HOME/erllama``, with the same keys, and a variable for each that goes before
the file.  What was set to something it cannot be is an error that says where it was set.

==============  ==================================================================
in the file     keys of the original at the top, ``[cache]`` and ``[scheduler]``
variables       the key in capitals, its dot an underscore: ``ERLLAMA_CACHE_RAM``;
                tables and lists as JSON
==============  ==================================================================
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from erllama_py._machine.fingerprint import MODES
from erllama_py.errors import ErllamaError
from erllama_py.types import Atom

__all__ = ("DEFAULTS", "POLICY_KEYS", "CacheSettings", "Environment", "Setting", "settings_path")

_MAX_FILE_BYTES: Final = 1 << 20
_MAX_NUMBER: Final = 1 << 62
_SIZE: Final = re.compile(r"([0-9]+) ?(?:([KMGT])(?:I?B)?)?", re.IGNORECASE)
_SHIFTS: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


class Setting(NamedTuple):
    """One key of the environment, as somebody set it or by default."""

    key: str
    """``min_tokens``, ``cache.ram``."""
    value: Any
    """The default where nobody set it, and what was given where that cannot be."""
    origin: str
    """A variable's name, the path of the file, or ``default``."""
    error: ErllamaError | None = None


class Secret(bytes):
    """Bytes that no listing, log or traceback shows."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<secret>"


class CacheSettings(msgspec.Struct, frozen=True):
    """The cache of one core.  ``None``: a share of memory or disk."""

    ram: int | None
    """Bytes of shared memory; 0 stores nothing."""
    disk: int | None
    """Bytes of the default disk tier; 0 for none."""
    disk_dir: Path
    ram_file: int
    """Bytes of a tier in files on tmpfs; 0 for none."""
    ram_file_dir: Path
    save: str
    """When what is stored goes to a file tier: ``soon``, ``pressure`` (when memory is
    needed), or ``off``."""
    promote: bool
    """Whether what was restored from a file is then kept in memory, too."""


def settings_path() -> Path:
    """Return where the file is, if there is one."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return home / "erllama" / "config.toml"


class Environment:
    """The environment as it is now: the file is read once, variables when asked for."""

    def __init__(self) -> None:
        """Read the file.

        :raises ErllamaError: it is there and cannot be read.
        """
        self.path = settings_path()
        self._file = _read(self.path)

    def get(self, key: str) -> Any:
        """Return a setting's value; None where nobody set it.

        :raises ErllamaError: ``{invalid, Name, Value}``, the name that of the variable,
            or of the key in the file.
        """
        return self._find(key)[0]

    def setting(self, key: str) -> Setting:
        """Return a setting with where it comes from; never raises."""
        try:
            value, origin = self._find(key)
        except ErllamaError as error:
            given, origin = self._given(key)
            return Setting(key, given, origin, error)
        return Setting(key, DEFAULTS.get(key) if value is None else value, origin)

    def all(self) -> list[Setting]:
        """Return every setting, and with an error each key of the file that is none."""
        found = [self.setting(key) for key in _KEYS]
        for key, value in self._unknown():
            error = _refusal(key, value, f"{key} in {self.path}", "a key that there is")
            found.append(Setting(key, value, str(self.path), error))
        return found

    def policy(self) -> dict[str, int]:
        """Return what load options fall back to, where it is set."""
        found = {key: self.get(key) for key in POLICY_KEYS}
        return {key: value for key, value in found.items() if value is not None}

    def cache(self) -> CacheSettings:
        """Return the settings of the cache; quotas of ``[cache]`` before those of ``tiers``."""
        quotas = self.get("tiers") or {}
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        promote = self.get("cache.promote")

        def quota(name: str) -> int | None:
            given: int | None = self.get(f"cache.{name}")
            return quotas.get(name) if given is None else given

        return CacheSettings(
            ram=quota("ram"),
            disk=quota("disk"),
            disk_dir=self.get("cache.dir") or caches / "erllama" / "kv",
            ram_file=quota("ram_file") or 0,
            ram_file_dir=self.get("cache.ram_file_dir") or Path(f"/dev/shm/erllama-{os.getuid()}"),  # noqa: S108 - mode 0700, and ours
            save=self.get("cache.save") or "soon",
            promote=True if promote is None else promote,
        )

    def _find(self, key: str) -> tuple[Any, str]:
        given, origin = self._given(key)
        if given is None:
            return None, origin
        parse, expected = _KEYS[key]
        try:
            return parse(given), origin
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            variable = _variable(key)
            name = variable if origin == variable else key
            place = variable if origin == variable else f"{key} in {origin}"
            raise _refusal(name, given, place, expected) from error

    def _given(self, key: str) -> tuple[Any, str]:
        """Return a setting as somebody wrote it, and where."""
        variable = _variable(key)
        text = os.environ.get(variable, "").strip()
        if text:
            return text, variable
        value: Any = self._file
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return (None, "default") if value is None else (value, str(self.path))

    def _unknown(self) -> list[tuple[str, Any]]:
        unknown = []
        for key, value in self._file.items():
            if key == "cache" and isinstance(value, dict):
                inside = ((f"cache.{name}", item) for name, item in value.items())
                unknown += [(name, item) for name, item in inside if name not in _KEYS]
            elif key not in _KEYS:
                unknown.append((key, value))
        return unknown


def _variable(key: str) -> str:
    return "ERLLAMA_" + key.upper().replace(".", "_")


def _refusal(name: str, value: Any, place: str, expected: str) -> ErllamaError:
    return ErllamaError(
        (Atom("invalid"), Atom(name), value), f"{place} cannot be {value!r}", f"give {expected}"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES)
        return tomllib.loads(text.decode())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ErllamaError(
            (Atom("invalid"), Atom("config.toml"), str(path)),
            f"{path} cannot be read: {error}",
            "mend it, or move it away",
        ) from error


# -- what a value can be ----------------------------------------------------------------


def _count(low: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        number = int(value) if isinstance(value, str) and value.isdecimal() else value
        if type(number) is not int or not low <= number <= _MAX_NUMBER:
            raise ValueError(value)
        return number

    return parse


def _length(value: Any) -> int:
    """Read a number of tokens that may be ``infinity``."""
    return _MAX_NUMBER if value == "infinity" else _count(0)(value)


def _size(value: Any) -> int:
    """Read a number of bytes: 1048576, ``512M``, ``8GB``."""
    if not isinstance(value, str):
        return _count(0)(value)
    found = _SIZE.fullmatch(value)
    if found is None:
        raise ValueError(value)
    return _count(0)(found[1]) << _SHIFTS[(found[2] or "").upper()]


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    return {"true": True, "1": True, "false": False, "0": False}[_lower(value)]


def _lower(value: Any) -> str:
    text = str(value).lower()
    if not isinstance(value, (str, int)) or text not in ("true", "false", "0", "1"):
        raise ValueError(value)
    return text


def _one_of(*choices: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in choices:
            raise ValueError(value)
        return str(value)

    return parse


def _folder(value: Any) -> Path:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError(value)
    return Path(value).expanduser()


def _json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _table(value: Any) -> dict[str, Any]:
    table = _json(value)
    if not isinstance(table, dict):
        raise TypeError(value)
    return table


def _tiers(value: Any) -> dict[str, int]:
    """Read ``[{"backend": "ram", "quota_mb": 4096}]`` as quotas in bytes."""
    quotas = {}
    tiers = _json(value)
    if not isinstance(tiers, list):
        raise TypeError(value)
    for tier in tiers:
        kind = _one_of("ram", "ram_file", "disk")(_table(tier).get("backend"))
        quotas[kind] = _count(0)(tier.get("quota_mb")) << 20
    return quotas


def _secret(value: Any) -> Secret:
    if not isinstance(value, str):
        raise TypeError(value)
    return Secret(value.encode())


_FROM_0 = (_count(0), "a whole number from 0")
_FROM_1 = (_count(1), "a whole number from 1")
_TOKENS = (_length, "a whole number from 0, or infinity")
_BYTES = (_size, "a number of bytes such as 512M")
_PLACE = (_folder, "the path of a folder")

POLICY_KEYS: Final = (
    *("min_tokens", "cold_min_tokens", "cold_max_tokens", "continued_interval"),
    *("boundary_trim_tokens", "boundary_align_tokens", "session_resume_wait_ms"),
)

_KEYS: Final[dict[str, tuple[Callable[[Any], Any], str]]] = {
    "min_tokens": _TOKENS,
    "cold_min_tokens": _TOKENS,
    "cold_max_tokens": _TOKENS,
    "continued_interval": _FROM_1,
    "boundary_trim_tokens": _FROM_0,
    "boundary_align_tokens": _FROM_1,
    "session_resume_wait_ms": _FROM_0,
    "evict_save_timeout_ms": _FROM_0,
    "fingerprint_mode": (_one_of(*MODES), " or ".join(MODES)),
    "tiers": (_tiers, 'a list such as [{"backend": "ram", "quota_mb": 4096}]'),
    "scheduler": (_table, 'a map such as {"enabled": true, "pressure_source": "system"}'),
    "writer_max_concurrent": _FROM_1,
    "model_memory_bytes": _BYTES,
    "thinking_signing_key": (_secret, "a text"),
    "cache.ram": _BYTES,
    "cache.disk": _BYTES,
    "cache.dir": _PLACE,
    "cache.ram_file": _BYTES,
    "cache.ram_file_dir": _PLACE,
    "cache.save": (_one_of("soon", "pressure", "off"), "soon, pressure or off"),
    "cache.promote": (_flag, "true or false"),
}

DEFAULTS: Final = {
    "min_tokens": 512,
    "cold_min_tokens": 512,
    "cold_max_tokens": 30000,
    "continued_interval": 2048,
    "boundary_trim_tokens": 32,
    "boundary_align_tokens": 2048,
    "session_resume_wait_ms": 500,
    "evict_save_timeout_ms": 30000,
    "cache.ram_file": 0,
    "cache.save": "soon",
    "cache.promote": True,
}
"""Values of settings nobody made, as far as they are numbers and words; the others depend
on the machine, or on the file."""
