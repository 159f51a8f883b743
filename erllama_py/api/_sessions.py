"""Sessions: requests that go on in the cells of the one before."""

from __future__ import annotations

from typing import Any

from erllama_py._engine.registry import core
from erllama_py.api._asking import ModelArg
from erllama_py.config import parse_session
from erllama_py.types import Atom

__all__ = ("end_session", "list_sessions")


def end_session(model: ModelArg, session: Any) -> Atom:
    """Give up a session: its sequence leaves the context.

    Nothing has to be ended: what is needed for other requests goes by itself, those used
    longest ago first.  One that has a request on the way is left alone; call again later.

    :param session: its ``session_id``.
    :return: ``ok``, always; also for one that is unknown.
    :raises ErllamaError: ``{invalid, session_id, Value}`` for what can be none.
    :raises ModelGone: unknown model.
    """
    host = core().host(model)
    key = parse_session(session)
    if key is not None:
        host.end_session(key)
    return Atom("ok")


def list_sessions(model: ModelArg) -> list[dict[str, Any]]:
    """Return a model's sessions, those used longest ago first.  Not in erllama.

    Each is ``session_id``, ``tokens`` that wait in the context for its next request,
    ``busy``: whether a request of it is on the way, and ``idle_s``, for how many seconds
    none has been.

    :raises ModelGone: unknown model.
    """
    sessions: list[dict[str, Any]] = core().host(model).sessions.all()
    return sessions
