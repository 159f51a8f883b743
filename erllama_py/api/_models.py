"""Models: what is loaded, what it is, and its end.  Loading is in ``_handle``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from erllama_py._engine.budget import model_memory_limit
from erllama_py._engine.device_memory import device_memory
from erllama_py._engine.host import ModelHost
from erllama_py._engine.registry import Watcher, core, id_text
from erllama_py._machine.catalogue import find_models as _find_models
from erllama_py._machine.catalogue import is_known as _is_known
from erllama_py._machine.catalogue import resolve_model as _resolve_model
from erllama_py.api._asking import ModelArg
from erllama_py.errors import ErllamaError
from erllama_py.types import Atom, ModelPid

__all__ = (
    "evict",
    "find_models",
    "list_models",
    "model_info",
    "model_memory",
    "models",
    "resolve_model",
    "shutdown",
    "status",
    "unload",
    "unload_model",
    "vram_info",
    "watch",
)


def unload(model: ModelArg) -> Atom:
    """End a model and free its id.

    Live streams get an ``error`` event with reason ``{unloaded, shutdown}``; calls that
    wait raise :class:`~erllama_py.errors.ModelGone`.  What they have computed is saved
    before, as :func:`shutdown` does, within the same time.

    :return: ``ok``.
    :raises ErllamaError: ``not_found``.
    """
    core().unload(model if isinstance(model, ModelPid) else id_text(model))
    return Atom("ok")


def unload_model(model: ModelArg) -> Atom:
    """Do what :func:`unload` does."""
    return unload(model)


def models() -> list[ModelPid]:
    """Return the pids of the live model processes."""
    return [pid for host in core().hosts() if (pid := host.pid) is not None]


def list_models() -> list[dict[str, Any]]:
    """Return :func:`model_info` of every model that is up; do not rely on the order."""
    return [_info(host) for host in core().hosts() if host.pid is not None]


def model_info(model: ModelArg) -> dict[str, Any]:
    """Return what a model is and does (16 keys, see the reference).

    :raises ModelGone: unknown model.
    """
    return _info(core().host(model))


def resolve_model(value: Any) -> tuple[bool, str]:
    """Return what a ``model_path`` option means: whether it is a known name, and the file.

    :raises ErllamaError: ``badarg``; ``load_failed`` for a known name not installed.
    """
    return _is_known(value), _resolve_model(value)


def find_models() -> list[dict[str, Any]]:
    """Return the model files on this machine: ``name``, ``path``, ``size`` in bytes.

    ``name`` is what ``model_path`` accepts: a known name, or the path again.
    """
    return [
        {"name": found.name, "path": str(found.path), "size": found.size}
        for found in _find_models()
    ]


def status(model: ModelArg) -> Atom:
    """Return ``idle``, ``prefilling`` or ``generating``.

    :raises ModelGone: unknown model; :func:`phase` answers ``idle`` instead.
    """
    return Atom(core().host(model).phase)


def evict(model: ModelArg) -> Atom:
    """Save what running requests have computed, and free their live KV.

    Each leaves a row with reason ``evict``, however short.  The requests go on: they are
    queued first and restored from there.  Where that is not the same, the KV stays: at
    exactness ``bit``, and where nothing could be saved.

    :return: ``ok``, always; after ``evict_save_timeout_ms`` (30 s) at the latest.
    :raises ModelGone: unknown model, or it died meanwhile.
    """
    core().save_live(model, "evict")
    return Atom("ok")


def shutdown(model: ModelArg) -> Atom:
    """Save what running requests have computed, as far as to the model's file tier.

    Each leaves a row with reason ``shutdown``, however short.  Nothing is stopped:
    that is what :func:`unload` does, which saves these rows too.

    :return: ``ok``, always; after ``evict_save_timeout_ms`` (30 s) at the latest.
    :raises ModelGone: unknown model, or it died meanwhile.
    """
    core().save_live(model, "shutdown")
    return Atom("ok")


def _info(host: ModelHost) -> dict[str, Any]:
    config = host.config
    return {
        "id": host.id,
        "model_id": host.id,
        "pid": host.pid,
        "status": Atom(host.phase),
        "phase": Atom(host.phase),
        "pending_len": host.pending_len,
        "last_cache_hit": dict(host.last_hit) if host.last_hit else None,
        "backend": Atom(host.info.backend),
        "context_size": config.context_size,
        "quant_type": Atom(config.quant_type),
        "quant_bits": config.quant_bits,
        "quant_tag": config.quant_type,
        "tier": Atom(config.tier),
        "fingerprint": host.cache.fingerprint,
        "loaded_at_monotonic": host.loaded_at,
        "vram_estimate_b": _vram_estimate(host),
    }


def _vram_estimate(host: ModelHost) -> int:
    """Bytes of weights on devices, in proportion to the layers offloaded."""
    size, layers = host.info.model_size_bytes, host.info.total_layers
    offloaded = host.info.n_gpu_layers
    if not size or not layers:
        return 0
    return size if offloaded < 0 or offloaded >= layers else size * offloaded // layers


def vram_info() -> dict[str, int]:
    """Return ``total_b``, ``free_b``, ``used_b`` over all non-CPU devices.

    :raises ErllamaError: ``no_gpu``.
    """
    total, free = device_memory(core().hosts())
    if not total:
        raise ErllamaError("no_gpu", "the engine sees no device but the CPU")
    return {"total_b": total, "free_b": free, "used_b": max(total - free, 0)}


def model_memory() -> dict[str, Any]:
    """Return what the models of this process take of memory, in bytes.

    :return: ``limit``, that of ``model_memory_bytes``, or None; ``used``, by all of them;
        and ``models``: for each id ``weights``, ``context`` and ``compute``, as the engine
        made them, or, while it loads and with a limit, as its file was estimated.
    :raises ErllamaError: the environment sets what cannot be.
    """
    charges = core().budget.charges
    return {
        "limit": model_memory_limit(),
        "used": sum(charge.total for charge in charges.values()),
        "models": {model_id: charge._asdict() for model_id, charge in charges.items()},
    }


def watch(watcher: Watcher) -> Callable[[], None]:
    """Call ``watcher("up" | "down", model_id, pid, reason)`` as model processes come and go.

    It runs on threads of ours and must be quick.  Returns a function that ends it.
    """
    return core().watch(watcher)
