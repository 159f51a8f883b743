"""Which files remote callers may name.

The local user may open anything they can read.  Who comes over distribution may name
known models, and files below the node's roots.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from erllama_py import api
from erllama_py.errors import ErllamaError

__all__ = ("Roots",)


class Roots:
    """The folders below which remote callers may load models."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = [folder.resolve() for folder in folders]

    def check(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return a load config whose model file, if it names one, may be opened.

        Symbolic links are followed first: a link below a root does not lead out of it.

        :raises ErllamaError: ``eacces`` for a file elsewhere; what ``api.resolve_model``
            raises for what is no path.
        """
        if "model_path" not in config or config["model_path"] is None:
            return config
        known, path = api.resolve_model(config["model_path"])
        resolved = Path(path).resolve()
        if not known and not any(resolved.is_relative_to(folder) for folder in self._folders):
            places = ", ".join(map(str, self._folders))
            raise ErllamaError(
                "eacces",
                f"{path!r} is outside the folders this node serves: {places}",
                "start the node with --root FOLDER",
            )
        return {**config, "model_path": str(resolved)}
