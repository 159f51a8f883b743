"""Whole rows as files: out of the cache, and into it, through a loaded model.

The cache holds a row in blocks, which are of use to nobody else.  A KVC file holds it as
one payload, what llama.cpp's ``llama_state_seq_get_data`` gives for a sequence of exactly
these tokens.  Only the engine can make one of the other, so both ways lead through a
model that is loaded, as a :class:`~erllama_py._engine.transfer.Transfer`.

Who may use a file.  Its key names fingerprint, quantisation, ``ctx_params_hash`` and
tokens.  What else KV depends on is the *engine identity* (docs/design/cache.md), which our
files carry: it must be the model's, to the last bit.  The original's files do not carry
it, so somebody has to vouch for them.  What is taken in serves at exactness ``token``.
"""

from __future__ import annotations

import collections
import contextlib
import importlib.metadata
import json
import logging
import os
import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from erllama_py._cache import kvc
from erllama_py._cache.key import TOKEN_BYTES
from erllama_py._cache.kvc import Meta
from erllama_py._cache.kvcrow import opened_row
from erllama_py._cache.lease import REASONS, Tail
from erllama_py._cache.namespace import HeldRow, Namespace
from erllama_py._cache.ram import Extent
from erllama_py._engine.frames import PackedPart
from erllama_py._engine.host import ModelHost
from erllama_py._engine.registry import core
from erllama_py._engine.transfer import Payload, Transfer
from erllama_py.errors import ErllamaError

__all__ = ("TIMEOUT_S", "Exported", "export", "import_file", "offer", "provenance")

TIMEOUT_S: Final = 30.0
"""How long a row waits for a slot of its model."""

_REJECTED: Final = ("damaged", "rejected")


class Exported(NamedTuple):
    """A row as a file holds it."""

    meta: Meta
    payload: bytes


def provenance() -> dict[str, Any]:
    """Return the facts of a file that is written here and now."""
    now = int(time.time())
    try:
        version = importlib.metadata.version("erllama-py")
    except importlib.metadata.PackageNotFoundError:  # run from its source, not installed
        version = "unknown"
    return {
        "creation_time": now,
        "last_used_time": now,
        "hostname": (platform.node() or "unknown").encode(),
        "erllama_version": version.encode(),
    }


# -- out ----------------------------------------------------------------------------------


def export(key: bytes, timeout_s: float = TIMEOUT_S) -> Exported:
    """Return a row of the engine's cache as one payload.

    :raises ErllamaError: ``not_found``: no such row; ``model_not_loaded``: no loaded model
        has it; ``busy``: no slot or cells were free in time; ``window``: it ends inside a
        longer row, where the cells of a sliding window are gone; ``damaged``: it was, and
        is gone now; ``rejected``: the engine took it no more; ``oom``,
        ``context_overflow``.
    :raises ModelGone: the model ended meanwhile.
    """
    host, namespace = _holder(key)
    held = namespace.hold_row(key, host.cache.reader)
    if held is None:
        raise _no_row(key)
    with held.lease:
        payload = _stored_whole(held, namespace) if held.whole else _through(host, held, timeout_s)
        return Exported(_meta(host, namespace, held), payload)


def _holder(key: bytes) -> tuple[ModelHost, Namespace]:
    """Return a loaded model whose cache has a row, the least busy one."""
    found = [
        (host, space)
        for host in core().hosts()
        for space in host.cache.spaces.all()
        if space.has(key)
    ]
    if found:
        return min(found, key=lambda pair: (pair[0].pending_len, pair[0].phase != "idle"))
    if not core().cache.holds(key):
        raise _no_row(key)
    raise ErllamaError(
        "model_not_loaded",
        "only the model that computed this row can export it, and it is not loaded",
        "load it with the same file and options",
    )


def _no_row(key: bytes) -> ErllamaError:
    return ErllamaError(
        "not_found",
        f"no row has the key {key.hex()}",
        "look at cache_snapshot(), or ask for the finish_key of a reply",
    )


