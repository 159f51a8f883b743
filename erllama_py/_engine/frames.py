"""The frames between the core and a model process.

Frames are typed: what does not decode as one of these classes is a protocol error, and no
frame carries code or pickled objects.  How one is bytes: ``_engine/framing.py``.

KV never travels in a frame.  The core owns shared-memory segments; a :class:`Segment`
frame carries one's descriptor, and every other frame speaks of extents in it.

A request's life on the wire::

    core                                   model process
      Submit  ----------------------------->  checked, tokenised, queued
            <-----------------------------  Accepted    (or Failed)
            <-----------------------------  Lookup      a slot is free: what is cached?
      Plan    ----------------------------->  restores, then prefills the rest
            <-----------------------------  Admitted    the hit as it turned out
            <-----------------------------  Restored    the plan's pieces may be unpinned
            <-----------------------------  Token ...   text and id, one frame a token
            <-----------------------------  WantDraft   of another model, if it asked for one
      Drafted ----------------------------->  or nothing, if that cannot
            <-----------------------------  Captured .. a block is in its extent
            <-----------------------------  Saved ...   a row is complete
            <-----------------------------  Done | Failed
            <-----------------------------  Closed      the slot is free again

A *transfer* (``_engine/transfer.py``) is a request that restores a row to pack it in
other pieces.  Its answer is Packed in place of all that is between Restored and Closed.

An exact hit samples its first token from stored logits, so there Admitted and Token
come before Restored.  The finish row's Captured and Saved come after Done: a reply
waits for no save.

Tokens travel as little-endian u32 bytes, the layout that cache keys hash.
"""

from __future__ import annotations

from typing import Any

import msgspec

from erllama_py._backends.base import BackendConfig, BackendInfo
from erllama_py._cache.grade import Grade
from erllama_py._cache.lease import Piece
from erllama_py._cache.origin import UNKNOWN, Origin
from erllama_py._cache.policy import Policy
from erllama_py._cache.ram import Extent
from erllama_py._engine.adapterset import NO_ADAPTERS, AdapterSet
from erllama_py._engine.spans import Part
from erllama_py.config import GenerateOptions
from erllama_py.types import Markers

__all__ = (
    "Accepted",
    "Adapt",
    "Admitted",
    "Answer",
    "AnyFrame",
    "Call",
    "Cancel",
    "Captured",
    "Closed",
    "Done",
    "Drafted",
    "EndSession",
    "Failed",
    "Forget",
    "Frame",
    "Grants",
    "Kept",
    "Load",
    "LoadFailed",
    "Loaded",
    "Log",
    "Lookup",
    "Packed",
    "PackedPart",
    "Phase",
    "Plan",
    "Refused",
    "Restored",
    "Saved",
    "SavedWhole",
    "Scored",
    "Segment",
    "Speculated",
    "Stop",
    "Stored",
    "Submit",
    "Token",
    "Trace",
    "Verified",
    "WantDraft",
)


class Frame(msgspec.Struct, frozen=True, tag=True, tag_field="t", array_like=True):
    """Base of all frames."""


# -- parts of frames ------------------------------------------------------------------


class Stored(msgspec.Struct, frozen=True, array_like=True):
    """Bytes in an extent with their CRC-32C."""

    extent: Extent
    nbytes: int
    crc: int


class PackedPart(msgspec.Struct, frozen=True, array_like=True):
    """Positions [start, end) packed into ``nbytes`` bytes with their CRC-32C."""

    start: int
    end: int
    nbytes: int
    crc: int


class Speculated(msgspec.Struct, frozen=True, array_like=True):
    """What came of a request's speculation."""

    drafted: int
    """Tokens that were compared; of a draft found wrong before its check, the wrong one."""
    accepted: int
    plain: str
    """Why nothing was drafted, where that has a reason of its own."""


# -- core to model ---------------------------------------------------------------------


class Load(Frame, frozen=True):
    """First frame: what to load."""

    backend: BackendConfig
    policy: Policy
    caching: bool
    adapters: AdapterSet = NO_ADAPTERS
    """What the first request computes with."""
    thinking: Markers | None = None
    """``None``: as the chat template has them; without texts: none."""
    tool_calls: Markers | None = None
    """The same of tool calls."""


class Segment(Frame, frozen=True):
    """Where extents lie: shared memory, or a file of a tier; its descriptor comes along.

    Memory is mapped.  A file is only ever read at an offset: a mapped one that somebody
    cuts is a SIGBUS, a read of it is merely short.
    """

    index: int
    size: int
    file: bool = False


