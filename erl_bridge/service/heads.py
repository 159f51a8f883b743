"""The heads of erllama's functions: which arguments each of them takes.

In the original most arguments are checked by the function's head, in the caller, and what
no clause takes is ``error:function_clause`` there.  Peers call our functions without such
a head in between, so the same is asked here, before anything is converted: an atom is
not a text, though Python may have it as a ``str``, and a tuple of numbers is no list.

Where the original had no guard and its model process died of the argument (a prompt that
is no binary, options that are no map), there is one here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from erl_bridge.etf import Map, Pid, Reference

__all__ = ("FUNCTIONS", "HEADS", "head_of")

Kind = str
"""One of :data:`_TAKES`."""

_TAKES: Final[Mapping[Kind, Callable[[Any], bool]]] = {
    "any": lambda _: True,
    "id": lambda term: type(term) is bytes,
    "model": lambda term: type(term) is bytes or isinstance(term, Pid),
    "text": lambda term: type(term) is bytes,
    "tokens": lambda term: type(term) is list,
    "none": lambda term: type(term) is list and not term,
    "map": lambda term: isinstance(term, (dict, Map)),
    "options": lambda term: isinstance(term, (dict, Map)),
    "session": lambda _: True,
    "pid": lambda term: isinstance(term, Pid),
    "ref": lambda term: isinstance(term, Reference),
    "number": lambda term: type(term) in (int, float),
    "positive": lambda term: type(term) is int and term > 0,
}

HEADS: Final[Mapping[str, tuple[tuple[Kind, ...], ...]]] = {
    "load_model": (("map",), ("id", "map")),
    "unload": (("model",),),
    "unload_model": (("model",),),
    "models": ((),),
    "list_models": ((),),
    "model_info": (("model",),),
    "status": (("model",),),
    "evict": (("model",),),
    "shutdown": (("model",),),
    "complete": (("model", "text"), ("model", "text", "options")),
    "prefill_only": (("model", "tokens"), ("model", "tokens", "options")),
    "end_session": (("model", "session"),),
    "infer": (("model", "tokens", "options", "pid"),),
    "cancel": (("ref",),),
    "tokenize": (("model", "text"),),
    "detokenize": (("model", "tokens"),),
    "apply_chat_template": (("model", "map"),),
    "embed": (("model", "tokens"),),
    "draft_tokens": (("any", "none", "any"), ("id", "tokens", "map")),
    "verify": (("id", "tokens", "tokens", "positive"),),
    "load_adapter": (("model", "any"),),
    "unload_adapter": (("model", "any"),),
    "set_adapter_scale": (("model", "any", "number"),),
    "list_adapters": (("model",),),
    "queue_depth": ((), ("id",)),
    "pending_len": (("id",),),
    "phase": (("id",),),
    "last_cache_hit": (("id",),),
    "list_cached_prefixes": (("any", "none"), ("id", "tokens")),
    "counters": ((),),
    "vram_info": ((),),
}
"""Each function's clauses, as the kinds of their arguments in erllama 0.3.0.

``prefill_only/3`` and ``end_session/2`` are of 0.5.0."""

FUNCTIONS: Final = frozenset(
    (name, len(clause)) for name, clauses in HEADS.items() for clause in clauses
)
"""Every function of ``erllama``, as (name, arity): the 33 exports of 0.3.0, and two more."""


def head_of(function: str, args: list[Any]) -> tuple[Kind, ...] | None:
    """Return the first clause that takes these arguments; ``None``: function_clause."""
    for clause in HEADS[function]:
        if len(clause) == len(args) and all(
            _TAKES[kind](arg) for kind, arg in zip(clause, args, strict=True)
        ):
            return clause
    return None
