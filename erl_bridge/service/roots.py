"""Which files remote callers may name.

The local user may open anything they can read.  Who comes over distribution may name
known models, and files below the node's roots: the folders it was given, or else the
working directory, and the model files that are in the usual caches.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from erl_bridge.service.paths import file_path
from erllama_py import api
from erllama_py.errors import ErllamaError

__all__ = ("Roots",)

_ABSENT = ("undefined", "nil")


class Roots:
    """The folders below which remote callers may load models and adapters and keep rows.

    :param folders: none means the default ones.
    """

    def __init__(self, folders: Iterable[Path] = ()) -> None:
        self._folders = [folder.resolve() for folder in folders]
        self._caches = not self._folders
        self._folders = self._folders or [Path.cwd()]

    def check(self, config: dict[Any, Any]) -> dict[str, Any]:
        """Return a load config whose model file, if it names one, may be opened.

        Its keys are texts then: a config is read with binaries as keys, too, and what is
        read must be what was checked.  Symbolic links are followed first: a link below a
        root does not lead out of it.

        :raises ErllamaError: ``eacces`` for a file elsewhere; what ``api.resolve_model``
            raises for what is no path.
        """
        checked = {_text(key): value for key, value in config.items()}
        given = checked.get("model_path")
        if given is None or (isinstance(given, str) and given in _ABSENT):
            return checked
        if isinstance(given, list):
            given = file_path(given) or given
        known, path = api.resolve_model(given)
        resolved = Path(path).resolve()
        if not known:
            self._must_be_allowed(resolved, path)
        return {**checked, "model_path": str(resolved)}

    def check_adapter(self, path: Any) -> str:
        """Return the path of an adapter that may be opened, links followed.

        :raises ErllamaError: ``eacces`` for a file elsewhere; ``badarg`` for no path.
        """
        raw = file_path(path)
        if not raw or b"\0" in raw:
            raise ErllamaError("badarg", f"a path was expected, not {path!r:.60}")
        resolved = Path(os.fsdecode(raw)).resolve()
        self._must_be_allowed(resolved, str(resolved))
        return str(resolved)

    def _must_be_allowed(self, resolved: Path, path: str) -> None:
        if not self._allowed(resolved):
            places = ", ".join(map(str, self._folders))
            raise ErllamaError(
                "eacces",
                f"{path!r} is outside the folders this node serves: {places}",
                "start the node with --root FOLDER",
            )

    def _allowed(self, file: Path) -> bool:
        if any(file.is_relative_to(folder) for folder in self._folders):
            return True
        return self._caches and any(
            file == Path(found["path"]).resolve() for found in api.find_models()
        )

    def check_folder(self, path: str, also: Iterable[str] = ()) -> str:
        """Return a folder that rows may be kept in, links followed.

        :param also: folders that are in use already.
        :raises ErllamaError: ``eacces`` for one elsewhere.
        """
        resolved = Path(path).resolve()
        inside = any(resolved.is_relative_to(folder) for folder in self._folders)
        if not inside and resolved not in [Path(one).resolve() for one in also]:
            places = ", ".join(map(str, self._folders))
            raise ErllamaError(
                "eacces",
                f"{path!r} is outside the folders this node serves: {places}",
                "start the node with --root FOLDER",
            )
        return str(resolved)


def _text(key: Any) -> Any:
    return key.decode(errors="surrogateescape") if isinstance(key, bytes) else key
