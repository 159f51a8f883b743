"""What identifies a model's content, in 32 bytes, soon enough for a load to wait for it.

================  =====================================================================
mode              digest: SHA-256 of
================  =====================================================================
``safe``          the whole file
``gguf_chunked``  a tag; then, of each file: its size (64 bits, little-endian), the header
                  up to the tensors' data, and 16 KiB from the middle of each tensor, of
                  1024 tensors spread evenly where there are more.  Without a header that
                  can be read: the first MiB, and 256 pieces of 64 KiB spread evenly
``fast_unsafe``   a tag; then, of each file: its resolved path, size and time of change.
                  Nothing of it is read
================  =====================================================================

A model split into ``NAME-00001-of-00003.gguf`` and so on is its parts in order: ``safe`` is
the digest of all of them behind each other.

**Which mode.**  Nobody should wait for a digest, and no digest may change while the file
does not: keys are made of it, and another one would leave all that is cached unfound.  So
where the caller named no mode, it is ``safe`` for files up to 768 MiB, ``gguf_chunked``
beyond: a rule about the file alone, which every machine and every load answers alike.  On a
machine that does not hash the smaller file in time, it is ``gguf_chunked`` too, and that
choice is remembered with the digest (:mod:`erllama_py._machine.digests`), so that a quicker
moment does not undo it.

``safe`` by name means the whole file, always.  Where that takes longer than a load may
wait, :func:`identify` returns None, and the digest is :func:`whole`'s to make, on a thread.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

from erllama_py._machine.digests import Digests, FileFacts
from erllama_py._machine.gguf import GgufError, read_layout

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ("MODES", "Facts", "Fingerprint", "facts_of", "identify", "parts_of", "whole")

MODES: Final = ("safe", "gguf_chunked", "fast_unsafe")

WHOLE_FILE_BYTES: Final = 768 << 20
"""Up to here the whole file is hashed unless told otherwise: 0.63 s at SHA-256's 1.27 GB/s."""

PATIENCE_S: Final = 0.8
"""How long a load waits for a whole file; what samples take comes on top."""

_PIECE: Final = 8 << 20
_SAMPLE: Final = 16 << 10
_MAX_SAMPLES: Final = 1024
_BLIND_SAMPLE: Final = 64 << 10
_BLIND_SAMPLES: Final = 256
_BLIND_HEAD: Final = 1 << 20

_PART: Final = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
_MAX_PARTS: Final = 1000

Facts = tuple[FileFacts, ...]
"""Path, size, time of change and inode of each file of a model."""


class Fingerprint(NamedTuple):
    """A digest and how it was made."""

    digest: bytes
    mode: str


def facts_of(path: str | Path) -> Facts:
    """Look at a model's files, all parts of a split one, without reading them.

    :raises OSError: missing, or no file: a pipe would never end.
    """
    facts = []
    for part in parts_of(Path(os.path.realpath(path))):
        status = part.stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "it is not a file")
        facts.append(FileFacts(str(part), status.st_size, status.st_mtime_ns, status.st_ino))
    return tuple(facts)


def identify(
    facts: Facts, mode: str | None, digests: Digests, patience_s: float = PATIENCE_S
) -> Fingerprint | None:
    """Return what identifies a model; known digests are not made again.

    :param mode: one of :data:`MODES`; None for what is sensible.
    :return: None where ``safe`` was named and takes longer than ``patience_s``.
    :raises OSError: a file cannot be read.
    """
    if mode == "fast_unsafe":
        return Fingerprint(_stated(facts), mode)
    known = digests.read(facts)
    wanted = mode or known.chosen
    if wanted in known.made:
        return Fingerprint(known.made[wanted], wanted)
    size = sum(one.size for one in facts)
    found = None
    if mode is None and "safe" in known.made:
        found = Fingerprint(known.made["safe"], "safe")
    elif mode != "gguf_chunked" and size <= WHOLE_FILE_BYTES:
        found = _whole_within(facts, patience_s)
    if found is None and mode == "safe":
        return None
    if found is None:
        found = Fingerprint(_sampled(facts), "gguf_chunked")
    if facts_of(facts[0].path) == facts:
        # What another process has chosen meanwhile stands.
        stored = digests.add(facts, found.mode, found.digest, chosen=mode is None)
        if mode is None and stored.chosen in stored.made:
            return Fingerprint(stored.made[stored.chosen], stored.chosen)
    return found