def _meta(host: ModelHost, namespace: Namespace, held: HeldRow) -> Meta:
    who, config = namespace.identity, host.config
    facts = provenance()
    return Meta(
        save_reason=held.reason if held.reason in kvc.REASONS else "unknown",
        quant_bits=config.quant_bits,
        fingerprint=who.fingerprint,
        fingerprint_mode=host.cache.fingerprint_mode,
        quant_type=who.quant_type,
        ctx_params_hash=who.ctx_params_hash,
        tokens=held.tokens,
        context_size=config.context_size,
        hit_count=held.hits,
        engine=namespace.description,
        grade=str(held.grade),
        **{**facts, "creation_time": held.created or facts["creation_time"]},
    )


def _stored_whole(held: HeldRow, namespace: Namespace) -> bytes:
    """Return the payload of a row that is stored in one piece: it is the file's already."""
    (piece,) = held.lease.pieces
    data = core().cache.read(piece)
    if data is None:
        namespace.quarantine([piece.node_id])
        raise ErllamaError("damaged", "the row's payload is not what its checksum says")
    return data


def _through(host: ModelHost, held: HeldRow, timeout_s: float) -> bytes:
    transfer = Transfer(held.tokens, pieces=held.lease.pieces)
    _run(host, transfer, timeout_s)
    with open(transfer.fd, "rb") as memory:  # noqa: PTH123 - a descriptor
        return memory.read(sum(part.nbytes for part in transfer.parts))


def _run(host: ModelHost, transfer: Transfer, timeout_s: float) -> None:
    """Have a model do a transfer.

    When this returns or raises, the model process uses none of what was lent to it.
    """
    host.submit(transfer)
    try:
        over = transfer.wait_for(timeout_s)
    except BaseException:  # interrupted: pieces may not be unpinned under the engine
        host.cancel(transfer)
        transfer.wait_for(None)
        if transfer.fd >= 0:
            os.close(transfer.fd)
        raise
    if not over:
        host.cancel(transfer)
        transfer.wait_for(None)
    error = transfer.error
    if error is None:
        return
    if error.reason == "cancelled":
        raise ErllamaError(
            "busy",
            f"the model {host.id!r} had no free slot for {timeout_s:g} s",
            "try again later, or load it with one slot more (n_seq_max)",
        )
    raise error


# -- in -----------------------------------------------------------------------------------


def import_file(path: Path, *, trust: bool = False, timeout_s: float = TIMEOUT_S) -> bytes:
    """Take the row of a KVC file into the cache; return its key.

    The file is left as it is.  It may have any name; one that is a key must be its own.

    :param trust: take a file that does not say which engine computed it.
    :raises BadKvc: it is no whole KVC file, or another key's.
    :raises ErllamaError: ``model_not_loaded``: no loaded model has its fingerprint,
        quantisation and ``ctx_params_hash``; ``foreign``: another engine computed it;
        ``untrusted``: it does not say which one; ``damaged`` and ``rejected``: the
        payload; ``busy``, ``quota_exceeded``, ``context_overflow``, ``window``; why the
        file cannot be read.
    :raises ModelGone: the model ended meanwhile.
    """
    with opened_row(path) as (fd, entry):
        facts = entry.facts
        host, namespace = _taker(facts.meta, trust=trust)
        payload = Payload(fd, facts.payload_offset, facts.payload_length, facts.payload_crc)
        transfer = Transfer(facts.meta.tokens, payload=payload)
        try:
            _run(host, transfer, timeout_s)
        except ErllamaError as error:
            if error.reason in _REJECTED:
                core().cache.counters.incr("corrupt_files")
            raise
    try:
        if namespace not in host.cache.spaces.all():  # restarted, from another file
            raise ErllamaError("foreign", f"the model {host.id!r} is another one now")
        _enter(namespace, host, transfer, facts.meta)
    finally:
        os.close(transfer.fd)
    return entry.key


