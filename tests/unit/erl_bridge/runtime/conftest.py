"""A node that serves a few functions, and what its callbacks note."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from erl_bridge import (
    CallContext,
    ErlangError,
    NodeThread,
    Undef,
)
from erl_bridge.etf import Atom
from tests.unit.erl_bridge.conftest import Start
from tests.unit.erl_bridge.rawpeer import RawPeer

Dial = Callable[..., RawPeer]


def apply(context: CallContext, module: str, function: str, args: list[Any]) -> Any:
    """What the nodes here serve."""
    match module, function, args:
        case "t", "echo", [term]:
            return term
        case "t", "wait", [seconds]:
            return anyio.sleep(seconds)
        case "t", "fail", [Atom() as kind, reason]:
            raise ErlangError(kind.name, reason)  # type: ignore[arg-type]  # the test says which
        case "t", "who", []:
            return (Atom(context.peer), context.caller)
    raise Undef(module, function, args)


@pytest.fixture
def node(start: Start) -> NodeThread:
    """One node."""
    return start(apply=apply)


@pytest.fixture
def seen() -> queue.Queue[Any]:
    """What callbacks note."""
    return queue.Queue()
