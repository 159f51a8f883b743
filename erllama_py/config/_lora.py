r"""LoRA adapters as people type them: ``PATH`` or ``PATH:SCALE``.

What stands behind the last colon is the scale if it is a number, and else a part of the
path: ``a.gguf``, ``C:\a.gguf`` and ``runs:7b/a.gguf`` are paths, and ``run:7`` is the file
``run`` with the scale 7.  ``run:7:1`` is the file ``run:7``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from erllama_py.errors import ErllamaError

__all__ = ("Lora", "adapter_path", "parse_loras")

_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class Lora(NamedTuple):
    """An adapter to attach."""

    path: str
    """Absolute, as ``~`` and the working directory were when it was read."""
    scale: float


def adapter_path(text: str) -> str | None:
    """Return the absolute path of a file as somebody types it; ``None`` for what is none."""
    if not text.strip() or "\0" in text:
        return None
    return str(Path(os.path.expanduser(text)).absolute())  # noqa: PTH111 - takes any user


def parse_loras(texts: Iterable[str]) -> list[Lora]:
    """Read the values of an option ``--lora``; no file is looked at but for its name.

    :raises ErllamaError: ``badarg``: there is no path, or two are of one file, whose effects
        would add up.
    """
    found: dict[str, Lora] = {}
    for text in texts:
        path, colon, number = text.rpartition(":")
        scaled = bool(colon) and _NUMBER.fullmatch(number) is not None
        whole = adapter_path(path if scaled else text)
        if whole is None:
            raise ErllamaError(
                "badarg", f"--lora {text!r}: there is no path", "--lora FILE.gguf or FILE.gguf:0.5"
            )
        file = os.path.realpath(whole)
        if file in found:
            raise ErllamaError(
                "badarg",
                f"--lora names {whole} twice",
                "name it once, with the scale it is to have",
            )
        found[file] = Lora(whole, float(number) if scaled else 1.0)
    return list(found.values())