def _taker(meta: Meta, *, trust: bool) -> tuple[ModelHost, Namespace]:
    """Return the loaded model that may use a file."""
    key = kvc.key_of(meta)
    spaces = [
        (host, space)
        for host in core().hosts()
        for space in host.cache.spaces.all()
        if space.key(meta.tokens) == key
    ]
    if not spaces:
        raise ErllamaError(
            "model_not_loaded",
            f"no loaded model has the fingerprint {meta.fingerprint.hex()}, quant_type "
            f"{meta.quant_type} and ctx_params_hash {meta.ctx_params_hash.hex()}",
            "load the file's model first, with these as options where they were given",
        )
    if not meta.engine:
        if trust:
            return spaces[0]
        raise ErllamaError(
            "untrusted",
            "the file does not say which engine computed it",
            "where it is the same llama.cpp build with the same KV types, flash attention and"
            " rope settings, say trust=True",
        )
    for host, space in spaces:
        if space.description == meta.engine:
            return host, space
    raise ErllamaError(
        "foreign",
        f"another engine computed it: {_difference(spaces[0][1].description, meta.engine)}",
        "export it again from a model loaded as this one is",
    )


def _difference(ours: bytes, theirs: bytes) -> str:
    """Say in which fields two identities differ; best effort, the second may be anything."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        mine, other = (dict(json.loads(text)["engine"]) for text in (ours, theirs))
        names = sorted(name for name in mine | other if mine.get(name) != other.get(name))
        if names:
            return ", ".join(f"{one} is {other.get(one)}, not {mine.get(one)}" for one in names)
    return "its identity is not one this version knows"


def _enter(namespace: Namespace, host: ModelHost, transfer: Transfer, meta: Meta) -> None:
    """Store what the model process packed, and the row over it."""
    want = host.cache.reader
    reason = meta.save_reason if meta.save_reason in REASONS else "finish"
    tail = None
    with namespace.fill(meta.tokens, want) as lease:
        for part, extent in _copies(transfer):
            if not host.info.blocks or part.end - part.start > core().cache.block:
                namespace.add_whole(meta.tokens, want.stream, extent, part.nbytes, part.crc)
            elif part.end - part.start == core().cache.block:
                run = meta.tokens[part.start * TOKEN_BYTES : part.end * TOKEN_BYTES]
                lease.add_block(part.start, run, want.stream, extent, part.nbytes, part.crc)
            else:
                tail = Tail(part.start, extent, part.nbytes, part.crc, want.stream)
        key = lease.add_row(meta.tokens, reason, tail=tail, counted=False)
    if key is None:
        raise _no_room(len(transfer.parts))


def _copies(transfer: Transfer) -> Iterator[tuple[PackedPart, Extent]]:
    """Yield each part with an extent that holds a copy of it, to be given away."""
    cache, at = core().cache, 0
    for part in transfer.parts:
        extent = cache.reserve(part.nbytes)
        if extent is None:
            raise _no_room(part.nbytes)
        os.preadv(transfer.fd, [cache.view(extent)[: part.nbytes]], at)
        at += part.nbytes
        yield part, extent


def _no_room(nbytes: int) -> ErllamaError:
    return ErllamaError(
        "quota_exceeded",
        f"the memory tier has no room for {nbytes} bytes more of this row",
        "raise ERLLAMA_CACHE_RAM, or evict rows first",
    )


# -- saves by hand ------------------------------------------------------------------------


class _Offers:
    """Files to be taken in, one after the other, on a thread that lives while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: collections.deque[Path] = collections.deque()
        self._running = False

    def put(self, path: Path) -> None:
        with self._lock:
            self._waiting.append(path)
            start, self._running = not self._running, True
        if start:
            threading.Thread(target=self._run, name="imports", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._running = False
                    return
                path = self._waiting.popleft()
            try:
                import_file(path)
            except (ErllamaError, OSError) as error:
                logging.getLogger(__name__).info("%s stays a file: %s", path, error)
            except Exception:
                logging.getLogger(__name__).exception("%s could not be taken in", path)


_offers = _Offers()


def offer(path: Path, meta: Meta) -> None:
    """Have a row that was saved by hand taken in soon, if a loaded model computed it.

    Else, and where it cannot be taken in, it stays a file; nobody waits for this.
    """
    if not meta.engine:
        return
    try:
        _taker(meta, trust=False)
    except ErllamaError:
        return
    _offers.put(path)


# A child has no model, and the lock may be held by a thread that the child does not have.
os.register_at_fork(after_in_child=_offers.__init__)  # type: ignore[misc]
