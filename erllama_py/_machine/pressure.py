"""Where memory pressure is read: samplers that return (used, total) bytes.

=====================  =================================================================
source                 reading
=====================  =================================================================
``noop``               (0, 1): never under pressure
``system``             this machine's memory, or that of the control group that is
                       fuller: who lives in a container is killed at its limit, however
                       much the machine has left
``nvidia_smi``         all GPUs together, by NVIDIA's tool
``{module, M}``        what M says: a callable, an object with ``sample()``, or the name
                       of one given to :func:`add_sampler`
=====================  =================================================================

A name is never imported: peers of a node may name samplers, and must not be able to run
what nobody offered them.
"""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import psutil

from erllama_py._machine.groups import control_groups
from erllama_py.errors import BadCall, ErllamaError
from erllama_py.types import Atom

__all__ = (
    "NOTHING",
    "Reading",
    "Sampler",
    "add_sampler",
    "available_sources",
    "remove_sampler",
    "sample",
    "source_term",
    "system_memory",
)

Reading = tuple[int, int]
"""(used, total) bytes."""

Sampler = Callable[[], Reading]

NOTHING: Final[Reading] = (0, 1)
"""What a source that knows nothing reads: no pressure, and a total to divide by."""

_MIB: Final = 1 << 20
_TOOL: Final = (
    "nvidia-smi",
    "--query-gpu=memory.used,memory.total",
    "--format=csv,noheader,nounits",
)
_TOOL_SECONDS: Final = 5.0
"""It takes some 50 ms; with a driver that hangs it would take for ever."""

_MAX_BYTES: Final = 1 << 64
_MAX_ATOM_CHARS: Final = 255

_samplers: Final[dict[str, Any]] = {}


def available_sources() -> list[Atom]:
    """Return the names of the sources that are always there."""
    return [Atom(name) for name in _SOURCES]


def add_sampler(name: str, sampler: Any) -> None:
    """Offer a sampler as ``{module, Name}``, to peers of a node too.

    :param sampler: a callable that returns (used, total) bytes, or an object with such a
        method ``sample``: a module, for example.
    """
    _samplers[str(name)] = sampler


def remove_sampler(name: str) -> None:
    """Withdraw a sampler; what still names it reads nothing from then on."""
    _samplers.pop(str(name), None)


def sample(source: Any) -> Reading:
    """Read a source once.

    :param source: one of :func:`available_sources`, ``("module", m)``, or a callable.
    :raises BadCall: ``function_clause`` for what is no source, ``undef`` for a sampler
        that is not there.
    :raises ErllamaError: ``{bad_reading, Value}``: not two amounts of bytes.
    :raises Exception: what the sampler raises.
    """
    return _checked(_sampler(source)())


def source_term(source: Any) -> Any:
    """Return a source as Erlang sees it: a callable is ``{module, Name}``."""
    match source:
        case str():
            return Atom(source)
        case ("module", sampler) | sampler if callable(sampler) or _method(sampler):
            return Atom("module"), Atom(_name(sampler))
        case ("module", str(name)):
            return Atom("module"), Atom(name)
        case _:
            return source


# -- which sampler ------------------------------------------------------------------------


def _sampler(source: Any) -> Callable[[], Any]:
    match source:
        case str() if source in _SOURCES:
            return _SOURCES[source]
        case ("module", str(name)):
            if name not in _samplers:
                raise BadCall("undef", f"there is no sampler {name!r}", "offer it: add_sampler")
            return _function(_samplers[name])
        case ("module", sampler) | sampler if callable(sampler) or _method(sampler):
            return _function(sampler)
        case _:
            names = ", ".join(_SOURCES)
            raise BadCall("function_clause", f"{source!r} is no source: {names}, or a callable")


def _method(sampler: Any) -> Any:
    method = getattr(sampler, "sample", None)
    return method if callable(method) else None


def _function(sampler: Any) -> Callable[[], Any]:
    function: Callable[[], Any] = _method(sampler) or sampler
    return function


def _name(sampler: Any) -> str:
    """Name a callable or a module for people who look at the status."""
    inner = getattr(sampler, "__qualname__", None) or getattr(sampler, "__name__", None)
    if inner is None:
        sampler = type(sampler)
        inner = sampler.__qualname__
    outer = getattr(sampler, "__module__", None)
    return (f"{outer}.{inner}" if outer else inner)[:_MAX_ATOM_CHARS]


def _checked(reading: Any) -> Reading:
    if isinstance(reading, (tuple, list)) and len(reading) == 2:
        used, total = reading
        if _is_amount(used) and _is_amount(total):
            return int(used), int(total)
    raise ErllamaError(
        (Atom("bad_reading"), repr(reading)),
        f"a sampler returned {reading!r}",
        "return (used, total) in bytes",
    )


def _is_amount(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and 0 <= value < _MAX_BYTES


# -- the sources ---------------------------------------------------------------------------


def _noop() -> Reading:
    return NOTHING


def system_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> Reading:
    """Return (used, total) of whatever is fuller: the machine, or a group we are in.

    The memory of the RAM tier counts as used in both, so evicting shows at once; file
    pages that the system would drop by itself do not.
    """
    memory = psutil.virtual_memory()
    machine = (max(0, memory.total - memory.available), memory.total)
    readings = [machine, *_groups(proc, cgroups, memory.total)]
    return max(readings, key=lambda reading: reading[0] / max(1, reading[1]))


def _groups(proc: Path, cgroups: Path, machine: int) -> Iterator[Reading]:
    """Read this process's control groups and those above them, versions 1 and 2.

    Only those that are limited to less than the machine has.
    """
    for folder, version in control_groups("memory", proc, cgroups):
        reading = _group(folder, *_FILES[version])
        if reading is not None and reading[1] < machine:
            yield reading


_FILES: Final = {
    1: (["memory.limit_in_bytes"], "memory.usage_in_bytes", "total_inactive_file"),
    2: (["memory.max", "memory.high"], "memory.current", "inactive_file"),
}
"""By version: files with limits, the file with the usage, and what of it can be dropped."""


def _group(folder: Path, limits: Sequence[str], usage: str, droppable: str) -> Reading | None:
    """Read one group; ``None`` without a limit."""
    bounds = [bound for name in limits if (bound := _number(folder / name)) is not None]
    used = _number(folder / usage)
    if not bounds or used is None:
        return None
    return max(0, used - _statistic(folder / "memory.stat", droppable)), min(bounds)


def _number(file: Path) -> int | None:
    """Return the number in a file; ``None`` for "max", and where there is no such file."""
    text = _text(file).strip()
    return int(text) if text.isdigit() else None


def _statistic(file: Path, name: str) -> int:
    for line in _text(file).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdigit():
            return int(value)
    return 0


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _nvidia_smi() -> Reading:
    """Sum over all GPUs; nothing where the tool is missing or does not answer."""
    try:
        answer = subprocess.run(
            _TOOL,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TOOL_SECONDS,
            check=False,
            start_new_session=True,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return NOTHING
    used = total = 0
    for line in answer.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 2 and all(field.isdigit() for field in fields):
            used, total = used + int(fields[0]), total + int(fields[1])
    return (used * _MIB, total * _MIB) if total else NOTHING


_SOURCES: Final[dict[str, Sampler]] = {
    "noop": _noop,
    "system": system_memory,
    "nvidia_smi": _nvidia_smi,
}
