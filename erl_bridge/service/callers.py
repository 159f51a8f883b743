"""Functions of the original's other modules that depend on who calls, or wait.

* Who holds a pin, a reservation or a writer's place is monitored, and loses it at its end.
* A tier server is nobody's, and its directory lies below the node's roots.
* Waiting takes no thread, so that those who wait keep nobody from being answered.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

import anyio

from erl_bridge.etf import Atom, Pid, Reference
from erl_bridge.runtime import CallContext, Node
from erl_bridge.service.holders import Holders
from erl_bridge.service.roots import Roots
from erl_bridge.service.served import Values
from erl_bridge.service.streams import Streams
from erl_bridge.service.tiers import TierProcesses
from erllama_py import types
from erllama_py.errors import BadCall, ErllamaError
from erllama_py.otp import (
    cache_disk_srv,
    cache_meta_srv,
    cache_writer,
    inflight,
    model_sup,
    registry,
)

__all__ = ("Call", "Callers", "InThread")

InThread = Callable[..., Awaitable[Any]]

_OK: Final = Atom("ok")
_UNDEFINED: Final = Atom("undefined")

_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.05
"""Between two looks for a free place, or a row."""

_SLICE_MS: Final = 50
"""How long one look at a row that is being written may take a thread."""


class Call(NamedTuple):
    """One call: its caller, and its arguments as terms."""

    context: CallContext
    module: str
    function: str
    args: list[Any]


class Callers:
    """The functions, by their names in :mod:`erl_bridge.service.cache_modules`.

    Each takes the call and its converted arguments, and returns a term or an awaitable of
    one.

    :param in_thread: runs a function in a worker thread.
    """

    def __init__(
        self,
        node: Node,
        streams: Streams,
        roots: Roots,
        values: Values,
        tiers: TierProcesses,
        in_thread: InThread,
    ) -> None:
        self._node = node
        self._streams = streams
        self._roots = roots
        self._values = values
        self._tiers = tiers
        self._in_thread = in_thread
        self._holders = Holders(node)
        self.functions: Final[dict[str, Callable[..., Any]]] = {
            "acquire": self._acquire,
            "all_streams": self._all_streams,
            "announce_saved": self._announce_saved,
            "await_row": self._await_row,
            "cancel_reservation": self._cancel_reservation,
            "checkin": self._checkin,
            "checkout": self._checkout,
            "dir": self._dir,
            "lookup_stream": self._lookup_stream,
            "queue_depth": self._queue_depth,
            "release": self._release,
            "reserve_save": self._reserve_save,
            "send": self._send,
            "start_model": self._start_model,
            "start_tier": self._start_tier,
            "write_tmp": self._write_tmp,
            "writer_save": self._writer_save,
        }

    def close(self) -> None:
        """Let go of all that peers hold."""
        self._holders.close()

    # -- pins and reservations ----------------------------------------------------------------

    async def _checkout(self, _call: Call, key: bytes, pid: Pid) -> Any:
        found = await self._in_thread(cache_meta_srv.checkout, key, pid)
        if isinstance(found, tuple):
            self._holders.hold(pid, found[0])
        return self._values.answered("ok_tuple", found)

    async def _checkin(self, _call: Call, holder: Any) -> Any:
        await self._in_thread(cache_meta_srv.checkin, holder)
        self._drop(holder)
        return _OK

    async def _reserve_save(self, _call: Call, key: bytes, tier: Any, pid: Pid) -> Any:
        token = await self._in_thread(cache_meta_srv.reserve_save, key, tier, pid)
        self._holders.hold(pid, token)
        return self._values.answered("ok", token)

    async def _cancel_reservation(self, _call: Call, key: bytes, token: Any) -> Any:
        await self._in_thread(cache_meta_srv.cancel_reservation, key, token)
        self._drop(token)
        return _OK

    async def _announce_saved(self, _call: Call, key: bytes, token: Any, *row: Any) -> Any:
        await self._in_thread(cache_meta_srv.announce_saved, key, token, *row)
        self._drop(token)
        return _OK

    def _drop(self, what: Any) -> None:
        if isinstance(what, types.Ref):
            self._holders.drop(what)

    async def _await_row(self, _call: Call, key: bytes, timeout_ms: int) -> Any:
        """Look again and again, in slices: no thread is taken for the whole wait."""
        deadline = time.monotonic() + timeout_ms / 1000
        writing = False
        while True:
            left_ms = max(0, int((deadline - time.monotonic()) * 1000))
            began = time.monotonic()
            slice_ms = min(left_ms, _SLICE_MS)
            found = await self._in_thread(cache_meta_srv.lookup_exact_or_wait, key, slice_ms)
            waited_ms = (time.monotonic() - began) * 1000
            # A miss at once: nobody writes it.  After that of a writer who gave up, another
            # may come in time.
            writing = writing or waited_ms >= slice_ms
            if isinstance(found, tuple) or not writing or left_ms <= slice_ms:
                return self._values.answered("ok", found)
            await anyio.sleep(_PAUSE_S)

    # -- the writer ---------------------------------------------------------------------------

    async def _acquire(self, call: Call, timeout_ms: Any) -> Any:
        pid = call.context.caller
        await self._place(pid, timeout_ms)
        self._holders.hold(pid, ("place", pid))
        return _OK

    async def _release(self, call: Call) -> Any:
        pid = call.context.caller
        cache_writer.release(holder=pid)
        self._holders.drop(("place", pid))
        return _OK

    async def _writer_save(
        self, _call: Call, server: Any, tier: Any, meta: Any, payload: bytes, *timeout: Any
    ) -> Any:
        """Save with a place of the call's own, as the original's helper process has it."""
        holder = object()
        timeout_ms = timeout[0] if timeout else cache_writer.DEFAULT_TIMEOUT_MS
        if tier in ("disk", "ram_file") and _is_timeout(timeout_ms):
            try:
                await self._place(holder, timeout_ms)
            except ErllamaError:
                timeout_ms = 0  # the save refuses in its own way, and counts that
        try:
            key = await self._in_thread(_save, holder, server, tier, meta, payload, timeout_ms)
        finally:
            cache_writer.release(holder=holder)
        return self._values.answered("ok", key)

    async def _place(self, holder: object, timeout_ms: Any) -> None:
        if not _is_timeout(timeout_ms):
            raise BadCall("function_clause", f"{timeout_ms!r} is no timeout")
        began, pause = time.monotonic(), _PAUSE_S
        while True:
            try:
                cache_writer.acquire(0, holder=holder)
            except ErllamaError:
                late = timeout_ms != "infinity" and (time.monotonic() - began >= timeout_ms / 1000)
                if late:
                    raise
            else:
                return
            await anyio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    # -- tier servers -------------------------------------------------------------------------

    async def _start_tier(self, call: Call, name: types.Atom, *args: Any) -> Any:
        kind = "ram_file" if call.module == "erllama_cache_ramfile_srv" else "disk"
        kind, where = args if len(args) == 2 else (kind, args[0])
        if kind not in ("disk", "ram_file"):
            raise BadCall("function_clause", f"tier {kind!r} is not disk or ram_file")
        if name in ("undefined", "true", "false"):
            raise BadCall("badarg", f"{name} cannot be a registered name")
        if (pid := self._tiers.other(Atom(name))) is not None:
            raise ErllamaError((types.Atom("already_started"), pid), f"{name} is taken")
        given = call.args[-1]
        try:
            path = await self._in_thread(self._roots.check_folder, os.fsdecode(where))
        except ErllamaError as error:
            reason = (types.Atom("cannot_create_dir"), given, error.reason)
            raise ErllamaError(reason, error.message, error.hint) from error
        tier = await self._in_thread(cache_disk_srv.start_link, name, types.Atom(kind), path)
        pid = self._tiers.started(Atom(name), tier, path, charlist=isinstance(given, list))
        return _OK, pid

    async def _dir(self, _call: Call, server: Any) -> Any:
        return self._tiers.path(await self._in_thread(cache_disk_srv.dir, server))

    async def _write_tmp(self, _call: Call, root: bytes, meta: Any, payload: bytes) -> Any:
        known = [os.fsdecode(one) for one in await self._in_thread(cache_disk_srv.directories)]
        path = await self._in_thread(self._roots.check_folder, os.fsdecode(root), known)
        written = await self._in_thread(cache_disk_srv.write_tmp, path, meta, payload)
        shown = {name: self._tiers.path(written[name]) for name in ("tmp", "final", "root")}
        return _OK, {**self._values.to_term(written), **{Atom(k): v for k, v in shown.items()}}

    # -- models and streams -------------------------------------------------------------------

    async def _start_model(self, _call: Call, model_id: bytes, config: dict[Any, Any]) -> Any:
        checked = await self._in_thread(self._roots.check, config)
        pid = await self._in_thread(model_sup.start_model, model_id, checked)
        return self._values.answered("ok", pid)

    def _send(self, call: Call, model_id: Any, _message: Any) -> Any:
        """Deliver a message to what stands for the model, as from the calling node."""
        message = call.args[1]
        if type(call.args[0]) is bytes and (found := registry.whereis_name(model_id)) is not None:
            pid = self._values.to_term(found)
            process, peer = self._node.find(pid), self._node.peer(call.context.peer)
            if process is not None:
                process.deliver(message, peer)
            return pid
        raise BadCall((types.Atom("badarg"), tuple(call.args)), f"no model {model_id!r} is loaded")

    def _lookup_stream(self, _call: Call, ref: Reference) -> Any:
        request = self._streams.request_of(ref)
        return self._values.answered("ok", inflight.lookup(request))

    def _all_streams(self, _call: Call) -> Any:
        peers = self._streams.references()
        to_term = self._values.to_term
        return [(peers.get(ref) or to_term(ref), to_term(pid)) for ref, pid in inflight.all()]

    def _queue_depth(self, _call: Call, pid: Pid) -> Any:
        model = self._values.to_python(pid)
        return inflight.queue_depth(model) if isinstance(model, types.ModelPid) else 0


def _is_timeout(value: Any) -> bool:
    return value == "infinity" or (type(value) is int and value >= 0)


def _save(holder: object, *args: Any) -> bytes:
    return cache_writer.save(*args, holder=holder)