def whole(facts: Facts, digests: Digests, stopped: Callable[[], bool]) -> Fingerprint | None:
    """Hash all of a model, however long it takes, and remember the digest.

    :param stopped: asked every few milliseconds; true to give up, and return None.
    :raises OSError: a file cannot be read.
    """
    hasher = hashlib.sha256()
    for piece in _pieces(facts):
        if stopped():
            return None
        hasher.update(piece)
    if facts_of(facts[0].path) == facts:
        digests.add(facts, "safe", hasher.digest(), chosen=False)
    return Fingerprint(hasher.digest(), "safe")


# -- digests ----------------------------------------------------------------------------


def _whole_within(facts: Facts, patience_s: float) -> Fingerprint | None:
    ends = time.monotonic() + patience_s
    hasher = hashlib.sha256()
    for piece in _pieces(facts):
        if time.monotonic() >= ends:
            return None
        hasher.update(piece)
    return Fingerprint(hasher.digest(), "safe")


def _pieces(facts: Facts) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(_PIECE))
    for one in facts:
        with Path(one.path).open("rb", buffering=0) as file:
            while size := file.readinto(buffer):
                yield buffer[:size]


def _stated(facts: Facts) -> bytes:
    hasher = hashlib.sha256(b"erllama fast_unsafe 1\0")
    for one in facts:
        hasher.update(os.fsencode(one.path) + b"\0")
        hasher.update(one.size.to_bytes(8, "little") + one.mtime_ns.to_bytes(16, "little"))
    return hasher.digest()


def _sampled(facts: Facts) -> bytes:
    hasher = hashlib.sha256(b"erllama gguf_chunked 1\0")
    for one in facts:
        with Path(one.path).open("rb") as file:
            hasher.update(one.size.to_bytes(8, "little"))
            try:
                layout = read_layout(file)
            except GgufError:
                spans = list(_blind_spans(one.size))
            else:
                spans = [(0, layout.data), *_tensor_spans(layout.tensors)]
            _hash_spans(file, spans, hasher)
    return hasher.digest()


def _tensor_spans(tensors: tuple[tuple[int, int], ...]) -> Iterator[tuple[int, int]]:
    """Return the middle of each tensor: what is edited is edited all over."""
    count = min(len(tensors), _MAX_SAMPLES)
    for index in range(count):
        start, end = tensors[index * len(tensors) // count]
        size = min(_SAMPLE, end - start)
        first = (start + end - size) // 2
        yield first, first + size


def _blind_spans(size: int) -> Iterator[tuple[int, int]]:
    yield 0, min(size, _BLIND_HEAD)
    last = max(0, size - _BLIND_SAMPLE)
    for index in range(_BLIND_SAMPLES):
        first = last * index // (_BLIND_SAMPLES - 1)
        yield first, min(size, first + _BLIND_SAMPLE)


def _hash_spans(file: BinaryIO, spans: list[tuple[int, int]], hasher: _Hash) -> None:
    descriptor = file.fileno()
    if hasattr(os, "posix_fadvise"):
        # All at once: a disk answers a thousand reads much sooner than one after another.
        for start, end in spans:
            os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_WILLNEED)
    for start, end in spans:
        for at in range(start, end, _PIECE):
            hasher.update(os.pread(descriptor, min(_PIECE, end - at), at))


def parts_of(path: Path) -> list[Path]:
    """Return the files of a model; those of a split one that are missing are left out.

    That they are is for the engine to say, which knows what it needs.
    """
    match = _PART.fullmatch(path.name)
    if match is None or not 1 < int(match[3]) <= _MAX_PARTS:
        return [path]
    names = (f"{match[1]}-{n:05}-of-{match[3]}.gguf" for n in range(1, int(match[3]) + 1))
    return [part for name in names if (part := path.with_name(name)) == path or part.exists()]
