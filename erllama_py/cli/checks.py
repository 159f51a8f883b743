"""What ``erllama doctor`` looks at.  Each check returns findings, with a mend where one is due."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from erllama_py.cli.output import count, size

__all__ = ("CHECKS", "Finding")

_PYTHON: Final = (3, 11)
_LEAST_MEMORY: Final = 512 << 20
_LEAST_DISK: Final = 256 << 20
_ENGINE_S: Final = 60
"""How long the engine may take to say what it was built for."""

_NOTEBOOK: Final = ("IPython", "ipykernel", "ipywidgets", "anywidget", "jupyterlab")
_FEATURES: Final = (("avx2", "AVX2"), ("fma", "FMA"), ("f16c", "F16C"), ("avx512f", "AVX512"))
"""In /proc/cpuinfo, and as the engine calls them."""

_ASK_ENGINE: Final = (
    "import json, llama_cpp as c;"
    "print(json.dumps([c.__version__, c.llama_print_system_info().decode()]))"
)


class Finding(NamedTuple):
    """One thing that was looked at."""

    check: str
    status: str
    """``ok``; ``note``, which may matter; or ``wrong``, which does."""
    found: str
    mend: str = ""


Check = Callable[[], Iterator[Finding]]


def check_python() -> Iterator[Finding]:
    """The interpreter is one we support."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= _PYTHON:
        yield Finding("python", "ok", f"{version} in {sys.prefix}")
    else:
        yield Finding("python", "wrong", version, "erllama_py needs Python 3.11 or later")


def check_engine(
    command: tuple[str, ...] = (sys.executable, "-c", _ASK_ENGINE),
) -> Iterator[Finding]:
    """The engine loads here, and was built for this processor.

    In a process of its own: one built for another processor dies of an illegal instruction.
    """
    again = "pip install --no-binary llama-cpp-python --force-reinstall llama-cpp-python"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_ENGINE_S, check=False
        )
        version, built = (
            json.loads(done.stdout.splitlines()[-1]) if not done.returncode else ("", "")
        )
    except (subprocess.TimeoutExpired, ValueError, IndexError):
        yield Finding("engine", "wrong", "the engine does not answer", again)
        return
    if done.returncode < 0:
        yield Finding("engine", "wrong", f"the engine died of signal {-done.returncode}", again)
        return
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        yield Finding("engine", "wrong", f"llama_cpp cannot be imported: {said}", again)
        return
    yield from _engine_findings(version, set(re.findall(r"(\w+) = 1", built)), _cpu_flags(), again)


def _engine_findings(version: str, has: set[str], flags: set[str], again: str) -> Iterator[Finding]:
    names = " ".join(sorted(has & {name for _, name in _FEATURES})) or "no vector extensions"
    yield Finding("engine", "ok", f"llama-cpp-python {version}: {names}")
    pinned = _required("llama-cpp-python")
    if pinned and version != pinned:
        yield Finding(
            "engine",
            "wrong",
            f"llama-cpp-python {version} is not the {pinned} it was checked with",
            f"pip install llama-cpp-python=={pinned}",
        )
    missing = [name for flag, name in _FEATURES if flag in flags and name not in has]
    if missing:
        yield Finding(
            "engine",
            "note",
            f"built without {' '.join(missing)}, which this processor has: it is slower",
            f"build it here: {again}",
        )


def check_cores() -> Iterator[Finding]:
    """Threads fit what this process may use, and the machine is not busy already."""
    from erllama_py._machine.cpus import default_threads, usable_cores

    usable, there = usable_cores(), os.cpu_count() or 1
    decode, batch = default_threads()
    limited = f" of {there} (affinity or a control group's quota)" if usable < there else ""
    yield Finding(
        "cores",
        "ok",
        f"{count(usable, 'core')}{limited}; {count(decode, 'thread')} decode, {batch} prefill",
    )
    yield from _load_findings(os.getloadavg()[0], there)


def _load_findings(load: float, cores: int) -> Iterator[Finding]:
    # Both sides of a comparison are the machine's: the load is of all cores.
    if load >= cores:
        yield Finding(
            "load",
            "note",
            f"{load:.1f} processes want {count(cores, 'core')}: decoding is several times slower",
            "end what is busy (top shows it), or load with fewer n_threads",
        )
    else:
        yield Finding("load", "ok", f"{load:.1f} of {count(cores, 'core')} busy")


