"""Two handshakes joined by a fake link that delivers whole messages or single bytes."""

from __future__ import annotations

from erl_bridge.proto import RemoteProtocolError
from erl_bridge.proto.flags import Flag, offered
from erl_bridge.proto.handshake import (
    Completed,
    Event,
    Handshake,
    LocalNode,
    NameRequested,
    PeerNamed,
    Status,
    StillAlive,
)

HIDDEN = offered(hidden=True)


def local(
    name: str, *, cookie: bytes = b"secret", creation: int = 7, flags: Flag = HIDDEN
) -> LocalNode:
    """What one side says about itself."""
    return LocalNode(name, creation, flags, cookie)


class Pair:
    """Side ``a`` connects, side ``b`` accepts.

    :ivar log: every event as (side, event).
    :ivar errors: what ended a side, by side.
    :ivar sent: all bytes a side sent.
    """

    def __init__(
        self,
        a: LocalNode,
        b: LocalNode,
        *,
        answer: Status = Status.OK,
        still_alive: Status = Status.OK,
        chunk: int | None = None,
        dial: str | None = None,
    ) -> None:
        self.sides = {"a": Handshake.connect(a, dial or b.name), "b": Handshake.accept(b)}
        self.answer = answer
        self.still_alive = still_alive
        self.chunk = chunk
        self.log: list[tuple[str, Event]] = []
        self.errors: dict[str, RemoteProtocolError] = {}
        self.sent = {"a": b"", "b": b""}

    def run(self) -> Pair:
        """Carry bytes to and fro until nothing moves."""
        moved = True
        while moved:
            moved = False
            for side, other in (("a", "b"), ("b", "a")):
                data = self.sides[side].data_to_send()
                self.sent[side] += data
                if data and other not in self.errors:
                    moved = True
                    self.feed(other, data)
        return self

    def feed(self, side: str, data: bytes) -> None:
        """Give a side bytes, in pieces if the pair was made so."""
        step = self.chunk or len(data)
        for start in range(0, len(data), step):
            try:
                self.take(side, data[start : start + step])
            except RemoteProtocolError as error:
                self.errors[side] = error
                return

    def take(self, side: str, data: bytes) -> None:
        """Give a side one piece and make the decisions it asks for."""
        handshake = self.sides[side]
        for event in handshake.receive(data):
            self.log.append((side, event))
            if isinstance(event, PeerNamed):
                handshake.decide(self.answer)
            elif isinstance(event, StillAlive):
                handshake.decide(self.still_alive)
            elif isinstance(event, NameRequested):
                handshake.give_name(f"given@{event.host}", 99)

    def completed(self, side: str) -> Completed:
        """The event that ended a side well."""
        (event,) = [e for s, e in self.log if s == side and isinstance(e, Completed)]
        return event
