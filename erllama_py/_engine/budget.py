"""Memory for models: what each is charged, and who makes room for whom.

With ``model_memory_bytes`` set, the models of a core together take no more than that:
weights, context and what computes, wherever they lie.  A model is charged with an
estimate when its load begins (:mod:`erllama_py._machine.footprint`), with what the engine
made once it is there, and with nothing from the moment its process has ended.

A load that does not fit has idle models evicted, those first that were not used for
longest.  Decided is all or nothing: where even all the idle ones would not make enough
room, none of them goes, and the load is refused.  One load decides at a time, and its
victims have ended when the next one does; a request that comes to a victim before it is
taken out of use keeps it, one that comes after finds it unloaded.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from erllama_py._engine.host import ModelHost, retire
from erllama_py._machine.environment import Environment
from erllama_py._machine.footprint import ContextShape, Footprint, estimate
from erllama_py.config import LoadConfig
from erllama_py.errors import ErllamaError
from erllama_py.types import Atom

__all__ = ("Budget", "model_memory_limit")

_KEY: Final = "model_memory_bytes"
_NOTHING: Final = Footprint(0, 0, 0)


def model_memory_limit() -> int | None:
    """Return the bytes that all models together may take; None: no limit.

    Asked for at every load, so that it can be changed while a core runs.

    :raises ErllamaError: the environment sets what cannot be.
    """
    limit: int | None = Environment().get(_KEY)
    return limit


class Budget:
    """The charges of one core's models.

    :param evict: frees the id of a model that was taken out of use: the model, and the id
        of that for which it makes room.
    """

    def __init__(self, evict: Callable[[ModelHost, str], None]) -> None:
        self._evict = evict
        self._deciding = threading.Lock()
        self._charges: dict[ModelHost, Footprint] = {}
        self._changing = threading.Lock()
        """A process that ends is not kept waiting by a decision."""

    @property
    def charges(self) -> dict[str, Footprint]:
        """What each model is charged, by its id; those that load or end are in it."""
        return {host.id: charge for host, charge in list(self._charges.items())}

    def admit(self, host: ModelHost) -> None:
        """Charge a model that is about to load; evict others where it needs their room.

        :raises ErllamaError: ``{no_memory, Numbers}``; nothing was evicted.
        """
        limit = model_memory_limit()
        with self._deciding:
            # Without a limit no file need be looked at: the charge follows the load.
            need = _NOTHING if limit is None else foreseen(host.config)
            if limit is not None:
                self._make_room(host, need, limit)
            self._charges[host] = need

    def settle(self, host: ModelHost) -> None:
        """Charge a model that has loaded with what it takes.

        Where that is more than was foreseen, idle models go as far as they help; the
        model stays, since who loaded it has it already.
        """
        with self._deciding:
            made = Footprint(*host.info.buffers)
            with self._changing:
                if host not in self._charges or not any(made):
                    return  # unloaded meanwhile, or the engine does not say
                self._charges[host] = made
            limit = model_memory_limit()
            if limit is None or self._used() <= limit:
                return
            try:
                self._make_room(host, made, limit)
            except ErllamaError:
                logging.getLogger(__name__).warning(
                    "model %s takes %s, more than was foreseen: all models take %s, "
                    "model_memory_bytes is %s",
                    *(host.id, said(made.total), said(self._used()), said(limit)),
                )

    def release(self, host: ModelHost) -> None:
        """A model's process has ended, or never began."""
        with self._changing:
            self._charges.pop(host, None)

    def _used(self, *, beside: ModelHost | None = None) -> int:
        charges = list(self._charges.items())
        return sum(charge.total for host, charge in charges if host is not beside)

    def _make_room(self, host: ModelHost, need: Footprint, limit: int) -> None:
        while self._used(beside=host) + need.total > limit:
            idle = sorted(
                (one for one in list(self._charges) if one is not host and one.idle),
                key=lambda one: one.used_at,
            )
            victims = self._choose(idle, self._used(beside=host) + need.total - limit)
            if victims is None:
                raise self._refusal(host, need, limit, idle)
            if not retire(victims):
                continue  # one of them has got a request since
            # Both for all of them, whatever happens to one: nothing half gone may stay.
            with contextlib.ExitStack() as ending:
                for victim in victims:
                    ending.callback(self._ended, victim)
                for victim in victims:
                    self._evict(victim, host.id)

    def _ended(self, victim: ModelHost) -> None:
        victim.end_retired()
        self.release(victim)

    def _choose(self, idle: Sequence[ModelHost], missing: int) -> list[ModelHost] | None:
        """Return the first models that free enough; None: all together do not."""
        victims: list[ModelHost] = []
        for one in idle:
            charge = self._charges.get(one, _NOTHING).total
            if charge:
                victims.append(one)
                missing -= charge
            if missing <= 0:
                return victims
        return None

    def _refusal(
        self, host: ModelHost, need: Footprint, limit: int, idle: Sequence[ModelHost]
    ) -> ErllamaError:
        used = self._used(beside=host)
        free = sum(self._charges.get(one, _NOTHING).total for one in idle)
        numbers: dict[str, Any] = {
            "needed": need.total,
            "limit": limit,
            "used": used,
            "idle": free,
        }
        staying = ", ".join(
            f"{one.id!r} {said(charge.total)}{' (keep)' if one.config.keep else ''}"
            for one, charge in list(self._charges.items())
            if one is not host and one not in idle
        )
        parts = (("weights", need.weights), ("context", need.context), ("compute", need.compute))
        return ErllamaError(
            (Atom("no_memory"), numbers),
            f"the model {host.id!r} takes about {said(need.total)} ("
            + ", ".join(f"{name} {said(size)}" for name, size in parts)
            + f"), and all models may take {said(limit)}"
            + (f"; in use or kept: {staying}" if staying else ""),
            "unload a model, load this one with a smaller n_ctx, or raise "
            f"ERLLAMA_{_KEY.upper()} ({_KEY} in config.toml)",
        )


def foreseen(config: LoadConfig) -> Footprint:
    """Return what a load with this config would take, as far as its file says."""
    backend = config.backend_config
    if backend.backend == "stub":
        return Footprint(backend.stub.weights_bytes, 0, 0)
    if backend.model.vocab_only:
        return _NOTHING
    context = backend.context
    shape = ContextShape(
        n_ctx=context.n_ctx or 0,
        n_batch=context.n_batch,
        n_ubatch=context.n_ubatch,
        n_seq_max=context.n_seq_max,
        type_k=context.type_k,
        type_v=context.type_v,
        flash_attn=context.flash_attn != "false",
    )
    return estimate(config.model_path, shape) or _NOTHING


def said(size: int) -> str:
    """Return a size for people: ``1.5 GiB``, ``96.0 MiB``."""
    unit, name = (1 << 30, "GiB") if size >= 1 << 30 else (1 << 20, "MiB")
    return f"{size / unit:.1f} {name}"