def check_memory() -> Iterator[Finding]:
    """There is memory for a model and for the cache."""
    import psutil

    from erllama_py._machine.environment import Environment
    from erllama_py._machine.quotas import default_quota, usable_memory

    free, usable = psutil.virtual_memory().available, usable_memory()
    quota = _setting(lambda: Environment().cache().ram)
    quota = default_quota() if quota is None else quota
    said = f"{size(min(free, usable))} free of {size(usable)}; the cache takes up to {size(quota)}"
    if free < _LEAST_MEMORY:
        yield Finding("memory", "wrong", said, "end other programs, or take a smaller model")
    elif quota > usable:
        yield Finding("memory", "wrong", said, "set ERLLAMA_CACHE_RAM to less, such as 1G")
    elif quota > free:
        yield Finding("memory", "note", said, "ERLLAMA_CACHE_RAM=1G makes the cache smaller")
    else:
        yield Finding("memory", "ok", said)


def check_shm(place: Path = Path("/dev/shm")) -> Iterator[Finding]:  # noqa: S108 - looked at only
    """A tier on tmpfs, if there is one, has room."""
    from erllama_py._machine.environment import Environment

    settings = _setting(lambda: Environment().cache())
    wanted = settings.ram_file if settings else 0
    try:
        usage = shutil.disk_usage(place)
    except OSError:
        status = "wrong" if wanted else "note"
        yield Finding("shm", status, f"there is no {place}", "unset ERLLAMA_CACHE_RAM_FILE")
        return
    said = f"{size(usage.free)} free of {size(usage.total)} in {place}"
    if wanted > usage.total:
        yield Finding(
            "shm",
            "wrong",
            f"{said}; ERLLAMA_CACHE_RAM_FILE asks for {size(wanted)}",
            "set less, or give the container more: docker run --shm-size=2g",
        )
    else:
        used = f"; a tier of {size(wanted)} is in it" if wanted else "; no tier uses it"
        yield Finding("shm", "ok", said + used)


def check_disk() -> Iterator[Finding]:
    """The disk tier's folder can be written, and has room for its quota."""
    from erllama_py._cache.inventory import survey
    from erllama_py._machine.environment import Environment
    from erllama_py._machine.quotas import default_disk_quota

    settings = _setting(lambda: Environment().cache())
    if settings is None:
        return  # that a setting is wrong is a finding of its own
    path = settings.disk_dir
    quota = default_disk_quota(path) if settings.disk is None else settings.disk
    if not quota:
        if settings.disk is None:
            none = f"no disk tier: there is no room in {_nearest(path)} for {path}"
            yield Finding("disk", "wrong", none, "set HOME, or ERLLAMA_CACHE_DIR")
        else:
            yield Finding("disk", "note", "no disk tier: nothing survives a restart", _UNSET_DISK)
        return
    if (why := _unwritable(path)) is not None:
        yield Finding("disk", "wrong", why, "mend its mode, or set ERLLAMA_CACHE_DIR")
        return
    try:
        used = survey(path).capacity
    except OSError as error:
        yield Finding("disk", "wrong", f"{path}: {error.strerror}", "set ERLLAMA_CACHE_DIR")
        return
    free = shutil.disk_usage(_nearest(path)).free
    said = f"{path}: {size(used)} of {size(quota)}, {size(free)} free on the disk"
    if free < min(_LEAST_DISK, max(0, quota - used)):
        yield Finding("disk", "wrong", said, "make room: erllama cache gc --older-than 30")
    elif free < quota - used:
        yield Finding("disk", "note", said, "the quota is more than is free: ERLLAMA_CACHE_DISK")
    else:
        yield Finding("disk", "ok", said)
    if path.is_dir() and path.stat().st_mode & 0o077:
        mode = stat.S_IMODE(path.stat().st_mode)
        yield Finding(
            "disk", "note", f"others may look into {path} ({mode:o})", f"chmod 700 {path}"
        )


def check_settings() -> Iterator[Finding]:
    """Whatever is set can be what it is."""
    from erllama_py import config
    from erllama_py.errors import ErllamaError

    try:
        settings = config.environment()
    except ErllamaError as error:
        yield Finding("settings", "wrong", error.message, error.hint)
        return
    given = [one for one in settings if one.origin != "default"]
    for one in given:
        if one.error is not None:
            yield Finding("settings", "wrong", one.error.message, one.error.hint)
        else:
            yield Finding("settings", "ok", f"{one.key} = {one.value} ({one.origin})")
    if not given:
        yield Finding("settings", "ok", "all as by default")


