"""The core: every model of this Python process by id and pid, and the cache they share.

There is one core per process, made at first use.  A child forked by the user's code
inherits neither models nor sockets: it starts with a core of its own, and its copies of
the sockets are closed, so that models still notice when the parent ends.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from erllama_py._cache.store import Cache
from erllama_py._engine.budget import Budget
from erllama_py._engine.caching import ModelCache
from erllama_py._engine.ends import model_evicted, model_gone
from erllama_py._engine.host import ModelHost
from erllama_py._engine.pressure import PressureScheduler, environment_config
from erllama_py._engine.tiers import open_cache
from erllama_py._machine.environment import DEFAULTS, Environment
from erllama_py.config import parse_load
from erllama_py.errors import BadCall, ErllamaError, ModelGone
from erllama_py.types import Atom, ModelPid, next_serial

__all__ = ("Core", "Watcher", "core")

SAVE_TIMEOUT = "evict_save_timeout_ms"

REMEMBERED = 256
"""Ids of evicted models, so that who asks for one hears what became of it."""

Watcher = Callable[[str, str, ModelPid, Any], None]
"""Called with ("up" | "down", model id, pid, reason); must not block or raise."""


class Core:
    """Models by id and by pid."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hosts: dict[str, ModelHost] = {}
        self._pids: dict[ModelPid, ModelHost] = {}
        self._watchers: list[Watcher] = []
        self._evicted: dict[str, str] = {}
        """For which model each was, newest last."""
        self.budget = Budget(self._evict)
        self._cache: Cache | None = None
        self._pressure: PressureScheduler | None = None
        self._save_timeout_s = 0.0
        """Known when the cache is open; nothing runs before."""

    @property
    def cache(self) -> Cache:
        """The cache, made at first use."""
        with self._lock:
            if self._cache is None:
                environment = Environment()
                given = environment.get(SAVE_TIMEOUT)
                timeout_ms: Any = DEFAULTS[SAVE_TIMEOUT] if given is None else given
                self._save_timeout_s = timeout_ms / 1000
                self._cache = open_cache(environment.cache())
                atexit.register(self._at_exit, os.getpid())
            return self._cache

    def _at_exit(self, pid: int) -> None:
        """End the models, which store what follows replies that are out, and save it all.

        A script's last reply would else be lost for the next one.
        """
        if os.getpid() == pid:  # or else a forked child's: the models are its parent's
            for host in self.hosts():
                host.unload()
        if self._cache is not None:
            self._cache.close()

    @property
    def pressure(self) -> PressureScheduler:
        """The pressure scheduler, made at first use; a load is one.

        :raises ErllamaError: the environment sets it to what cannot be.
        """
        with self._lock:
            if self._pressure is None:
                self._pressure = PressureScheduler(self._evict_bytes, environment_config())
            return self._pressure

    def _evict_bytes(self, target: int, tiers: tuple[str, ...]) -> tuple[int, int]:
        # Asked for each time: the cache is made at its first use, not for a status.
        return self.cache.evict_bytes(target, tiers)

    def load(self, model_id: str | None, config: Mapping[str, Any]) -> str:
        """Load a model and return its id, made up where none is given.

        Idle models are evicted where their memory is needed (see ``Budget``).

        :raises ErllamaError: ``already_loaded``, ``{no_memory, Numbers}``, or why it does
            not load; the id stays usable.
        """
        parsed = parse_load(config)
        _ = self.pressure  # enabled by the environment, it is needed from the first model on
        name = f"erllama_model_{next_serial()}" if model_id is None else model_id
        host = ModelHost(
            name,
            parsed,
            ModelCache(self.cache, parsed),
            on_up=self._up,
            on_down=self._down,
            on_gone=self._gone,
        )
        with self._lock:
            if name in self._hosts:
                raise ErllamaError(
                    "already_loaded",
                    f"a model {name!r} is loaded already",
                    "unload it first, or choose another id",
                )
            self._hosts[name] = host
            self._evicted.pop(name, None)
        try:
            self.budget.admit(host)
            host.load()
            self.budget.settle(host)
        except BaseException:
            # An interrupt included: the half-loaded process must not stay behind.
            host.unload()
            self._gone(host)
            raise
        return name

    def unload(self, model: str | ModelPid) -> None:
        """End a model; its id is free when this returns.

        :raises ErllamaError: ``not_found`` for an id; a pid is that of a process which
            has ended already.
        """
        try:
            host = self.host(model)
        except ModelGone:
            if isinstance(model, ModelPid):
                return
            raise ErllamaError("not_found", f"no model {model!r} is loaded") from None
        self._forget(host)
        try:
            host.unload(self._save_timeout_s)
        finally:
            self.budget.release(host)

    def _evict(self, host: ModelHost, successor: str) -> None:
        """Free the id of a model that is out of use already; its process ends next."""
        self._forget(host)
        with self._lock:
            if host.id not in self._hosts:  # or else loaded again meanwhile
                self._evicted[host.id] = successor
                while len(self._evicted) > REMEMBERED:
                    del self._evicted[next(iter(self._evicted))]
        logging.getLogger(__name__).info("model %s makes room for %s", host.id, successor)

    def save_live(self, model: Any, reason: str) -> None:
        """Save the contexts of a model's running requests, as ``evict`` or ``shutdown``.

        Takes no longer than ``evict_save_timeout_ms``.  After a ``shutdown`` they are in
        the model's file tier, where it has one: what comes next may be the end of this
        process.

        :raises ModelGone, BadCall: as :meth:`host`.
        """
        until = time.monotonic() + self._save_timeout_s
        self.host(model).save_live(reason, self._save_timeout_s)
        if reason == "shutdown":
            self.cache.flush(max(0.0, until - time.monotonic()))

    def find(self, model_id: str) -> ModelHost | None:
        """Return the host of an id, if it is loaded or being restarted."""
        host = self._hosts.get(model_id)
        return host if host and host.loaded_at else None

    def host(self, model: Any) -> ModelHost:
        """Return the host of an id or pid.

        :raises ModelGone: it names no model.
        :raises BadCall: it is neither.
        """
        if isinstance(model, ModelPid):
            host = self._pids.get(model)
            if host is None:
                raise ModelGone(
                    (
                        Atom("noproc"),
                        (Atom("gen_statem"), Atom("call"), [model, Atom("infinity")]),
                    ),
                    f"the model process {model} has ended",
                    "use the model's id: it outlives its process",
                )
            return host
        host = self.find(id_text(model))
        if host is None:
            successor = self._evicted.get(id_text(model))
            raise (
                model_evicted(id_text(model), successor)
                if successor
                else model_gone(id_text(model))
            )
        return host

    def hosts(self) -> list[ModelHost]:
        """Return the hosts of loaded models, in load order."""
        return [host for host in list(self._hosts.values()) if host.loaded_at]

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Call ``watcher`` at every start and end of a model process.

        Returns a function that ends this.
        """
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    def abandon(self) -> None:
        """Close this process's copies of the sockets, after a fork, in the child."""
        for host in self._hosts.values():
            host.abandon()
        if self._cache is not None:
            self._cache.abandon()

    # -- called by hosts, on their reader threads ---------------------------------------------

    def _up(self, host: ModelHost, pid: ModelPid) -> None:
        with self._lock:
            self._pids[pid] = host
        self._tell("up", host, pid, None)

    def _down(self, host: ModelHost, pid: ModelPid, reason: Any) -> None:
        with self._lock:
            self._pids.pop(pid, None)
        self._tell("down", host, pid, reason)

    def _gone(self, host: ModelHost) -> None:
        self._forget(host)
        self.budget.release(host)

    def _forget(self, host: ModelHost) -> None:
        """Its id is free from now on; its process may still have to end."""
        host.cache.close()
        host.chats.renderer.close()
        with self._lock:
            if self._hosts.get(host.id) is host:
                del self._hosts[host.id]
        host.cache.disown_heads()

    def _tell(self, what: str, host: ModelHost, pid: ModelPid, reason: Any) -> None:
        for watcher in list(self._watchers):
            try:
                watcher(what, host.id, pid, reason)
            except Exception:
                logging.getLogger(__name__).exception("a model watcher failed")


def id_text(model: Any) -> str:
    """Return a model id as text.

    :raises BadCall: it is not a text.
    """
    if isinstance(model, bytes):
        return model.decode(errors="surrogateescape")
    if isinstance(model, str) and not isinstance(model, Atom):
        return str(model)
    raise BadCall("function_clause", f"a model is named by its id or pid, not by {model!r}")


_core = Core()


def core() -> Core:
    """Return this process's core."""
    return _core


def _after_fork_in_child() -> None:
    global _core
    parents, _core = _core, Core()
    with contextlib.suppress(Exception):
        parents.abandon()


os.register_at_fork(after_in_child=_after_fork_in_child)