class Forget(Frame, frozen=True):
    """No plan will name this segment again."""

    index: int


class Grants(Frame, frozen=True):
    """Extents the engine may capture into: blocks (and tails) or logits."""

    blocks: list[Extent]
    logits: list[Extent]


class Submit(Frame, frozen=True):
    """A request.  ``text`` is tokenised by the model process where given."""

    id: int
    mode: str
    """``complete``, ``infer``, ``prefill_only`` or ``verify``; of a transfer ``export`` or
    ``import``."""
    text: bytes | None
    tokens: bytes
    options: GenerateOptions
    candidates: bytes = b""
    """Of a ``verify``: the drafted tokens."""
    session: int = 0
    """Number of its session; 0: none.  A session has one request at a time that is not
    over."""


class EndSession(Frame, frozen=True):
    """No request of this session will come: its sequence need not be kept."""

    session: int


class Plan(Frame, frozen=True):
    """The answer to :class:`Lookup`."""

    id: int
    kind: str
    """``exact``, ``partial``, ``cold``, or ``sticky`` where the lookup had ``held``."""
    prefix_len: int
    keep: int
    """Tokens to have in the KV after restoring; pieces may cover more."""
    pieces: list[Piece]
    logits: Stored | None
    canonical: bool
    """Every piece is bit-exact: from a multiple of the chunk on, going on stays exact."""
    captured: int
    """Leading tokens that need no capture."""


class Drafted(Frame, frozen=True):
    """The answer to :class:`WantDraft`; without tokens where there is none."""

    id: int
    length: int
    tokens: bytes


class Cancel(Frame, frozen=True):
    """Stop a request at the next tick, or an embedding between two pieces of its work."""

    id: int


class Adapt(Frame, frozen=True):
    """Requests admitted from now on compute with these adapters.

    Those that are not loaded are loaded first; what nobody uses any more is freed.
    Answered like a :class:`Call`: by :class:`Refused` where nothing has changed.
    """

    id: int
    adapters: AdapterSet


class Call(Frame, frozen=True):
    """A question that needs the vocabulary only, or a small job; see ``worker``.

    Answers come as they are ready, not in the order of the questions.
    """

    id: int
    what: str
    data: Any


class Stop(Frame, frozen=True):
    """End cleanly."""


# -- model to core ---------------------------------------------------------------------


class Loaded(Frame, frozen=True):
    """The model serves."""

    info: BackendInfo
    chunk: int
    """Prefill slice in use: a multiple of the block, at most n_ubatch."""


class LoadFailed(Frame, frozen=True):
    """The model could not be loaded; the process ends."""

    reason: Any
    detail: str


class Accepted(Frame, frozen=True):
    """A request passed its checks and is queued."""

    id: int
    tokens: bytes
    """The prompt; empty where the core sent tokens and has it."""


class Lookup(Frame, frozen=True):
    """A slot is free for this request; asks what is cached of its prompt.

    ``resume`` holds the tokens of a preempted request's second admission instead, with the
    one that it has drawn and not evaluated; the counters must not move for those.
    ``adapters`` is the number of its set, which stays the request's to its end.
    ``held`` is how many tokens its session has in the context.  Then nothing is to be looked
    up, and the counters do not move: the plan only says what need not be captured.
    """

    id: int
    resume: bytes | None
    adapters: int
    held: int = 0


class Admitted(Frame, frozen=True):
    """How the request was admitted: the plan's hit, or cold where restoring failed.

    ``sticky`` where it goes on in the cells of its session.
    """

    id: int
    kind: str
    prefix_len: int
    adapters: int
    """As in :class:`Lookup`, which not every request has."""
    stream: bool = False
    """Of a ``sticky`` one: whether its cells are what one stream computed."""


class Restored(Frame, frozen=True):
    """The plan's pieces are not needed any more.

    ``bad`` names nodes whose bytes failed their CRC (``corrupt``) or that the engine
    refused; the request went on cold.
    """

    id: int
    bad: list[int]
    corrupt: bool
    load_ns: int
    """Time spent unpacking."""
    read_ns: int = 0
    """Time spent reading and verifying, most of it beside other work."""
    shared: int = 0
    """Tokens taken over from a live sequence of the context instead of restored."""
    stream: bool = False
    """Whether they and what was restored behind them are what one stream computed."""
    unread: bool = False
    """Whether the plan's logits were damaged, and are computed."""


