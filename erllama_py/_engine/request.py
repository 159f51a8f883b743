"""One request on the core's side: what was asked, what came back, who is waiting.

The model process may die and be restarted under a request; one that was not admitted
yet is then sent again, so everything needed for that stays here.
"""

from __future__ import annotations

import logging
import threading
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from erllama_py._cache.tier import KINDS
from erllama_py._engine.frames import Done, Scored, Speculated, Submit, Verified
from erllama_py._engine.heard import Heard
from erllama_py._engine.spans import Part
from erllama_py._engine.tokenbytes import unpack_tokens
from erllama_py.config import GenerateOptions
from erllama_py.errors import ErllamaError
from erllama_py.types import Atom, Event, Ref, SessionKey, next_serial, text_of

if TYPE_CHECKING:
    from erllama_py._cache.lease import Lease
    from erllama_py._cache.namespace import Namespace
    from erllama_py._engine.draftmodel import DraftModel
    from erllama_py._engine.noted import Noted

__all__ = ("Request",)


class Request:
    """A request and its outcome.

    :param mode: ``complete``, ``infer``, ``prefill_only`` or ``verify``.
    :param text: the prompt where the model process is to tokenise it.
    :param tokens: the prompt where the caller has tokens.
    :param candidates: what a ``verify`` is to verify.
    :param sink: takes a stream's events, on the host's reader thread: it must not block
        and must not raise.
    """

    def __init__(
        self,
        mode: str,
        options: GenerateOptions,
        *,
        text: bytes | None = None,
        tokens: array[int] | None = None,
        candidates: array[int] | None = None,
        parent_key: bytes | None = None,
        session: SessionKey | None = None,
        signing_key: bytes = b"",
        sink: Callable[[Event], None] | None = None,
        on_over: Callable[[Request], None] | None = None,
    ) -> None:
        self.id = next_serial()
        self.ref = Ref(self.id)
        self.mode = mode
        self.options = options
        self.text = text
        self.parent_key = parent_key
        self.session_key = session
        self.session = 0
        """The number of its session, once it has been submitted; 0: it has none."""
        self._signing_key = signing_key
        self._heard: Heard | None = None
        """There where the reply is searched for spans, from its first token on."""
        self._sink = sink
        self._on_over = on_over
        self._submitted = b"" if tokens is None else tokens.tobytes()
        self._candidates = b"" if candidates is None else candidates.tobytes()
        self.tokens: array[int] = array("I") if tokens is None else array("I", tokens)
        """Prompt and generated tokens, in order."""
        self.prompt_len = len(self.tokens)

        self.drafts: DraftModel | None = None
        """The model that drafts for it, where it speculates with one."""
        self.life: object = None
        """The life of the model process it was sent to."""
        self.accepted = threading.Event()
        """Set once it passed its checks, or is over."""
        self.admitted = False
        self.cancelled = False
        self.lease: Lease | None = None
        self.namespace: Namespace | None = None
        """Where its rows are, from its lookup on: that of the adapters it computes with."""
        self.closed = False
        """The engine holds nothing for it; a lookup that comes late is not for it."""
        self.restoring: list[int] = []
        """Nodes that the engine is restoring."""
        self.expected_row: bytes | None = None
        self.saved = 0
        """Tokens of the longest row that was accepted of it."""
        self.kind = "cold"
        self.prefix_len = 0
        self.exactness: str | None = None
        self.tiers: dict[str, int] = {}
        """Tokens found by the kind of tier they were in."""
        self.lookup: Noted | None = None
        """What its lookup found, and what not."""
        self.trace: bytes | None = None
        """The logits every token was drawn from, float32, where they were asked for."""
        self.logprobs: list[dict[str, Any]] = []
        """Of each generated token, where they were asked for."""
        self.restore_ns: int | None = None
        """Reading, verifying and unpacking, most of it beside other work; None before."""

        self.tallied = False
        """Whether it is in the model's sums."""

        self._over = threading.Event()
        self.stats: dict[str, Any] | None = None
        self.result: dict[str, Any] | None = None
        self.error: ErllamaError | None = None

    def frame(self) -> Submit:
        """Return the frame that submits it."""
        return Submit(
            self.id,
            self.mode,
            self.text,
            self._submitted,
            self.options,
            self._candidates,
            self.session,
        )

    @property
    def drawn(self) -> array[int]:
        """The tokens sampled so far."""
        return self.tokens[self.prompt_len :]

    @property
    def generated(self) -> array[int]:
        """Those of the reply: without thinking and tool calls that were told apart."""
        return self.drawn if self._heard is None else self._heard.tokens[:]

    @property
    def over(self) -> bool:
        """Whether the outcome is known."""
        return self._over.is_set()

    @property
    def tier(self) -> str | None:
        """The kind of the slowest tier that something of its hit was in."""
        return max(self.tiers, key=KINDS.index, default=None)

    def wait(self) -> dict[str, Any]:
        """Block until it is over and return the result map.

        :raises ErllamaError: it failed.
        """
        self._over.wait()
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result

    def wait_for(self, timeout_s: float | None) -> bool:
        """Block until it is over or the time is; return whether it is over."""
        return self._over.wait(timeout_s)

    # -- called by the host ---------------------------------------------------------------

    def on_prompt(self, tokens: bytes) -> None:
        """It was accepted; ``tokens`` is the prompt where we had only its text."""
        if self.text is not None:
            self.tokens = unpack_tokens(tokens)
            self.prompt_len = len(self.tokens)
        self.accepted.set()

    def on_token(self, data: bytes, token: int | None, parts: Sequence[Part] | None = None) -> None:
        """One generated token, or text let go at the end."""
        if token is not None:
            self.tokens.append(token)
        if parts is not None:
            self._heard = self._heard or Heard(self.ref, self._signing_key)
            for event in self._heard.events(parts):
                if self._sink:
                    _guarded(self._sink, event)
            return
        if self._sink:
            if data:
                _guarded(self._sink, Event("token", self.ref, data=data))
            if token is not None:
                _guarded(self._sink, Event("token_id", self.ref, token_id=token))

    def on_scored(self, frame: Scored) -> None:
        """The log probabilities of the latest token."""
        entry = {
            "token": frame.token,
            "text": text_of(frame.text),
            "logprob": frame.logprob,
            "top": [
                {"token": token, "text": text_of(text), "logprob": logprob}
                for token, text, logprob in frame.top
            ],
        }
        self.logprobs.append(entry)
        if self._sink:
            _guarded(self._sink, Event("logprobs", self.ref, logprobs=entry))

    def on_done(self, frame: Done, finish_key: bytes | None) -> None:
        """The reply is complete; ``saved`` counts the row that follows it already."""
        generated = self.generated
        created = max(self.saved - self.prefix_len, 0)
        stats: dict[str, Any] = {
            "prompt_tokens": self.prompt_len,
            "completion_tokens": len(generated),
            "prefill_ms": frame.prefill_ms,
            "generation_ms": frame.generation_ms,
            "cache_hit_kind": Atom(self.kind),
            "finish_reason": Atom(frame.finish_reason),
            "cancelled": frame.finish_reason == "cancelled",
            "finish_key": finish_key,
            "committed_tokens": frame.committed,
            "cache_delta": {"read": self.prefix_len, "created": created},
            "prefix_len": self.prefix_len,
        }
        if frame.speculated:
            stats["speculation"] = _speculation(frame.speculated)
        if self.exactness:
            stats["exactness"] = Atom(self.exactness)
        if self.tier:
            stats["tier"] = Atom(self.tier)
        if self._heard:
            stats |= self._heard.counts
        stop = {} if frame.stop is None else {"stop_sequence": text_of(frame.stop)}
        stats |= stop
        self.stats = stats
        if self.mode != "infer":
            self.result = self._result(frame, finish_key, stats, stop)
        self._end(Event("done", self.ref, stats=stats))

    def _result(
        self,
        frame: Done,
        finish_key: bytes | None,
        stats: dict[str, Any],
        stop: dict[str, Any],
    ) -> dict[str, Any]:
        """Build the map that complete or prefill_only returns."""
        common = {
            "context_tokens": self.tokens[: frame.committed].tolist(),
            "committed_tokens": frame.committed,
            "finish_key": finish_key,
            "cache_hit_kind": Atom(self.kind),
            "cache_delta": dict(stats["cache_delta"]),
        }
        if self.mode == "prefill_only":
            return common
        return {
            "reply": text_of(frame.reply),
            "generated": self.generated.tolist(),
            **common,
            "finish_reason": Atom(frame.finish_reason),
            "stats": stats,
            **stop,
            **(self._heard.spans if self._heard else {}),
            **({} if self.options.logprobs is None else {"logprobs": self.logprobs}),
        }

    def on_verified(self, frame: Verified) -> None:
        """The drafted tokens are compared."""
        self.result = {"accepted": frame.accepted, "following": frame.following}
        self._end(Event("done", self.ref))

    def on_error(self, error: ErllamaError) -> None:
        """It failed."""
        self.error = error
        self._end(Event("error", self.ref, reason=error.reason))

    def _end(self, event: Event) -> None:
        if self._over.is_set():
            return
        self._over.set()
        self.accepted.set()
        if self.drafts:
            self.drafts.stop()
        if self._sink:
            _guarded(self._sink, event)
        if self._on_over:
            _guarded(self._on_over, self)


def _speculation(facts: Speculated) -> dict[str, Any]:
    rate = facts.accepted / facts.drafted if facts.drafted else 0.0
    report = {"drafted": facts.drafted, "accepted": facts.accepted, "acceptance_rate": rate}
    return report | ({"plain": Atom(facts.plain)} if facts.plain else {})


def _guarded(callback: Callable[[Any], None], value: Any) -> None:
    """Call back; what a user's callback raises must not end the model."""
    try:
        callback(value)
    except Exception:
        logging.getLogger(__name__).exception("the callback %r failed", callback)
