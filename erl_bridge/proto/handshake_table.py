"""The states of a handshake and every way between them.

What the statuses and steps mean is told in :mod:`erl_bridge.proto.handshake`; this is the
whole of the machine, so that it can be read, and tested, as one table.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

__all__ = ("TRANSITIONS", "State", "Status", "Step")


class Status(Enum):
    """What the accepting side answers to a name."""

    OK = "ok"
    OK_SIMULTANEOUS = "ok_simultaneous"
    NOK = "nok"
    NOT_ALLOWED = "not_allowed"
    ALIVE = "alive"
    NAMED = "named:"


class State(Enum):
    """Where a handshake stands."""

    # connecting side
    AWAIT_STATUS = auto()
    DECIDE_ALIVE = auto()
    AWAIT_CHALLENGE = auto()
    AWAIT_ACK = auto()
    # accepting side
    AWAIT_NAME = auto()
    DECIDE_STATUS = auto()
    AWAIT_ANSWER = auto()
    AWAIT_REPLY = auto()
    # both
    DONE = auto()
    FAILED = auto()


class Step(Enum):
    """What moves a handshake: a message of the peer (upper half) or a decision of ours."""

    GOT_OK = auto()
    GOT_ALIVE = auto()
    GOT_CHALLENGE = auto()
    GOT_ACK = auto()
    GOT_NAME = auto()
    GOT_TRUE = auto()
    GOT_REPLY = auto()
    GOT_REFUSAL = auto()

    GO_ON = auto()
    ASK_ALIVE = auto()
    REFUSE = auto()


#: Every legal move.  FAILED is left by nothing, DONE by nothing: frames follow.
TRANSITIONS: Final[dict[tuple[State, Step], State]] = {
    (State.AWAIT_STATUS, Step.GOT_OK): State.AWAIT_CHALLENGE,
    (State.AWAIT_STATUS, Step.GOT_ALIVE): State.DECIDE_ALIVE,
    (State.AWAIT_STATUS, Step.GOT_REFUSAL): State.FAILED,
    (State.DECIDE_ALIVE, Step.GO_ON): State.AWAIT_CHALLENGE,
    (State.DECIDE_ALIVE, Step.REFUSE): State.FAILED,
    (State.AWAIT_CHALLENGE, Step.GOT_CHALLENGE): State.AWAIT_ACK,
    (State.AWAIT_ACK, Step.GOT_ACK): State.DONE,
    (State.AWAIT_NAME, Step.GOT_NAME): State.DECIDE_STATUS,
    (State.DECIDE_STATUS, Step.GO_ON): State.AWAIT_REPLY,
    (State.DECIDE_STATUS, Step.ASK_ALIVE): State.AWAIT_ANSWER,
    (State.DECIDE_STATUS, Step.REFUSE): State.FAILED,
    (State.AWAIT_ANSWER, Step.GOT_TRUE): State.AWAIT_REPLY,
    (State.AWAIT_ANSWER, Step.GOT_REFUSAL): State.FAILED,
    (State.AWAIT_REPLY, Step.GOT_REPLY): State.DONE,
}
