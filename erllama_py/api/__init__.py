"""The façade: erllama's functions under their Erlang names.

Shapes are the original's, with Python's values in them: ids and texts are ``str``
(``bytes`` are accepted, and returned where a text is not valid UTF-8), option maps are
dicts keyed by the atoms' names, atoms as values are
:class:`~erllama_py.types.Atom`, ``undefined`` is ``None``.  ``{ok, X}`` returns ``X``,
``{error, R}`` raises :class:`~erllama_py.errors.ErllamaError` with ``.reason``; an exit
raises :class:`~erllama_py.errors.ModelGone`, an argument of the wrong kind
:class:`~erllama_py.errors.BadCall`.

``model`` is a model id, a :class:`~erllama_py.types.ModelPid`, or what
:func:`load_model` returned.  Every function may be called from any thread.
"""

from __future__ import annotations

from erllama_py._engine.stream import Stream
from erllama_py.api._adapters import list_adapters, load_adapter, set_adapter_scale, unload_adapter
from erllama_py.api._caching import explain, export_row, flush, import_rows, verify_exact
from erllama_py.api._generation import cancel, complete, infer, prefill_only
from erllama_py.api._handle import Model, load_model
from erllama_py.api._models import (
    evict,
    find_models,
    list_models,
    model_info,
    model_memory,
    models,
    resolve_model,
    shutdown,
    status,
    unload,
    unload_model,
    vram_info,
    watch,
)
from erllama_py.api._observing import (
    cache_snapshot,
    counters,
    last_cache_hit,
    list_cached_prefixes,
    model_totals,
    pending_len,
    phase,
    queue_depth,
)
from erllama_py.api._sessions import end_session, list_sessions
from erllama_py.api._speculation import draft_tokens, verify
from erllama_py.api._starting import start
from erllama_py.api._text import apply_chat_template, detokenize, embed, tokenize

__all__ = (
    "Model",
    "Stream",
    "apply_chat_template",
    "cache_snapshot",
    "cancel",
    "complete",
    "counters",
    "detokenize",
    "draft_tokens",
    "embed",
    "end_session",
    "evict",
    "explain",
    "export_row",
    "find_models",
    "flush",
    "import_rows",
    "infer",
    "last_cache_hit",
    "list_adapters",
    "list_cached_prefixes",
    "list_models",
    "list_sessions",
    "load_adapter",
    "load_model",
    "model_info",
    "model_memory",
    "model_totals",
    "models",
    "pending_len",
    "phase",
    "prefill_only",
    "queue_depth",
    "resolve_model",
    "set_adapter_scale",
    "shutdown",
    "start",
    "status",
    "tokenize",
    "unload",
    "unload_adapter",
    "unload_model",
    "verify",
    "verify_exact",
    "vram_info",
    "watch",
)
