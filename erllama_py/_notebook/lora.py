"""``%erllama lora``: the LoRA adapters of a loaded model, by their files.

The core has handles, and attaches a file as often as it is told to.  Cells are run again,
so here a file is attached once: a line says how things are to be, and where they are so
already it changes nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import erllama_py
from erllama_py._notebook.args import BadUsage
from erllama_py._notebook.report import Report, short_path
from erllama_py._notebook.text import markdown_table, plain_table
from erllama_py.errors import ErllamaError

__all__ = ("attach", "detach", "lora_report", "names")


def attach(model: str, path: str, scale: float) -> str:
    """Have a file attached with a scale, and return what was done, in words.

    :param path: of a file; or the name of one that is attached, with its ending or without.
    :raises ErllamaError: why it cannot be.
    """
    entries = _entries(model, path)
    if not entries:
        try:
            erllama_py.api.load_adapter(model, _whole(path), scale)
        except ErllamaError as error:
            if error.reason == "enoent" and (attached := names(model)):
                error.hint += f"; attached to {model}: {', '.join(attached)}"
            raise
        return f"{Path(path).name} is attached to {model}, with scale {scale:g}."
    if len(entries) > 1:
        raise BadUsage(
            f"{path!r} is attached to {model} {len(entries)} times",
            f"%erllama lora {path} --unload detaches them",
        )
    (entry,) = entries
    name = Path(entry["path"]).name
    if entry["scale"] == scale:
        return f"{name} is attached to {model} already, with scale {scale:g}."
    erllama_py.api.set_adapter_scale(model, entry["handle"], scale)
    return f"{name} has scale {scale:g} on {model} now."


def detach(model: str, path: str | None) -> str:
    """Detach a file, or all of them, and return what was done, in words.

    :param path: as that of :func:`attach`.
    :raises BadUsage: it is not attached.
    """
    entries = erllama_py.api.list_adapters(model) if path is None else _entries(model, path)
    if path is not None and not entries:
        attached = ", ".join(names(model)) or "nothing"
        raise BadUsage(f"{path!r} is not attached to {model}", f"attached: {attached}")
    for entry in entries:
        erllama_py.api.unload_adapter(model, entry["handle"])
    if not entries:
        return f"{model} has no LoRA adapters."
    gone = dict.fromkeys(Path(entry["path"]).name for entry in entries)
    return f"Detached from {model}: {', '.join(gone)}."


def lora_report(model: str) -> Report:
    """List the adapters of a model, in the order of attachment."""
    rows = [
        [short_path(one["path"]), f"{one['scale']:g}"]
        for one in erllama_py.api.list_adapters(model)
    ]
    if not rows:
        none = f"{model} has no LoRA adapters."
        return Report(none, none)
    heads = ("adapter", "scale")
    return Report(plain_table(heads, rows), markdown_table(heads, rows))


def names(model: str) -> list[str]:
    """Return the file names of what is attached to a model."""
    return [Path(one["path"]).name for one in erllama_py.api.list_adapters(model)]


def _entries(model: str, path: str) -> list[dict[str, Any]]:
    """Return what is attached of a file; by its name where the path is of no such file."""
    entries = erllama_py.api.list_adapters(model)
    file = os.path.realpath(_whole(path))
    return [one for one in entries if os.path.realpath(one["path"]) == file] or [
        one for one in entries if path in (Path(one["path"]).name, Path(one["path"]).stem)
    ]


def _whole(path: str) -> str:
    # The configuration brings in what a model is made of; %load_ext must not wait for it.
    from erllama_py.config import adapter_path  # noqa: PLC0415

    whole = adapter_path(path)
    if whole is None:
        raise BadUsage(f"{path!r} is no path", "%erllama lora FILE.gguf --scale 0.5")
    return whole
