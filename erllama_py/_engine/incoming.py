"""What a model process sends, handled on the reader thread of its life.

That thread alone touches a request's lease.
"""

from __future__ import annotations

import logging
import os

from erllama_py._engine.callers import Callers
from erllama_py._engine.channel import ChannelClosed
from erllama_py._engine.ends import reason_of
from erllama_py._engine.frames import (
    Accepted,
    Admitted,
    Answer,
    AnyFrame,
    Captured,
    Closed,
    Done,
    Failed,
    Kept,
    Log,
    Lookup,
    Packed,
    Phase,
    Refused,
    Restored,
    Saved,
    SavedWhole,
    Scored,
    Token,
    Trace,
    Verified,
    WantDraft,
)
from erllama_py._engine.life import Life
from erllama_py._engine.request import Request
from erllama_py._engine.transfer import Transfer
from erllama_py.errors import ErllamaError
from erllama_py.types import Atom

__all__ = ("Incoming",)

_native_log = logging.getLogger("erllama_py.native")


class Incoming(Callers):
    """Handles frames about requests, calls and sessions."""

    def _handle(self, life: Life, frame: AnyFrame) -> None:
        """Handle a frame of a process that serves."""
        match frame:
            case (
                Token()
                | WantDraft()
                | Captured()
                | Saved()
                | Lookup()
                | Accepted()
                | Admitted()
                | Verified()
                | Scored()
            ):
                request = self._requests.get(frame.id)
                if request is not None:
                    self._handle_request(life, request, frame)
            case Restored() | Closed():
                self._handle_release(frame)
            case Done() | Failed():
                self._handle_end(frame)
            case Phase():
                self._phase = frame.phase
            case Kept():
                self.sessions.kept(frame.session, frame.tokens, stream=frame.stream)
            case Answer() | Refused():
                pending = life.calls.pop(frame.id, None)
                if pending is None:
                    return  # nobody waits for it any more
                if isinstance(frame, Answer):
                    pending.settle(frame.value)
                else:
                    pending.settle(error=ErllamaError(reason_of(frame.reason), frame.detail))
            case Log():
                _native_log.log(frame.level, "%s: %s", self.id, frame.text)
            case _:
                raise ChannelClosed(f"unexpected {type(frame).__name__} from the model")

    def _handle_descriptor(self, frame: AnyFrame, fd: int) -> None:
        """Handle a frame that came with anonymous memory, which is ours to close."""
        named = frame.id if isinstance(frame, SavedWhole | Packed | Trace) else 0
        request = self._requests.get(named)
        if request is None:
            os.close(fd)
        elif isinstance(frame, Packed) and isinstance(request, Transfer):
            self.cache.count_packing(frame.pack_ns)
            request.on_packed(frame, fd)
        elif isinstance(frame, SavedWhole):
            self.cache.saved_whole(request, frame, fd)
            self.cache.replenish()
        elif isinstance(frame, Trace):
            with open(fd, "rb") as memory:
                # The descriptor shares its place in the file with its writer's.
                memory.seek(0)
                request.trace = memory.read(frame.rows * self.info.logits_bytes)

    def _handle_request(self, life: Life, request: Request, frame: AnyFrame) -> None:
        match frame:
            case Token():
                request.on_token(frame.data, frame.token, frame.parts)
            case Scored():
                request.on_scored(frame)
            case WantDraft():
                if request.drafts is not None:
                    request.drafts.ask(frame, request.tokens[: frame.length], life.send)
            case Captured():
                self.cache.captured(request, frame)
                self.cache.replenish()
            case Saved():
                self.cache.saved(request, frame)
                self.cache.replenish()
            case Lookup():
                self.cache.admitted(request, frame.adapters)
                self.cache.lookup(request, frame, life)
            case Accepted():
                request.on_prompt(frame.tokens)
            case Verified():
                request.on_verified(frame)
            case Admitted():
                self.cache.admitted(request, frame.adapters)
                request.admitted = True
                request.kind, request.prefix_len = frame.kind, frame.prefix_len
                if frame.kind == "cold":
                    request.exactness = None
                elif frame.kind == "sticky":  # decoded there, or beside others
                    request.exactness = "stream" if frame.stream else "token"
                if request.mode != "verify":
                    self.last_hit = {"kind": Atom(frame.kind), "prefix_len": frame.prefix_len}

    def _handle_release(self, frame: Restored | Closed) -> None:
        request = self._requests.get(frame.id)
        if request is None:
            return
        if isinstance(frame, Restored):
            self.cache.restored(request, frame)
            return
        self.cache.closed(request, prefilled=(frame.prefill_tokens, frame.prefill_ns))
        if not request.over:  # a defect of ours, but nobody may wait for ever
            request.on_error(ErllamaError("closed", "the request ended without a result"))
        self._forget(request)
        self.cache.replenish()

    def _handle_end(self, frame: Done | Failed) -> None:
        request = self._requests.get(frame.id)
        if request is None:
            return
        if isinstance(frame, Done):
            request.on_done(frame, self.cache.finish_key(request, frame))
        else:
            request.on_error(ErllamaError(reason_of(frame.reason), frame.detail))
            self.cache.closed(request)  # whatever follows is not for it any more
            self._forget(request)
