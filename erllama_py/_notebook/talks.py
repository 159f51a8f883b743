"""Conversations of cells: ``%%erllama --session NAME`` goes on in what was said before.

Without it every cell is a message of its own.  The transcript is the notebook's, and lasts
as long as the kernel: it is what the chat template renders, whichever model is asked.  The
model's part is a session of the same name, in which the sequence of the latest reply waits
in the context for the next cell; where it had to make room, the cache has it yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import erllama_py
from erllama_py._notebook.args import BadUsage, nearest
from erllama_py._notebook.report import Report
from erllama_py._notebook.text import markdown_table, plain_table
from erllama_py.errors import ModelGone

if TYPE_CHECKING:
    from erllama_py._notebook.reply import Reply

__all__ = ("Talk", "Talks")


class Talk:
    """One conversation."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.system: str | None = None
        self.messages: list[dict[str, str]] = []
        self.model = ""
        """The one that replied last."""
        self._finish_key: bytes | None = None
        self.unsettled = False
        """The latest reply was interrupted: the model may be at work on it for a moment."""

    def begun_with(self, system: str | None) -> None:
        """Take the system message of a cell.

        :raises BadUsage: the conversation has begun with another.
        """
        if self.messages and system not in (None, self.system):
            raise BadUsage(
                f"the session {self.name!r} has begun with another system message",
                f"leave --system out, or %erllama session {self.name} --end",
            )
        if system is not None:
            self.system = system

    def request(self, text: str) -> dict[str, Any]:
        """Return the chat request of the next message."""
        request: dict[str, Any] = {"messages": [*self.messages, {"role": "user", "content": text}]}
        if self.system is not None:
            request["system"] = self.system
        return request

    def options(self, model: str) -> dict[str, Any]:
        """Return what a request of it has besides its prompt."""
        options: dict[str, Any] = {"session_id": self.name}
        if self._finish_key is not None and model == self.model:
            options["parent_key"] = self._finish_key
        return options

    def add(self, text: str, reply: Reply) -> None:
        """Keep a message and what there is of its reply; without a word of it, neither."""
        self.unsettled = reply.interrupted
        if not reply.text and reply.interrupted:
            return
        said = {"role": "assistant", "content": reply.text}
        if reply.thinking:
            said["reasoning_content"] = reply.thinking
        self.messages += [{"role": "user", "content": text}, said]
        self.model = reply.model
        self._finish_key = reply.finish_key

    def __str__(self) -> str:
        said = [
            f"> {message['content']}" if message["role"] == "user" else message["content"]
            for message in self.messages
        ]
        return "\n".join(said if self.system is None else [f"({self.system})", *said])


class Talks:
    """The conversations of one notebook, by name."""

    def __init__(self) -> None:
        self._talks: dict[str, Talk] = {}

    def get(self, name: str) -> Talk:
        """Return a conversation, which is kept from its first reply on."""
        if not name.strip():
            raise BadUsage("a session needs a NAME", "%%erllama --session trip")
        return self._talks.get(name) or Talk(name)

    def keep(self, talk: Talk) -> None:
        """Have a conversation found by its name, if anything was said in it."""
        if talk.messages:
            self._talks[talk.name] = talk

    def names(self) -> list[str]:
        """Return what there is, those begun first first."""
        return list(self._talks)

    def show(self, name: str) -> str:
        """Return what was said in a conversation.

        :raises BadUsage: there is none of that name.
        """
        if (talk := self._talks.get(name)) is None:
            raise self._unknown(name)
        return str(talk)

    def end(self, name: str | None, models: Iterable[str]) -> str:
        """Forget a conversation, or all, here and in the models; return that in words.

        A session that was begun otherwise, as with ``complete(session_id=...)``, ends by its
        name, too.

        :raises BadUsage: there is none of that name.
        """
        held = {model: _sessions(model) for model in models}
        names = self.names() if name is None else [name]
        known = name is None or name in self._talks
        if name is not None and not (known or any(name in those for those in held.values())):
            raise self._unknown(name)
        for one in names:
            self._talks.pop(one, None)
            for model, sessions in held.items():
                if one in sessions:
                    erllama_py.api.end_session(model, one)
        return f"Ended: {', '.join(names)}." if names else "There is no session."

    def report(self, models: Iterable[str]) -> Report:
        """List the conversations, and what else waits in the models' contexts."""
        held = {model: _sessions(model) for model in models}
        rows = []
        for talk in self._talks.values():
            waiting = held.get(talk.model, {}).pop(talk.name, None)
            rows.append([talk.name, len(talk.messages), talk.model, _tokens(waiting)])
        for model, sessions in held.items():
            rows += [[name, "-", model, _tokens(one)] for name, one in sessions.items()]
        if not rows:
            none = "There is no session; %%erllama --session NAME begins one."
            return Report(none, "")
        heads = ("session", "messages", "model", "tokens in its context")
        return Report(plain_table(heads, rows), markdown_table(heads, rows))

    def _unknown(self, name: str) -> BadUsage:
        known = f"; there are: {', '.join(self._talks)}" if self._talks else ""
        hint = nearest(name, self.names()) or "%%erllama --session NAME begins one"
        return BadUsage(f"there is no session {name!r}", hint + known)


def _sessions(model: str) -> dict[str, Mapping[str, Any]]:
    """Return a model's sessions by their ids; none where it is gone meanwhile."""
    try:
        found = erllama_py.api.list_sessions(model)
    except ModelGone:
        return {}
    return {_shown(one["session_id"]): one for one in found}


def _shown(session_id: Any) -> str:
    return session_id if isinstance(session_id, str) else repr(session_id)


def _tokens(session: Mapping[str, Any] | None) -> str:
    return "-" if session is None or not session["tokens"] else str(session["tokens"])
