"""One engine identity's part of the cache: lookups, rows and waits."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from erllama_py._cache import key as keys
from erllama_py._cache.divergence import Seen, diverge, evicted
from erllama_py._cache.finding import exact, search
from erllama_py._cache.grade import Grade, Want
from erllama_py._cache.identity import Identity
from erllama_py._cache.lease import COUNTER_OF, Found, Lease
from erllama_py._cache.origin import UNKNOWN, Origin
from erllama_py._cache.ram import Extent
from erllama_py._cache.row import Space
from erllama_py._cache.tier import RAM
from erllama_py._cache.trie import TOKEN_BYTES, Blob, Match, Node, Payload, tokens_upto, walk
from erllama_py._cache.waiters import Waiters

if TYPE_CHECKING:
    from erllama_py._cache.filetier import FileTier
    from erllama_py._cache.shared import Shared

__all__ = ("HeldRow", "Namespace")


class HeldRow(NamedTuple):
    """A row that is pinned to be read as a whole."""

    lease: Lease
    """Its pieces cover the row and may reach beyond it; to be closed."""
    tokens: bytes
    grade: Grade
    whole: bool
    """Whether it is stored in one piece."""
    reason: str
    created: int
    hits: int


class Namespace:
    """Made by ``Cache.namespace``.  Thread-safe."""

    def __init__(self, identity: Identity, shared: Shared) -> None:
        self.identity = identity
        self.shared = shared
        self.description = msgspec.json.encode(identity)
        """The identity as files carry it."""
        self.digest = hashlib.sha256(self.description).digest()
        self.home: FileTier | None = None
        """Where what is stored here is written, besides memory."""
        step = shared.index.block * TOKEN_BYTES
        self.space = Space(identity.fingerprint.hex(), self.digest, step)
        self.waiters = Waiters(shared.lock)
        """Internal to the package, as ``shared`` and ``space`` are."""

    def key(self, tokens: bytes) -> bytes:
        """Return the 32-byte key of encoded tokens."""
        who = self.identity
        return keys.make(who.fingerprint, who.quant_type, who.ctx_params_hash, tokens)

    # -- lookups ----------------------------------------------------------------------

    def lookup(
        self,
        tokens: bytes,
        *,
        parent_key: object = None,
        exactness: str = "token",
        chunk: int,
        threads: int,
        floor: int = 0,
        counted: bool = True,
        worth: Callable[[Sequence[Payload]], int] | None = None,
    ) -> Lease:
        """Find what can be restored for a prompt, and pin it.

        In this order: the row of exactly these tokens; ``parent_key``, if its row is a
        prefix of the prompt, even if only part of it is left; the longest prefix of at
        least ``floor`` tokens; nothing.  The first three all restore the longest prefix
        there is.  Exactly one of the four hit counters moves, if any.

        :param tokens: the prompt, encoded.
        :param parent_key: any value; what is not the key of a fitting row is ignored.
        :param exactness: ``token`` or ``bit``, see :mod:`erllama_py._cache.grade`.
        :param chunk: the request's prefill chunk in tokens, a multiple of the block.
        :param threads: the engine's decode threads.
        :param counted: False for a request that was counted before: a preempted one.
        :param worth: how many of some payloads, from the front, to restore rather than
            to compute.
        """
        want = Want.of(exactness, chunk, threads)
        key = self.key(tokens)
        resumes = self._is_prefix(parent_key, tokens)
        shared = self.shared
        with shared.lock:
            started = time.perf_counter_ns()
            found = self._find(tokens, key, want, floor, resumes=resumes, worth=worth)
            if counted:
                if found.via in ("longest_prefix", "cold") and len(tokens) >= floor * TOKEN_BYTES:
                    self._count_probe(started)
                shared.counters.incr(COUNTER_OF[found.via])
            lease = Lease(self, tokens, want, found, counted=counted)
            lease.seen = self._seen(found, tokens, resumes=resumes)
            self._touch(found, parent_key)
            left = len(tokens) // TOKEN_BYTES - found.prefix_len
            if shared.mover is not None and left >= shared.index.block:
                shared.mover.missed(self)
            return lease

    def preview(
        self,
        tokens: bytes,
        *,
        parent_key: object = None,
        exactness: str = "token",
        chunk: int,
        threads: int,
        floor: int = 0,
        worth: Callable[[Sequence[Payload]], int] | None = None,
    ) -> Seen:
        """Return what a lookup would find, with its parameters.

        Nothing is pinned, counted, or counts as used.
        """
        want = Want.of(exactness, chunk, threads)
        key = self.key(tokens)
        resumes = self._is_prefix(parent_key, tokens)
        with self.shared.lock:
            found = self._find(tokens, key, want, floor, resumes=resumes, worth=worth)
            return self._seen(found, tokens, resumes=resumes)

    def evicted(self, tokens: bytes, longer_than: int, mark: int) -> tuple[bytes, int] | None:
        """Return key and length of the longest row a prompt begins with that is gone.

        Some thousand rows of this process are remembered.

        :param mark: the lookup's serial number: what went later is not meant.
        """
        with self.shared.lock:
            ghosts = {
                key: ghost.length
                for key, ghost in self.space.ghosts.items()
                if ghost.length > longer_than and ghost.gone < mark
            }
        who = self.identity
        hasher = keys.KeyHasher(who.fingerprint, who.quant_type, who.ctx_params_hash)
        return evicted(ghosts, hasher, tokens) if ghosts else None

    def _seen(self, found: Found, tokens: bytes, *, resumes: bool) -> Seen:
        apart = None
        if found.reached is not None:
            apart = diverge(self.space, tokens, found.reached)
        return Seen(
            kind=found.kind,
            via=found.via,
            prefix_len=found.prefix_len,
            label=found.exactness,
            tiers=dict(found.tiers()),
            gated=found.gated,
            resumes=resumes,
            apart=apart,
            mark=self.shared.index.serial(),
        )

    def probe(
        self,
        tokens: bytes,
        *,
        exactness: str = "token",
        chunk: int,
        threads: int,
        floor: int = 0,
        worth: Callable[[Sequence[Payload]], int] | None = None,
    ) -> int:
        """Return the ``prefix_len`` a lookup would report.

        Nothing is pinned, and nothing counted but the probe itself.
        """
        want = Want.of(exactness, chunk, threads)
        key = self.key(tokens)
        with self.shared.lock:
            started = time.perf_counter_ns()
            found = self._find(tokens, key, want, floor, resumes=False, worth=worth)
            if len(tokens) >= floor * TOKEN_BYTES:
                self._count_probe(started)
        return found.prefix_len

    def _find(
        self,
        tokens: bytes,
        key: bytes,
        want: Want,
        floor: int,
        *,
        resumes: bool,
        worth: Callable[[Sequence[Payload]], int] | None = None,
    ) -> Found:
        length = len(tokens) // TOKEN_BYTES
        row = self.space.rows.get(key)
        if row is not None and row.node.whole and row.logits is not None and not want.bit:
            only = row.node.usable(want)
            if only is not None:
                return Found(
                    "exact", length, length, (only,), row.logits, "token", self.space.root, row
                )
        if row is not None and row.logits is not None and row.canonical == want.chunk:
            same = exact(self.space, tokens, want.chunk)
            if same is not None:
                payloads, logits = same.payloads, row.logits
                return Found("exact", length, length, payloads, logits, "bit", same.tip, row)
        match = search(self.space, tokens, want)
        reached = match.tip
        gated = _cut_to_worth(match, worth) if worth is not None else 0
        if row is not None and match.length == length and not want.bit:
            keep = length if row.logits else length - 1
            label = "token"
            return Found("exact", length, keep, match.payloads, row.logits, label, match.tip, row)
        # At least one token is left to compute, for its logits.
        keep = min(match.length, length - 1)
        aligned = keep // want.chunk * want.chunk
        if want.bit and keep != aligned:
            # What is in one piece cannot be cut down to a multiple of the chunk.
            keep = 0 if match.payloads and match.payloads[0].node.whole else aligned
        via = "resume" if resumes else "longest_prefix"
        if keep <= 0 or (keep < floor and not resumes):
            tip = self.capture_tip(tokens, want)
            return Found("cold", 0, 0, (), None, None, tip, None, gated, reached)
        pure = keep == aligned and all(
            p.grade == want.whole for p in match.payloads if p.node.start < keep
        )
        label = "bit" if pure else "token"
        tip = self.capture_tip(tokens, want) if want.bit else match.tip
        return Found(via, keep, keep, match.payloads, None, label, tip, None, gated, reached)

    def capture_tip(self, tokens: bytes, want: Want) -> Node:
        """Return where a request that may compute canonically starts to capture.

        Behind the whole chunks that are there.  Others are captured again, since the
        canonical ones that follow can only follow their kind.  At ``bit`` the prompt's
        last slice is captured even where it lies in somebody's whole chunk.
        """
        if want.bit:
            boundary = len(tokens) // TOKEN_BYTES // want.chunk * want.chunk
            tokens = tokens[: boundary * TOKEN_BYTES]
        strictly = want._replace(bit=True)
        return walk(self.space.root, tokens, strictly, self.shared.index.block).tip

    def _is_prefix(self, parent_key: object, tokens: bytes) -> bool:
        """Whether a row with this key is, or was, there and is a prefix of the prompt."""
        if not isinstance(parent_key, bytes):
            return False
        with self.shared.lock:
            row = self.space.rows.get(parent_key)
            known = row or self.space.ghosts.get(parent_key)
            length = known.length if known else 0
        if not length or length * TOKEN_BYTES > len(tokens):
            return False
        return self.key(tokens[: length * TOKEN_BYTES]) == parent_key

    def _touch(self, found: Found, parent_key: object) -> None:
        index, now = self.shared.index, self.shared.clock()
        row = found.row
        if found.via == "resume" and isinstance(parent_key, bytes):
            row = self.space.rows.get(parent_key)
        if row is not None:
            row.hits += 1
            index.touch_row(row, now, 1.0)
        mover = self.shared.mover
        if mover is not None and row is not None:
            mover.used(row)
        if mover is not None and found.keep:
            mover.used(found.payloads[-1])
        if found.keep and (row is None or row.node is not found.payloads[-1].node):
            index.touch(found.payloads[-1].node, now, 1.0)

    def _count_probe(self, started: int) -> None:
        counters = self.shared.counters
        counters.incr("longest_prefix_probes")
        counters.add("longest_prefix_ns", time.perf_counter_ns() - started)

    # -- rows -------------------------------------------------------------------------

    def status(self, key: bytes) -> str | None:
        """Return ``available``, ``writing``, or None for a key that is neither."""
        with self.shared.lock:
            if key in self.space.rows:
                return "available"
            return "writing" if self.waiters.writing(key) else None

    def await_row(self, key: object, timeout_s: float, callback: Callable[[], None]) -> None:
        """Call back once when the row is published or given up, or the time is over.

        At once, on this thread, if it is not being written or there is no time.
        """
        if isinstance(key, bytes) and timeout_s > 0:
            with self.shared.lock:
                if key not in self.space.rows and self.waiters.writing(key):
                    self.waiters.wait(key, timeout_s, callback)
                    return
        callback()

    def pin(self, key: bytes) -> bool:
        """Protect a row and all its blocks from eviction; False if there is no such row.

        Counted: undo each with :meth:`unpin`.
        """
        with self.shared.lock:
            row = self.space.rows.get(key)
            if row is not None:
                self.shared.index.pin_row(row)
            return row is not None

    def unpin(self, key: bytes) -> None:
        """Undo one :meth:`pin`.  A row that is gone or not pinned is ignored."""
        with self.shared.lock:
            row = self.space.rows.get(key)
            if row is not None and row.pins:
                self.shared.index.unpin_row(row)

    def keep_head(self, tokens: bytes, owner: object) -> None:
        """Protect a head from eviction: its whole blocks, those to come included.

        Asked again it counts as just used; see :mod:`erllama_py._cache.heads` for bounds.

        :param owner: who may let go of it with ``Cache.disown_heads``.
        """
        with self.shared.lock:
            self.shared.index.heads.keep(self.space, tokens, owner)
            self.shared.settle()

    def quarantine(self, node_ids: Iterable[int], *, corrupt: bool = True) -> int:
        """Drop payloads by their pieces' ``node_id``, and all that builds on them.

        :param corrupt: they failed their checksum, which ``corrupt_files`` counts; False
            for payloads that are only suspected.
        :return: how many were still there.
        """
        index = self.shared.index
        with self.shared.lock:
            dropped = damaged = 0
            for one in node_ids:
                payload = index.payloads.get(one)
                # Another live process may have reused the room: gone, not damaged.
                damaged += payload is not None and payload.tier.ours
                dropped += index.quarantine(one)
            if corrupt:
                self.shared.counters.add("corrupt_files", damaged)
            self.shared.settle()
        return dropped

    def has(self, key: bytes) -> bool:
        """Whether there is such a row."""
        return key in self.space.rows

    def hold_row(self, key: bytes, want: Want) -> HeldRow | None:
        """Pin a row to be read, or return None where there is none.

        It counts as no hit.  Payloads that ``want`` would take are preferred; for a copy
        any will do.
        """
        with self.shared.lock:
            row = self.space.rows.get(key)
            if row is None:
                return None
            payloads: list[Payload] = []
            node = row.node
            while node.parent is not None:
                best = node.usable(want.loosely) or next(iter(node.variants.values()), None)
                if best is None:
                    return None
                payloads.insert(0, best)
                node = node.parent
            tokens = tokens_upto(row.node)[: row.length * TOKEN_BYTES]
            root = self.space.root
            found = Found("exact", row.length, row.length, payloads, None, "token", root, None)
            grades = {payload.grade for payload in payloads}
            grade = grades.pop() if len(grades) == 1 else want.stream
            lease = Lease(self, tokens, want, found, counted=False)
            whole, reason = row.node.whole, row.reason
            return HeldRow(lease, tokens, grade, whole, reason, row.created, row.hits)

    def fill(self, tokens: bytes, want: Want) -> Lease:
        """Return a lease that blocks of a prompt can be added to, from the first one on."""
        with self.shared.lock:
            found = Found("cold", 0, 0, (), None, None, self.space.root, None)
            return Lease(self, tokens, want, found, counted=False)

    def go_on(self, tokens: bytes, want: Want) -> Lease:
        """Return a lease to add to what there is of a prompt; nothing is looked up for it."""
        with self.shared.lock:
            tip = walk(self.space.root, tokens, want.loosely, self.shared.index.block).tip
            found = Found("cold", 0, 0, (), None, None, tip, None)
            return Lease(self, tokens, want, found, counted=False)

    # -- sequences in one piece ---------------------------------------------------------

    def add_whole(
        self,
        tokens: bytes,
        grade: Grade,
        extent: Extent,
        nbytes: int,
        checksum: int,
        origin: Origin = UNKNOWN,
    ) -> bool:
        """Store a sequence whose KV is one payload; the extent is given away.

        Returns whether it was new.
        """
        shared = self.shared
        with shared.lock:
            new = False
            if not shared.closed:
                place = shared.ram.trim(extent, nbytes)
                blob = Blob({RAM: place}, nbytes, checksum, origin)
                now = shared.clock()
                node, new = shared.index.add_whole(self.space, tokens, grade, blob, now)
                if new:
                    shared.stored(self, node.variants[grade])
                else:
                    shared.give_back(blob.extent)
            shared.settle()
        return new


def _cut_to_worth(match: Match, worth: Callable[[Sequence[Payload]], int]) -> int:
    """Shorten a match to what is quicker to restore than to compute; return by how much."""
    before, count = match.length, worth(match.payloads)
    if count < len(match.payloads):
        match.length = match.payloads[count].node.start
        del match.payloads[count:]
        while match.tip.end > match.length and match.tip.parent is not None:
            match.tip = match.tip.parent
    return before - match.length
