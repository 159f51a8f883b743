"""``erllama_model``: the functions of ``erllama`` again, and three of a model's own.

The original's ``get_policy/1``, ``get_backend_state/1`` and the like serve its own tests,
and are not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from erllama_py import api
from erllama_py._engine.registry import core
from erllama_py.api import (
    apply_chat_template,
    cancel,
    complete,
    counters,
    detokenize,
    draft_tokens,
    embed,
    evict,
    infer,
    last_cache_hit,
    list_adapters,
    list_cached_prefixes,
    list_models,
    load_adapter,
    load_model,
    model_info,
    models,
    pending_len,
    phase,
    prefill_only,
    queue_depth,
    set_adapter_scale,
    shutdown,
    status,
    tokenize,
    unload,
    unload_adapter,
    unload_model,
    verify,
    vram_info,
)
from erllama_py.otp import model_sup
from erllama_py.types import Atom, ModelPid

__all__ = (
    "apply_chat_template",
    "cache_key_meta",
    "cancel",
    "complete",
    "counters",
    "detokenize",
    "draft_tokens",
    "embed",
    "evict",
    "infer",
    "last_cache_hit",
    "list_adapters",
    "list_cached_prefixes",
    "list_models",
    "load_adapter",
    "load_model",
    "model_info",
    "models",
    "pending_len",
    "phase",
    "prefill_only",
    "queue_depth",
    "set_adapter_scale",
    "shutdown",
    "start_link",
    "status",
    "stop",
    "tokenize",
    "unload",
    "unload_adapter",
    "unload_model",
    "verify",
    "vram_info",
)


def start_link(model_id: str | bytes, config: Mapping[str, Any]) -> ModelPid | None:
    """Do :func:`.model_sup.start_model`; the model is linked to nobody and lives on."""
    return model_sup.start_model(model_id, config)


def stop(model: str | bytes | ModelPid) -> Atom:
    """Unload a model.

    :return: ``ok``.
    :raises ModelGone: unknown model, where ``unload`` answers ``not_found``.
    """
    core().host(model)
    return api.unload(model)


def cache_key_meta(model: str | bytes | ModelPid) -> dict[str, Any]:
    """Return what addresses the model's rows besides their tokens.

    For :func:`.cache_meta_srv.lookup_longest_prefix` and :func:`.cache_key.make`.

    :return: ``fingerprint``, the effective one; ``quant_type``; ``ctx_params_hash``.
    :raises ModelGone: unknown model.
    """
    host = core().host(model)
    namespace = host.cache.namespace
    return {
        "fingerprint": namespace.identity.fingerprint if namespace else host.cache.fingerprint,
        "quant_type": Atom(host.config.quant_type),
        "ctx_params_hash": host.config.ctx_params_hash,
    }
