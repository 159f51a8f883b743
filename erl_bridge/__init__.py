"""A real Erlang distribution node in Python.

::

    from erl_bridge import Node, NodeThread, Undef

    def apply(context, module, function, args):
        match module, function, args:
            case "calc", "add", [a, b]:
                return a + b
        raise Undef(module, function, args)

    with NodeThread(Node("calc", cookie="secret", apply=apply)):
        ...                       # rpc:call('calc@host', calc, add, [1, 2]) is 3

Terms and their Python forms are described in :mod:`erl_bridge.etf`, the node in
:mod:`erl_bridge.runtime.node`, what handlers may do in :mod:`erl_bridge.runtime.calls`.
"""

from __future__ import annotations

from erl_bridge.net import EpmdError, EpmdServer, NameTaken, NetLimits, NotConnected
from erl_bridge.runtime import (
    NO_REPLY,
    ApplyHandler,
    CallContext,
    Caller,
    CookieError,
    ErlangError,
    GenHandler,
    Node,
    NodeLimits,
    NodeThread,
    Process,
    Undef,
    read_cookie,
)

__all__ = (
    "NO_REPLY",
    "ApplyHandler",
    "CallContext",
    "Caller",
    "CookieError",
    "EpmdError",
    "EpmdServer",
    "ErlangError",
    "GenHandler",
    "NameTaken",
    "NetLimits",
    "Node",
    "NodeLimits",
    "NodeThread",
    "NotConnected",
    "Process",
    "Undef",
    "read_cookie",
)
