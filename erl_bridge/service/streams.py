"""Streams of infer/4 to a process of a peer: the documented messages, in order.

All messages of one stream are made on the model's reader thread and pass the node's
queue in that order.  The caller's pid is monitored: when it dies, or its node goes
away, generation stops, since nobody is there to read.
"""

from __future__ import annotations

import threading
from typing import Any

from erl_bridge.etf import Atom, Pid, Reference, binary_term, encode, tuple_head
from erl_bridge.runtime import Node
from erl_bridge.service.convert import Converter
from erl_bridge.service.refs import Refs
from erl_bridge.service.work import Work
from erllama_py import api
from erllama_py.types import Event, Ref

__all__ = ("Streams",)

_TOKEN = Atom("erllama_token")
_TOKEN_ID = Atom("erllama_token_id")
_THINKING_END = Atom("erllama_thinking_end")
_THINKING_DELTA = Atom("thinking_delta")
_TOOL_CALL_END = Atom("erllama_tool_call_end")
_TOOL_CALL_DELTA = Atom("tool_call_delta")
_LOGPROBS = Atom("erllama_logprobs")
_DONE = Atom("erllama_done")
_ERROR = Atom("erllama_error")
_UNLOADED = (Atom("unloaded"), Atom("shutdown"))


class Streams:
    """The live streams of a node, by the reference their caller has."""

    def __init__(self, node: Node, converter: Converter) -> None:
        self._node = node
        self._converter = converter
        self._lock = threading.Lock()
        self._live: dict[Reference, _Stream] = {}
        self.refs = Refs(node)
        """What stands for streams that no peer started."""

    def start(self, model: Any, tokens: Any, params: Any, caller: Pid) -> Reference:
        """Start a stream to ``caller`` and return its reference.

        :raises ErllamaError: as ``api.infer``.
        """
        stream = _Stream(self, self._node, self._converter, caller)
        with self._lock:
            self._live[stream.ref] = stream
        try:
            stream.run(model, tokens, params)
        except BaseException:
            self.forget(stream.ref)
            raise
        return stream.ref

    def cancel(self, ref: Reference) -> None:
        """Stop a stream; unknown and finished ones are ignored."""
        stream = self._live.get(ref)
        if stream is not None:
            stream.cancel()
        elif (request := self.refs.ref_of(ref)) is not None:
            api.cancel(request)

    def request_of(self, ref: Any) -> Ref | None:
        """Return the request of a live stream; of one that no peer started, too."""
        stream = self._live.get(ref) if isinstance(ref, Reference) else None
        return self.refs.ref_of(ref) if stream is None else stream.request

    def references(self) -> dict[Ref, Reference]:
        """Return the references of the live streams that peers started."""
        streams = list(self._live.values())
        return {one.request: one.ref for one in streams if one.request is not None}

    def forget(self, ref: Reference) -> None:
        """Drop a stream that is over."""
        with self._lock:
            self._live.pop(ref, None)

    def close(self) -> None:
        """End them all: each hears that it is over, as with an unload, and nothing after it."""
        for stream in list(self._live.values()):
            stream.end()


class _Stream:
    def __init__(self, owner: Streams, node: Node, converter: Converter, caller: Pid) -> None:
        self.ref = node.make_ref()
        self._owner = owner
        self._node = node
        self._converter = converter
        self._caller = caller
        self._token = tuple_head(3, _TOKEN, self.ref)
        self._token_id = tuple_head(3, _TOKEN_ID, self.ref)
        self._work = Work()
        self._sending = threading.Lock()
        self._ended = False

    @property
    def request(self) -> Ref | None:
        return self._work.ref

    def run(self, model: Any, tokens: Any, params: Any) -> None:
        self._watch = self._node.monitor(self._caller, lambda *_: self.cancel())
        try:
            self._work.start(lambda: api.infer(model, tokens, params, self._take))
        except BaseException:
            self._node.demonitor(self._watch)
            raise

    def cancel(self) -> None:
        self._work.cancel()

    def end(self) -> None:
        """Send the last message now; what the model still has to say is for nobody."""
        with self._sending:
            if not self._ended:
                self._ended = True
                self._owner.forget(self.ref)
                self._node.send(self._caller, (_ERROR, self.ref, _UNLOADED))
        self.cancel()

    def _take(self, event: Event) -> None:
        """Send one event's message; on the model's reader thread."""
        with self._sending:
            if self._ended:
                return
            self._ended = event.terminal
            if event.terminal:
                # Before the message: who has read it finds the stream gone.
                self._owner.forget(self.ref)
                self._node.demonitor(self._watch)
            self._node.send_encoded(self._caller, self._message(event))

    def _message(self, event: Event) -> bytes:
        match event.kind:
            case "token":
                return self._token + binary_term(event.data)
            case "token_id":
                return self._token_id + encode(event.token_id, version=False)
            case "thinking_delta":
                return encode((_TOKEN, self.ref, (_THINKING_DELTA, event.data)))
            case "thinking_end":
                return encode((_THINKING_END, self.ref, event.signature))
            case "tool_call_delta":
                return encode((_TOKEN, self.ref, (_TOOL_CALL_DELTA, event.data)))
            case "tool_call_end":
                return encode((_TOOL_CALL_END, self.ref, event.data))
            case "logprobs":
                return encode((_LOGPROBS, self.ref, self._converter.to_term(event.logprobs)))
            case "done":
                stats = self._converter.stats(event.stats or {})
                return encode((_DONE, self.ref, stats))
            case _:
                reason = self._converter.to_term(event.reason)
                return encode((_ERROR, self.ref, reason))