def check_models() -> Iterator[Finding]:
    """There is a model."""
    from erllama_py import api
    from erllama_py._machine.gguf import template_names

    found = api.find_models()
    if not found:
        yield Finding(
            "models",
            "wrong",
            "no GGUF file found",
            "pip install 'erllama-py[smollm2]', or name a folder in ERLLAMA_MODELS",
        )
        return
    for one in found:
        with Path(one["path"]).open("rb") as file:
            good = file.read(4) == b"GGUF"
        said = f"{one['name']}, {size(one['size'])}"
        if good:
            chats = ", ".join(template_names(one["path"])) or "none; --chat-template names a format"
            yield Finding("models", "ok", f"{said}; chat templates: {chats}")
        else:
            yield Finding(
                "models", "wrong", f"{said}: no GGUF file", "fetch it again, or delete it"
            )


def check_erlang(cookie: Path | None = None) -> Iterator[Finding]:
    """Erlang's tools, for those who want a node, and a cookie that nobody else can read."""
    tools = [name for name in ("erl", "epmd") if shutil.which(name)]
    if len(tools) == 2:
        yield Finding("erlang", "ok", "erl and epmd are there")
    else:
        missing = " and ".join(name for name in ("erl", "epmd") if name not in tools)
        mend = "only for Erlang clients on this machine: apt-get install erlang-base"
        yield Finding("erlang", "note", f"no {missing}", mend)
    file = cookie or Path.home() / ".erlang.cookie"
    try:
        status = file.stat()
    except OSError:
        yield Finding("cookie", "ok", f"no {file}; erllama node makes or takes one")
        return
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        yield Finding("cookie", "wrong", f"others may use {file} ({mode:o})", f"chmod 400 {file}")
    elif not os.access(file, os.R_OK):
        yield Finding("cookie", "wrong", f"{file} cannot be read", f"chmod 400 {file}")
    else:
        yield Finding("cookie", "ok", f"{file} ({mode:o})")


def check_chats() -> Iterator[Finding]:
    """Conversations can be kept."""
    from erllama_py.cli.conversations import conversations, folder

    if (why := _unwritable(folder())) is not None:
        yield Finding("chats", "wrong", why, "mend its mode, or set XDG_DATA_HOME")
        return
    found = conversations()
    damaged = [name for name, one in found if one is None]
    yield Finding("chats", "ok", f"{count(len(found), 'conversation')} in {folder()}")
    for name in damaged:
        yield Finding(
            "chats", "wrong", f"the conversation {name} is damaged", f"erllama chat {name} --rm"
        )


def check_notebook() -> Iterator[Finding]:
    """The extra for notebooks."""
    missing = [name for name in _NOTEBOOK if importlib.util.find_spec(name) is None]
    if missing:
        mend = "for notebooks: pip install 'erllama-py[notebook]'"
        yield Finding("notebook", "note", f"not installed: {', '.join(missing)}", mend)
    else:
        yield Finding("notebook", "ok", "all of the extra is installed")


CHECKS: Final[tuple[Check, ...]] = (
    *(check_python, check_engine, check_cores, check_memory, check_shm, check_disk),
    *(check_settings, check_models, check_chats, check_erlang, check_notebook),
)

_UNSET_DISK: Final = "unset ERLLAMA_CACHE_DISK, or give it bytes such as 4G"


def _setting(read: Callable[[], Any]) -> Any:
    """Return a setting, or None where it cannot be what it is."""
    from erllama_py.errors import ErllamaError

    try:
        return read()
    except ErllamaError:
        return None


def _nearest(path: Path) -> Path:
    """Return a folder, or the nearest above it that is there."""
    return next((one for one in (path, *path.parents) if one.exists()), Path("/"))


def _unwritable(path: Path) -> str | None:
    """Say why a folder cannot be written or made; None where it can."""
    there = _nearest(path)
    if not there.is_dir():
        return f"{path} cannot be made: {there} is no folder"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{there} cannot be written" + ("" if there == path else f", to make {path} in it")
    return None


def _cpu_flags(file: Path = Path("/proc/cpuinfo")) -> set[str]:
    try:
        found = re.search(r"^flags\s*:(.*)$", file.read_text(), re.MULTILINE)
    except OSError:
        return set()
    return set(found[1].split()) if found else set()


def _required(package: str) -> str | None:
    """Return the version our own package pins."""
    try:
        needed = importlib.metadata.requires("erllama-py") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = (re.match(rf"{package}==([\w.]+)", one) for one in needed)
    return next((one[1] for one in found if one), None)
