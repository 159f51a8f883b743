"""One model's use of the shared cache, on the core's side.

Between a host, which speaks in frames and requests, and the cache, which speaks in
leases and extents: it answers lookups and enters what was captured.  What it is captured
into: :mod:`~erllama_py._engine.supply`.

Requests are handled on the host's reader thread, except a lookup that waits for a row in
flight, which may be answered on the cache's timer.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from erllama_py._backends.base import BLOCK, BackendInfo
from erllama_py._cache.grade import Want, streamed, whole_chunk
from erllama_py._cache.identity import Identity
from erllama_py._cache.lease import Lease, NewLogits, Tail
from erllama_py._cache.namespace import Namespace
from erllama_py._cache.origin import Origin
from erllama_py._cache.policy import should_finish_save
from erllama_py._cache.store import Cache
from erllama_py._cache.trie import TOKEN_BYTES
from erllama_py._engine.frames import (
    Captured,
    Done,
    Lookup,
    Plan,
    Restored,
    Saved,
    SavedWhole,
    Stored,
)
from erllama_py._engine.gate import Gate
from erllama_py._engine.modelfile import ModelFile
from erllama_py._engine.noted import Beyond, Noted, around
from erllama_py._engine.spaces import Spaces
from erllama_py._engine.supply import Supply, Target
from erllama_py._engine.tiers import home_of
from erllama_py._engine.transfer import Transfer

if TYPE_CHECKING:
    from erllama_py._cache.divergence import Seen
    from erllama_py._cache.ram import Extent
    from erllama_py._engine.request import Request
    from erllama_py._engine.wire import Wire
    from erllama_py.config import GenerateOptions, LoadConfig

__all__ = ("ModelCache",)

SPARE_BLOCKS = 2
"""Granted blocks beyond one batch and one tail per slot."""


class ModelCache:
    """The cache as one loaded model sees it."""

    def __init__(self, cache: Cache, config: LoadConfig) -> None:
        self._cache = cache
        self._config = config
        self._policy = config.policy
        self._file = ModelFile(config)
        self._lock = threading.Lock()
        self.spaces = Spaces(cache, home_of(cache, config))
        self._chunk = 0
        self._threads = 0
        self._block_bytes = 0
        self._logits_bytes = 0
        self._serving: Wire | None = None
        """The process that is up."""
        self._supply: Supply | None = None
        """Its own, once its fingerprint is known."""
        self.gate = Gate()
        # The stub computes nothing, and restoring it is slower than that.
        gated = config.backend_config.backend != "stub"
        self._worth = self.gate.worth if gated else None
        self._quicker = self.gate.quicker if gated else None

    @property
    def namespace(self) -> Namespace | None:
        """Where the next request's rows are; ``None`` where nothing is cached for the model."""
        return self.spaces.present

    @property
    def fingerprint(self) -> bytes:
        """The first part of this model's keys; zeros until it is known."""
        return self._file.fingerprint

    @property
    def fingerprint_mode(self) -> str:
        """How that was made: ``safe``, ``gguf_chunked`` or ``fast_unsafe``."""
        return self._file.mode

    # -- a process comes and goes ----------------------------------------------------------

    def attach(self, info: BackendInfo, chunk: int, life: Wire) -> None:
        """Serve a process that has just loaded, as soon as its fingerprint is known.

        :raises ErllamaError: ``load_failed``: its file is gone meanwhile.
        """
        with self._lock:
            self._serving = life
        if self._config.caching and (info.blocks or info.whole_rows):
            self._file.look()
            if not self._file.known:
                self.spaces.begin(None)  # those of an earlier process are another file's
            self._file.when_known(lambda: self._attach(info, chunk, life))

    def _attach(self, info: BackendInfo, chunk: int, life: Wire) -> None:
        self._chunk = chunk
        self._threads = info.n_threads
        self._block_bytes, self._logits_bytes = info.block_bytes, info.logits_bytes
        blocks = info.n_batch // BLOCK + info.n_seq_max + SPARE_BLOCKS if info.blocks else 0
        supply = Supply(
            self._cache,
            life,
            blocks=Target(blocks, info.block_bytes),
            logits=Target(2 * info.n_seq_max + SPARE_BLOCKS, info.logits_bytes),
        )
        with self._lock:
            if self._serving is not life:
                return  # it has ended while its file was hashed
            self._supply = supply
        # Only now, since lookups in it need the supply.
        engine = {**info.identity, "file": self._file.content, "backend": info.backend}
        self.spaces.begin(
            Identity(
                fingerprint=self.fingerprint,
                quant_type=self._config.quant_type,
                ctx_params_hash=self._config.ctx_params_hash,
                engine=tuple(sorted(engine.items())),
            )
        )
        supply.start()

    def detach(self) -> None:
        """Take back what a process that has ended was granted."""
        with self._lock:
            supply, self._supply = self._supply, None
            self._serving = None
        if supply is not None:
            supply.end()

    def close(self) -> None:
        """The model is gone for good."""
        self._file.close()

    def replenish(self) -> None:
        """Have the extents that were captured into replaced."""
        if (supply := self._supply) is not None:
            supply.replenish()

    def _spent(self, *extents: Extent) -> None:
        if (supply := self._supply) is not None:
            supply.spent(*extents)

    @property
    def reader(self) -> Want:
        """What the model can use at exactness ``token``."""
        return Want.of("token", self._chunk, self._threads)

    # -- requests ----------------------------------------------------------------------------

    def admitted(self, request: Request, adapters: int) -> None:
        """A request computes with this set of adapters, from its lookup to its last row."""
        request.namespace = self.spaces.of(adapters)

    def probe(self, tokens: bytes) -> int:
        """Return the prefix length that the next admission of these tokens would report."""
        if self.namespace is None:
            return 0
        return self.namespace.probe(
            tokens,
            exactness=self._config.exactness,
            chunk=self._chunk,
            threads=self._threads,
            floor=self._policy.min_tokens,
            worth=None if self._config.exactness == "bit" else self._quicker,
        )

    @property
    def keeps_heads(self) -> bool:
        """Whether there is any use in heads.

        Not without blocks: then rows are whole sequences, and none ends where a head does.
        """
        return self.namespace is not None and self._block_bytes > 0

    def keep_head(self, tokens: bytes) -> None:
        """Protect what every conversation of a kind begins with.

        Not what is shorter than a lookup would answer with.
        """
        least = max(BLOCK, self._policy.min_tokens) * TOKEN_BYTES
        if self.namespace is not None and len(tokens) >= least:
            self.namespace.keep_head(tokens, self)

    def disown_heads(self) -> None:
        """Let go of the heads kept for this model, which is unloaded.

        Their blocks stay until their turn to be evicted comes.  They were used often and
        lately, so that is late: who loads the model again soon finds them, and nobody
        else's work has to make room for a model that may never come back.
        """
        self._cache.disown_heads(self)

    def lookup(self, request: Request, frame: Lookup, life: Wire) -> None:
        """Answer a lookup; where its parent row is being saved, once that is over."""
        namespace, supply = request.namespace, self._supply
        if namespace is None or supply is None:  # its file is still being hashed
            kind = "sticky" if frame.held else "cold"
            keep = frame.held
            life.send(Plan(frame.id, kind, keep, keep, [], None, canonical=False, captured=0))
            return
        if isinstance(request, Transfer):
            self._answer_transfer(request, supply)
            return
        if frame.held:
            self._answer_held(request, frame, life)
            return
        if frame.resume is not None or request.parent_key is None:
            self._answer(request, frame, supply)
            return
        namespace.await_row(
            request.parent_key,
            self._policy.session_resume_wait_ms / 1000,
            lambda: self._answer(request, frame, supply),
        )

    def _answer(self, request: Request, frame: Lookup, supply: Supply) -> None:
        namespace = request.namespace
        assert namespace is not None
        again = frame.resume is not None
        tokens = request.tokens.tobytes() if frame.resume is None else frame.resume
        began = time.perf_counter_ns()
        lease = namespace.lookup(
            tokens,
            parent_key=None if again else request.parent_key,
            exactness="bit" if request.options.bit else "token",
            chunk=self._chunk,
            threads=self._threads,
            floor=0 if again else self._policy.min_tokens,
            counted=not again,
            worth=None if request.options.bit else self._worth,
        )
        took = time.perf_counter_ns() - began
        with self._lock:
            # This may run on a timer's thread: meanwhile the request may have ended, or
            # have been sent to the next life of the process, which asks for itself.
            late = request.life is not supply.wire or request.closed
            if not late:
                before, request.lease = request.lease, lease
        if late:
            lease.close()
            return
        if before:
            before.close()
        if not again:
            request.lookup = self._noted(namespace, lease.seen, tokens, request.options, took)
            request.lookup.parented = request.parent_key is not None
        request.restoring = [piece.node_id for piece in lease.pieces]
        try:
            supply.introduce(piece.extent.segment for piece in lease.pieces)
            if lease.logits:
                supply.introduce([lease.logits.extent.segment])
        except KeyError:
            # A file of another process's that is gone, and all that was read from it.
            namespace.quarantine(request.restoring, corrupt=False)
            lease.restart()
        if not again:
            request.exactness = lease.label
            request.tiers = dict(lease.tiers)
        supply.wire.send(self._plan(frame.id, lease))

    def _answer_held(self, request: Request, frame: Lookup, life: Wire) -> None:
        """Its session has its prefix: say what need not be captured of that."""
        assert request.namespace is not None
        lease = request.namespace.go_on(
            request.tokens.tobytes(), Want.of("token", self._chunk, self._threads)
        )
        with self._lock:
            before, request.lease = request.lease, lease
        if before:
            before.close()
        keep = frame.held
        life.send(
            Plan(frame.id, "sticky", keep, keep, [], None, canonical=False, captured=lease.captured)
        )

    def _answer_transfer(self, request: Transfer, supply: Supply) -> None:
        # As if admitted: where it ends the process, the next one is not to have it, too.
        request.admitted = True
        request.lend(supply.wire, self._cache.number())
        request.restoring = [piece.node_id for piece in request.pieces]
        try:
            if request.mode == "export":
                supply.introduce(piece.extent.segment for piece in request.pieces)
        except KeyError:
            request.pieces = []  # a file of another process's that is gone
        supply.wire.send(request.plan())

    def preview(
        self, tokens: bytes, options: GenerateOptions, parent_key: bytes | None
    ) -> Noted | None:
        """Return what a lookup would find now; None where nothing is cached for this model.

        A parent row that is just being saved is waited for, as an admission does.
        """
        namespace = self.namespace
        if namespace is None:
            return None
        if parent_key is not None:
            ready = threading.Event()
            wait_s = self._policy.session_resume_wait_ms / 1000
            namespace.await_row(parent_key, wait_s, ready.set)
            ready.wait()
        began = time.perf_counter_ns()
        seen = namespace.preview(
            tokens,
            parent_key=parent_key,
            exactness="bit" if options.bit else "token",
            chunk=self._chunk,
            threads=self._threads,
            floor=self._policy.min_tokens,
            worth=None if options.bit else self._quicker,
        )
        noted = self._noted(namespace, seen, tokens, options, time.perf_counter_ns() - began)
        noted.parented = parent_key is not None
        return noted

    def _noted(
        self,
        namespace: Namespace,
        seen: Seen,
        tokens: bytes,
        options: GenerateOptions,
        took_ns: int,
    ) -> Noted:
        """Keep what is needed of a lookup to say later why it found no more.

        The tokens only where something is left to look at: an exact hit has nothing to
        explain, and in a cache without others and without evictions nothing else can.
        """
        settled = seen.apart is None or self._cache.alone(namespace)
        return Noted(
            seen=seen,
            namespace=namespace,
            total=len(tokens) // TOKEN_BYTES,
            excerpt=around(tokens, seen),
            bit=options.bit,
            floor=self._policy.min_tokens,
            took_ns=took_ns,
            tokens=None if settled else tokens,
            settled=settled,
        )

    def beyond(self, noted: Noted) -> Beyond | None:
        """Look where more of a prompt is or was cached; None where that cannot be told.

        As of the lookup: what came later is left out.  What went since is not found.
        """
        apart, namespace, tokens = noted.seen.apart, noted.namespace, noted.tokens
        if noted.settled or apart is None:
            return Beyond([], None)
        if tokens is None:
            return None
        return Beyond(
            self._cache.elsewhere(namespace, tokens, apart.shared, noted.seen.mark),
            namespace.evicted(tokens, apart.shared, noted.seen.mark),
        )

    def _plan(self, number: int, lease: Lease) -> Plan:
        return Plan(
            id=number,
            kind=lease.kind,
            prefix_len=lease.prefix_len,
            keep=lease.keep,
            pieces=lease.pieces,
            logits=lease.logits
            and Stored(lease.logits.extent, self._logits_bytes, lease.logits.crc),
            canonical=lease.label == "bit",
            captured=lease.captured,
        )

    def restored(self, request: Request, frame: Restored) -> None:
        """The engine needs the plan's pieces no more."""
        if isinstance(request, Transfer):
            request.restoring = []
            request.take_back()
            if frame.bad and request.namespace:
                request.namespace.quarantine(frame.bad, corrupt=frame.corrupt)
            return
        self._cache.counters.add("load_total_ns", frame.load_ns)
        took = frame.load_ns + frame.read_ns
        request.restore_ns = (request.restore_ns or 0) + took
        if frame.shared and request.exactness:
            # Taken over in the context, where it may have been decoded, or have had company.
            request.exactness = "stream" if frame.stream else "token"
        if frame.unread and request.exactness == "bit" and not request.options.bit:
            request.exactness = "token"  # its last token was decoded again, alone
        if request.lease and not frame.bad and not frame.shared:
            nbytes = sum(piece.nbytes for piece in request.lease.pieces)
            self.gate.restored(request.lease.tiers, nbytes, took)
        lease, namespace = request.lease, request.namespace
        request.restoring = []
        if lease is None or namespace is None:
            return
        if frame.bad:
            namespace.quarantine(frame.bad, corrupt=frame.corrupt)
            lease.restart()
        else:
            lease.restored(logits_damaged=frame.unread)

    def captured(self, request: Request, frame: Captured) -> None:
        """Enter a block into the request's chain."""
        extent = frame.stored.extent
        self._cache.counters.add("pack_total_ns", frame.pack_ns)
        self._spent(extent)
        lease = request.lease
        if lease is None or frame.start < lease.captured:
            # Over already, or computed again after a restore that failed.
            self._cache.release(extent)
            return
        lease.add_block(
            frame.start,
            request.tokens[frame.start : frame.end].tobytes(),
            frame.grade,
            extent,
            frame.stored.nbytes,
            frame.stored.crc,
            frame.origin,
        )

    def saved(self, request: Request, frame: Saved) -> None:
        """Enter a row."""
        tail = logits = None
        if frame.tail:
            self._spent(frame.tail.stored.extent)
            self._cache.counters.add("pack_total_ns", frame.tail.pack_ns)
            stored = frame.tail.stored
            tail = Tail(
                frame.tail.start,
                stored.extent,
                stored.nbytes,
                stored.crc,
                frame.tail.grade,
                frame.tail.origin,
            )
        if frame.logits:
            logits = self._logits_of(frame, frame.logits)
        lease = request.lease
        if lease is None:
            for part in (tail, logits):
                if part:
                    self._cache.release(part.extent)
            return
        if lease.add_row(
            request.tokens[: frame.length].tobytes(), frame.reason, tail=tail, logits=logits
        ):
            request.saved = max(request.saved, frame.length)

    def saved_whole(self, request: Request, frame: SavedWhole, fd: int) -> None:
        """Enter a row whose KV is one payload; takes over the descriptor."""
        self._cache.counters.add("pack_total_ns", frame.pack_ns)
        lease, namespace = request.lease, request.namespace
        logits = None
        if frame.logits:
            logits = self._logits_of(frame, frame.logits)
        try:
            extent = self._cache.reserve(frame.nbytes) if lease and namespace else None
            if extent is not None:
                os.preadv(fd, [self._cache.view(extent)[: frame.nbytes]], 0)
        finally:
            os.close(fd)
        if lease is None or namespace is None:
            if logits:
                self._cache.release(logits.extent)
            return
        tokens = request.tokens[: frame.length].tobytes()
        if extent is not None:
            grade = whole_chunk(self._chunk) if frame.canonical else streamed(self._threads)
            origin = Origin(frame.origin)
            namespace.add_whole(tokens, grade, extent, frame.nbytes, frame.crc, origin)
        if lease.add_row(tokens, frame.reason, logits=logits):
            request.saved = max(request.saved, frame.length)

    def _logits_of(self, frame: Saved | SavedWhole, stored: Stored) -> NewLogits:
        self._spent(stored.extent)
        return NewLogits(stored.extent, stored.crc, frame.canonical, frame.origin)

    def count_packing(self, took_ns: int) -> None:
        """Count the time of a packing that is no request's save."""
        self._cache.counters.add("pack_total_ns", took_ns)

    def finish_key(self, request: Request, frame: Done) -> bytes | None:
        """Return the key of the whole context, and announce its row where one follows.

        ``None`` below the policy's ``min_tokens``, or where nothing is cached.
        """
        namespace = request.namespace
        if namespace is None or not should_finish_save(frame.committed, self._policy):
            return None
        tokens = request.tokens[: frame.committed].tobytes()
        finish_key = namespace.key(tokens)
        if frame.saving and request.lease:
            if not request.lease.broken:
                request.saved = max(request.saved, frame.committed)
            request.lease.expect_row(finish_key)
            request.expected_row = finish_key
        return finish_key

    def closed(
        self, request: Request, *, died: bool = False, prefilled: tuple[int, int] = (0, 0)
    ) -> None:
        """The request holds nothing in the engine any more.

        :param prefilled: tokens, and nanoseconds, of prefill without others beside it.
        :param died: the process died with it.  What it was restoring may be why, and is
            not given to another one.
        """
        self.gate.prefilled(*prefilled)
        with self._lock:
            request.closed = True
            lease, request.lease = request.lease, None
        if died and request.restoring and request.namespace:
            request.namespace.quarantine(request.restoring, corrupt=False)
        request.restoring = []
        if isinstance(request, Transfer):
            request.take_back()
        if lease is None:
            return
        if request.expected_row:
            lease.abandon_row(request.expected_row)
        lease.close()
