"""llama.cpp models as supervised processes with a token-exact KV cache.

``import erllama_py`` costs next to nothing; what it offers is loaded at first use.
``%load_ext erllama_py`` brings the notebook magics.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = (
    "__version__",
    "api",
    "load_ipython_extension",
    "load_model",
    "unload_ipython_extension",
)

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from erllama_py import api
    from erllama_py.api import load_model

# The engine's warnings go to whoever listens; without this, to the reader's stderr.
logging.getLogger(__name__).addHandler(logging.NullHandler())


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register the magics; called by ``%load_ext erllama_py``."""
    from erllama_py._notebook.extension import load

    load(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Remove the magics; called by ``%unload_ext erllama_py``."""
    from erllama_py._notebook.extension import unload

    unload(shell)


def __getattr__(name: str) -> Any:
    if name in ("api", "load_model"):
        import importlib

        module = importlib.import_module("erllama_py.api")
        return module if name == "api" else module.load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
