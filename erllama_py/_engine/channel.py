"""Frames over a socket pair, with descriptors beside them.

Used by both ends.  Reading belongs to one thread.  Writing may come from several and
is serialised by a lock; :meth:`Channel.send` blocks while the peer does not read,
which each side's control thread always does.  The model process must not block its
engine thread even then and sends through an :class:`Outbox`.
"""

from __future__ import annotations

import collections
import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from erllama_py._engine.frames import AnyFrame, Frame
from erllama_py._engine.framing import carries_descriptor, encode_frame, take_frame

__all__ = ("Channel", "ChannelClosed", "Outbox", "Sink")

_READ = 1 << 16
_MAX_FDS = 8


class ChannelClosed(Exception):
    """The peer is gone."""


class Channel:
    """One end of the socket pair."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._write_lock = threading.Lock()
        self._buffer = bytearray()
        self._fds: collections.deque[int] = collections.deque()
        # A tick's burst of frames must fit, or the engine's direct sends would queue.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)

    def fileno(self) -> int:
        """Return the socket's descriptor, or -1 when closed."""
        return self._sock.fileno()

    def send(self, frame: Frame, fd: int | None = None) -> None:
        """Send one frame, and a descriptor with it where given.

        :raises ChannelClosed: the peer is gone.
        """
        self.send_bytes(encode_frame(frame), fd)

    def send_bytes(self, data: bytes, fd: int | None = None) -> None:
        """Send encoded frames.

        :raises ChannelClosed: the peer is gone.
        """
        with self._write_lock:
            try:
                if fd is not None:
                    sent = socket.send_fds(self._sock, [data], [fd])
                    data = data[sent:]
                self._sock.sendall(data)
            except OSError as error:
                raise ChannelClosed(str(error)) from error

    def try_send_bytes(self, data: bytes) -> bytes:
        """Send what the socket takes at once and return the rest.

        :raises ChannelClosed: the peer is gone.
        """
        with self._write_lock:
            try:
                return data[self._sock.send(data, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                return data
            except OSError as error:
                raise ChannelClosed(str(error)) from error

    def frames(self) -> Iterator[tuple[AnyFrame, int | None]]:
        """Yield frames with their descriptor, until the peer closes.

        The caller owns the descriptors.

        :raises BadFrame: what comes is no frame.
        """
        while True:
            while (frame := take_frame(self._buffer)) is not None:
                # The kernel never delivers a descriptor later than its first byte.
                yield frame, (self._fds.popleft() if carries_descriptor(frame) else None)
            try:
                data, fds, _flags, _address = socket.recv_fds(self._sock, _READ, _MAX_FDS)
            except OSError:
                data, fds = b"", []
            self._fds.extend(fds)
            if not data:
                while self._fds:
                    os.close(self._fds.popleft())
                return
            self._buffer += data

    def shutdown(self) -> None:
        """Wake both readers with an end of file.  Idempotent."""
        with contextlib.suppress(OSError):  # not connected: that is the state asked for
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the descriptor.  Idempotent; the reading thread must have ended."""
        self._sock.close()


class Sink(Protocol):
    """Where frames go; see :class:`Outbox`."""

    def put(self, frame: Frame) -> None:
        """Send a frame without waiting."""

    def defer(self, build: Callable[[], Frame], fd: int | None = None) -> None:
        """Send the frame that ``build`` returns, built on another thread.

        A descriptor is taken over, and sent with it.
        """

    def together(self) -> AbstractContextManager[None]:
        """Send what is put inside the ``with`` block at its end, with one write."""


class Outbox:
    """Frames leave in order and the putting thread never waits.

    A frame goes straight to the socket while nothing is queued, which saves a thread
    switch per token; what the socket does not take, and everything behind it, goes
    through the sender thread.  A *deferred* frame is built by the sender thread: that
    is where captured bytes are checksummed, off the engine's tick.

    What a step has for all its requests goes *together*.  Each write wakes the core,
    which then runs where a thread of the engine would.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._queue: collections.deque[tuple[bytes | Callable[[], Frame], int | None]] = (
            collections.deque()
        )
        self._held: list[bytes] | None = None
        """Frames that wait for the end of a ``with`` block; ``None`` outside of one."""
        self._ready = threading.Condition()
        self._busy = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def put(self, frame: Frame) -> None:
        """Send a frame."""
        data = encode_frame(frame)
        with self._ready:
            if self._held is None:
                self._send(data)
            else:
                self._held.append(data)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Hold back what is put by any thread until the block ends."""
        with self._ready:
            self._held = []
        try:
            yield
        finally:
            with self._ready:
                self._let_go()
                self._held = None

    def _let_go(self) -> None:
        """Send what is held back; the lock is held."""
        if self._held:
            self._send(b"".join(self._held))
            self._held.clear()

    def _send(self, data: bytes) -> None:
        """Send encoded frames, or queue what is left of them; the lock is held."""
        if not self._queue and not self._busy:
            try:
                data = self._channel.try_send_bytes(data)
            except ChannelClosed:
                return  # the control thread sees the end and stops the process
            if not data:
                return
        self._queue.append((data, None))
        self._ready.notify()

    def defer(self, build: Callable[[], Frame], fd: int | None = None) -> None:
        """Send the frame that ``build`` returns, built on the sender thread.

        A descriptor is taken over, and sent with it.
        """
        with self._ready:
            self._let_go()  # what was put before it is sent before it
            self._queue.append((build, fd))
            self._ready.notify()

    def close(self) -> None:
        """Send what is queued, then stop the thread."""
        with self._ready:
            self._closed = True
            self._ready.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._send_queued()
        except ChannelClosed:
            self._send_nothing()

    def _send_nothing(self) -> None:
        """The peer is gone: what comes is only freed, until closed."""
        while True:
            with self._ready:
                while not self._queue:
                    if self._closed:
                        return
                    self._ready.wait()
                _, fd = self._queue.popleft()
            if fd is not None:
                os.close(fd)

    def _send_queued(self) -> None:
        while True:
            with self._ready:
                self._busy = False
                while not self._queue:
                    if self._closed:
                        return
                    self._ready.wait()
                item, fd = self._queue.popleft()
                self._busy = True
            try:
                data = item if isinstance(item, bytes) else encode_frame(item())
                self._channel.send_bytes(data, fd)
            finally:
                if fd is not None:
                    os.close(fd)