class Token(Frame, frozen=True):
    """One generated token: its text (may be empty) and id.

    ``token`` is ``None`` for text that was held back by the stop scanner and is let go
    at the end.
    """

    id: int
    data: bytes
    token: int | None
    parts: list[Part] | None = None
    """In the place of ``data``, of a request whose reply is searched for spans."""


class WantDraft(Frame, frozen=True):
    """Asks for up to ``count`` tokens that may follow a request's first ``length``.

    The core has these: it was sent every token.  The request goes on meanwhile.
    """

    id: int
    length: int
    count: int


class Scored(Frame, frozen=True):
    """Log probabilities of the token sent just before, of a request that wants them."""

    id: int
    token: int
    text: bytes
    logprob: float
    top: list[tuple[int, bytes, float]]
    """The likeliest instead, as (token, text, log probability)."""


class Captured(Frame, frozen=True):
    """Positions [start, end) are in the extent, a granted one."""

    id: int
    start: int
    end: int
    stored: Stored
    grade: Grade
    pack_ns: int
    origin: Origin = UNKNOWN


class Saved(Frame, frozen=True):
    """A row of the request's first ``length`` tokens is complete.

    The tail is the part after the last whole block; ``None`` where there is none.
    ``canonical``: the logits are those of a cold, lone prefill, bit for bit.
    """

    id: int
    reason: str
    length: int
    tail: Captured | None
    logits: Stored | None
    canonical: bool
    origin: int = 0
    """Of the last of them."""


class SavedWhole(Frame, frozen=True):
    """A row whose KV is one payload, of a model whose sequences cannot be cut.

    The payload comes as a descriptor of anonymous memory, ``nbytes`` from its start: how
    much it takes is only known when it is packed.
    """

    id: int
    reason: str
    length: int
    nbytes: int
    crc: int
    logits: Stored | None
    canonical: bool
    pack_ns: int
    origin: int = 0


class Packed(Frame, frozen=True):
    """What a transfer was for: its tokens' KV in these parts.

    They come as a descriptor of anonymous memory, one behind the other.
    """

    id: int
    parts: list[PackedPart]
    pack_ns: int


class Trace(Frame, frozen=True):
    """The logits every token was drawn from, of a request with ``trace`` set.

    ``rows`` of them as float32, in a descriptor of anonymous memory.  Comes before Done.
    """

    id: int
    rows: int


class Done(Frame, frozen=True):
    """The reply is complete.  ``saving``: a finish row will follow in ``Saved``."""

    id: int
    finish_reason: str
    stop: bytes | None
    reply: bytes
    prefill_ms: int
    generation_ms: int
    committed: int
    saving: bool
    speculated: Speculated | None = None


class Verified(Frame, frozen=True):
    """The outcome of a ``verify``, in the place of :class:`Done`."""

    id: int
    accepted: int
    following: int | None
    """The model's own next token; ``None`` for the end of generation."""


class Failed(Frame, frozen=True):
    """The request failed; the model goes on."""

    id: int
    reason: Any
    detail: str


class Closed(Frame, frozen=True):
    """The request holds nothing any more; extents it did not use come back.

    What its prefill took, where it had the engine to itself, is a measure for others.
    """

    id: int
    prefill_ns: int = 0
    prefill_tokens: int = 0


class Kept(Frame, frozen=True):
    """So many tokens of a session wait in the context for its next request; 0: none do."""

    session: int
    tokens: int
    stream: bool = False
    """Whether they are what one stream computed."""


class Phase(Frame, frozen=True):
    """What the engine is doing: ``idle``, ``prefilling`` or ``generating``."""

    phase: str


class Answer(Frame, frozen=True):
    """The result of a :class:`Call`."""

    id: int
    value: Any


class Refused(Frame, frozen=True):
    """A :class:`Call` failed."""

    id: int
    reason: Any
    detail: str


class Log(Frame, frozen=True):
    """A line of the engine's own log."""

    level: int
    text: str


AnyFrame = (
    Load
    | Adapt
    | Segment
    | Forget
    | Grants
    | Submit
    | EndSession
    | Plan
    | Drafted
    | Cancel
    | Call
    | Stop
    | Loaded
    | LoadFailed
    | Accepted
    | Lookup
    | Admitted
    | Restored
    | Token
    | WantDraft
    | Scored
    | Captured
    | Saved
    | SavedWhole
    | Packed
    | Trace
    | Done
    | Verified
    | Failed
    | Closed
    | Kept
    | Phase
    | Answer
    | Refused
    | Log
)
