"""Processes, names, links, monitors and calls on top of the wire."""

from __future__ import annotations

from erl_bridge.runtime.calls import ApplyHandler, CallContext
from erl_bridge.runtime.cookie import CookieError, read_cookie
from erl_bridge.runtime.errors import ErlangError, Undef
from erl_bridge.runtime.gen import NO_REPLY, Caller, GenHandler
from erl_bridge.runtime.limits import NodeLimits
from erl_bridge.runtime.node import Node
from erl_bridge.runtime.process import Process
from erl_bridge.runtime.thread import NodeThread

__all__ = (
    "NO_REPLY",
    "ApplyHandler",
    "CallContext",
    "Caller",
    "CookieError",
    "ErlangError",
    "GenHandler",
    "Node",
    "NodeLimits",
    "NodeThread",
    "Process",
    "Undef",
    "read_cookie",
)
