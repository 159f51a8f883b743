"""Named conversations: one JSON file each, in ``$XDG_DATA_HOME/erllama/chats``.

A file is replaced whole, by a rename, after it is on disk: whoever reads it, and whatever
stops the writer, finds the conversation as it was or as it is.  The folder is made with
mode 0700, files with 0600: they hold what was said.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path
from typing import Final

import msgspec

from erllama_py.config import Lora
from erllama_py.errors import ErllamaError
from erllama_py.types import Atom

__all__ = ("Conversation", "Message", "conversations", "folder", "load", "remove", "save")

_NAME: Final = re.compile(r"[^\W_][\w.@+-]{0,99}")
_MAX_BYTES: Final = 64 << 20
_VERSION: Final = 1


class Message(msgspec.Struct, omit_defaults=True):
    """One turn."""

    role: str
    """``user`` or ``assistant``."""
    content: str
    thinking: str | None = None
    """What the model thought before it, where that was told apart."""

    @property
    def rendered(self) -> dict[str, str]:
        """The turn as a chat template takes it: most leave former thinking out."""
        turn = {"role": self.role, "content": self.content}
        return turn if self.thinking is None else turn | {"reasoning_content": self.thinking}


class Conversation(msgspec.Struct):
    """What is said in a conversation, and with what."""

    model: str
    """A known name, or the absolute path of a file."""
    system: str | None = None
    messages: list[Message] = []
    finish_key: str | None = None
    """Hex: the key of the row that the latest reply left in the cache."""
    chat_template: str | None = None
    """The name of one, where the model's own is not to be taken."""
    lora: list[Lora] = []
    """The LoRA adapters its replies are computed with."""
    options: dict[str, int | float | str] = {}
    """``max``, ``temperature``, ``seed``, ``n_ctx``, ``thinking``, ``thinking_budget``, where
    they were given."""
    created: int = 0
    """Unix seconds."""
    updated: int = 0
    """Unix seconds."""
    version: int = _VERSION


def folder() -> Path:
    """Return where conversations are kept; it need not be there."""
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return data / "erllama" / "chats"


def load(name: str) -> Conversation | None:
    """Return a conversation; None where there is none of that name.

    :raises ErllamaError: ``badarg`` for what cannot be a name, ``bad_chat`` for a file that
        cannot be read.
    """
    path = _path(name)
    try:
        with path.open("rb") as file:
            found = msgspec.json.decode(file.read(_MAX_BYTES), type=Conversation)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from error
    if found.version > _VERSION:
        raise _unreadable(path, f"it is of version {found.version}")
    return found


def save(name: str, conversation: Conversation) -> None:
    """Keep a conversation under a name, in place of what was there.

    :raises ErllamaError: ``badarg``; the system's reason where it cannot be written.
    """
    path = _path(name)
    conversation.updated = int(time.time())
    conversation.created = conversation.created or conversation.updated
    data = msgspec.json.format(msgspec.json.encode(conversation), indent=1)
    draft = ""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".new")
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).replace(path)
    except OSError as error:
        if draft:
            Path(draft).unlink(missing_ok=True)
        raise ErllamaError(
            "bad_chat", f"{path} cannot be written: {error.strerror}", "set XDG_DATA_HOME"
        ) from error


def remove(name: str) -> None:
    """Delete a conversation.

    :raises ErllamaError: ``not_found``.
    """
    try:
        _path(name).unlink()
    except FileNotFoundError:
        raise ErllamaError(
            "not_found", f"there is no conversation {name!r}", "erllama chat --list shows them"
        ) from None


def conversations() -> list[tuple[str, Conversation | None]]:
    """Return all conversations by name, the latest first; None for one that is damaged."""
    found: list[tuple[int, str, Conversation | None]] = []
    for path in folder().glob("*.json"):
        if _NAME.fullmatch(path.stem):
            try:
                one = load(path.stem)
            except ErllamaError:
                found.append((0, path.stem, None))
            else:
                if one is not None:
                    found.append((one.updated, path.stem, one))
    return [(name, one) for _, name, one in sorted(found, key=lambda item: (-item[0], item[1]))]


def _path(name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise ErllamaError(
            (Atom("invalid"), Atom("name"), name),
            f"a conversation cannot be called {name!r}",
            "letters and digits, then also . _ @ + -, at most 100",
        )
    return folder() / f"{name}.json"


def _unreadable(path: Path, why: str) -> ErllamaError:
    return ErllamaError(
        "bad_chat", f"{path} cannot be read: {why}", "mend it, or remove it with --rm"
    )
