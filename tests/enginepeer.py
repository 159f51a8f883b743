"""The core's end of a model process's socket, frame by frame.

For what depends on the very order of frames, or on plans that the cache would not make.
The model is the real worker, on threads of this process, over a real socket pair.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from array import array
from collections.abc import Callable, Iterator
from typing import TypeVar

from erllama_py._backends.base import BLOCK, BackendConfig, ContextOptions, StubOptions
from erllama_py._cache.checksum import crc
from erllama_py._cache.key import encode_tokens
from erllama_py._cache.lease import Piece
from erllama_py._cache.policy import Policy
from erllama_py._cache.ram import Extent
from erllama_py._engine.channel import Channel
from erllama_py._engine.frames import (
    AnyFrame,
    Closed,
    Frame,
    Grants,
    Load,
    Loaded,
    Lookup,
    Plan,
    Segment,
    Stop,
    Stored,
    Submit,
)
from erllama_py._engine.process import start_in_process
from erllama_py.config import EVERYDAY_POLICY, GenerateOptions

MEMORY = 1
"""Index of the shared memory that is granted."""
MEMORY_BYTES = 64 << 20

F = TypeVar("F", bound=Frame)


class Peer:
    """Sends frames to a model, and keeps what comes back."""

    def __init__(self, backend: BackendConfig, policy: Policy, *, caching: bool = True) -> None:
        self._process, sock = start_in_process()
        self._channel = Channel(sock)
        self.frames: list[AnyFrame] = []
        self.descriptors: dict[int, int] = {}
        """Descriptors that came, by the index of their frame."""
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.send(Load(backend, policy, caching))
        self.info = self.wait(Loaded).info
        self._fd = os.memfd_create("peer")
        os.ftruncate(self._fd, MEMORY_BYTES)
        self.memory = mmap.mmap(self._fd, MEMORY_BYTES)
        self.send(Segment(MEMORY, MEMORY_BYTES), self._fd)
        self._granted = 0

    def _read(self) -> None:
        for frame, fd in self._channel.frames():
            with self._news:
                if fd is not None:
                    self.descriptors[len(self.frames)] = fd
                self.frames.append(frame)
                self._news.notify_all()

    def close(self) -> None:
        """End the model."""
        self.send(Stop())
        self._process.wait()
        self._reader.join()
        self._channel.close()
        for fd in self.descriptors.values():
            os.close(fd)
        self.memory.close()
        os.close(self._fd)

    def send(self, frame: Frame, fd: int | None = None) -> None:
        self._channel.send(frame, fd)

    def submit(
        self, number: int, tokens: list[int], target: int | None = 1, mode: str = "infer", **options
    ) -> None:
        asked = GenerateOptions(response_tokens=target, **options)
        self.send(Submit(number, mode, None, encode_tokens(tokens), asked))

    def grant(self, blocks: int = 64, logits: int = 32) -> None:
        """Grant extents to capture into."""
        extents = [
            self._extent(size)
            for count, size in ((blocks, self.info.block_bytes), (logits, self.info.logits_bytes))
            for _ in range(count)
        ]
        self.send(Grants(extents[:blocks], extents[blocks:]))

    def _extent(self, size: int) -> Extent:
        extent = Extent(MEMORY, self._granted, size)
        self._granted += -(-size // 64) * 64
        assert self._granted <= MEMORY_BYTES
        return extent

    # -- what came -----------------------------------------------------------------------

    def seen(self, kind: type[F], number: int | None = None) -> list[F]:
        """Frames of a class so far, of one request where its number is given."""
        with self._news:
            return [
                frame
                for frame in self.frames
                if isinstance(frame, kind) and number in (None, getattr(frame, "id", None))
            ]

    def wait(self, kind: type[F], number: int | None = None, count: int = 1) -> F:
        """Wait for the count-th frame of a class."""
        with self._news:
            assert self._news.wait_for(lambda: len(self._found(kind, number)) >= count, 20.0), (
                f"no {kind.__name__} of {number}; there are {self.frames}"
            )
            return self._found(kind, number)[count - 1]

    def _found(self, kind: type[F], number: int | None) -> list[F]:
        return [
            frame
            for frame in self.frames
            if isinstance(frame, kind) and number in (None, getattr(frame, "id", None))
        ]

    def at(self, kind: type[Frame], number: int | None = None) -> int:
        """Position of the first frame of a class among all that came."""
        first = self.wait(kind, number)
        return next(i for i, frame in enumerate(self.frames) if frame is first)

    # -- plans ---------------------------------------------------------------------------

    def cold(self, number: int) -> None:
        """Answer a lookup: nothing is cached."""
        self.wait(Lookup, number)
        self.send(Plan(number, "cold", 0, 0, [], None, canonical=False, captured=0))

    def plan(
        self,
        number: int,
        pieces: list[Piece],
        keep: int,
        *,
        kind: str = "partial",
        logits: Stored | None = None,
    ) -> None:
        """Answer a lookup with these pieces."""
        self.wait(Lookup, number)
        self.send(Plan(number, kind, keep, keep, pieces, logits, canonical=False, captured=0))

    def finish(self, *numbers: int) -> None:
        """Wait until these requests hold nothing any more."""
        for number in numbers:
            self.wait(Closed, number)


def stub_pieces(
    tokens: list[int], put: Callable[[bytes], Extent], upto: int | None = None
) -> list[Piece]:
    """Pieces of the stub's KV: blocks, and a tail where ``upto`` is no block's end."""
    end = len(tokens) if upto is None else upto
    pieces = []
    for start in range(0, end, BLOCK):
        part = tokens[start : min(start + BLOCK, end)]
        data = array("I", part).tobytes()
        pieces.append(
            Piece(len(pieces) + 1, put(data), len(data), crc(data), start, start + len(part))
        )
    return pieces


@contextlib.contextmanager
def stub_peer(*, policy: dict | None = None, stub: dict | None = None, **context) -> Iterator[Peer]:
    """A model on the stub backend."""
    config = BackendConfig(
        "stub", context=ContextOptions(**context), stub=StubOptions(**(stub or {}))
    )
    peer = Peer(config, Policy.from_map({**EVERYDAY_POLICY, **(policy or {})}))
    try:
        yield peer
    finally:
        peer.close()
