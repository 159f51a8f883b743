"""The original's modules of cache, models and streams, as peers may call them.

What is named by a text needs to know who calls, or may wait for long: see
:mod:`erl_bridge.service.callers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from erl_bridge.service.served import Served
from erllama_py import types
from erllama_py.otp import (
    cache,
    cache_bench,
    cache_counters,
    cache_disk_srv,
    cache_key,
    cache_kvc,
    cache_meta_srv,
    cache_policy,
    cache_ram,
    cache_writer,
    inflight,
    model,
    model_sup,
    registry,
)

__all__ = ("SERVED",)

Functions = Mapping[tuple[str, int], Served]


def _trim_boundary(*args: Any) -> Any:
    """Tell ``{ok, Prefix}`` from ``{skip, too_short}``."""
    found = cache_policy.trim_boundary(*args)
    return (types.Atom("ok"), found) if isinstance(found, list) else found


_EVICTION: Final[Functions] = {
    ("gc", 0): Served(cache_meta_srv.gc),
    ("evict_bytes", 1): Served(cache_meta_srv.evict_bytes, ("count",)),
    ("evict_bytes", 2): Served(cache_meta_srv.evict_bytes, ("count", "any")),
}

_SERVER: Final[Functions] = {
    ("save", 3): Served(cache_disk_srv.save, ("server", "map", "bin"), "ok_tuple"),
    ("load", 2): Served(cache_disk_srv.load, ("server", "key"), "ok_tuple"),
    ("delete", 2): Served(cache_disk_srv.delete, ("server", "key")),
    ("scan", 1): Served(cache_disk_srv.scan, ("server",)),
    ("dir", 1): Served("dir", ("server",)),
    ("start_link", 2): Served("start_tier", ("atom", "path")),
}

SERVED: Final[Mapping[str, Functions]] = {
    "erllama_cache": {
        **_EVICTION,
        ("get_counters", 0): Served(cache.get_counters, read=True),
        ("reset_counters", 0): Served(cache.reset_counters),
        ("lookup_longest_prefix", 2): Served(
            cache.lookup_longest_prefix, ("map", "list"), "ok_tuple"
        ),
        ("lookup_longest_prefix", 4): Served(
            cache_meta_srv.lookup_longest_prefix, ("map", "list", "any", "any"), "ok_tuple"
        ),
    },
    "erllama_cache_meta_srv": {
        **_EVICTION,
        ("dump", 0): Served(cache_meta_srv.dump),
        ("dump", 1): Served(cache_meta_srv.dump, ("bin",), "ok"),
        ("lookup_exact", 1): Served(cache_meta_srv.lookup_exact, ("bin",), "ok"),
        ("lookup_longest_prefix", 4): Served(
            cache_meta_srv.lookup_longest_prefix, ("map", "list", "any", "any"), "ok_tuple"
        ),
        ("lookup_exact_or_wait", 2): Served("await_row", ("bin", "ms")),
        ("checkout", 2): Served("checkout", ("bin", "pid")),
        ("checkin", 1): Served("checkin", ("any",)),
        ("reserve_save", 3): Served("reserve_save", ("bin", "atom", "pid")),
        ("cancel_reservation", 2): Served("cancel_reservation", ("bin", "any")),
        ("announce_saved", 4): Served("announce_saved", ("bin", "any", "count", "bin")),
        ("announce_saved", 5): Served("announce_saved", ("bin", "any", "count", "bin", "any")),
        ("check_reservation", 2): Served(cache_meta_srv.check_reservation, ("bin", "any")),
        ("mark_published", 3): Served(cache_meta_srv.mark_published, ("bin", "any", "path")),
        ("insert_available", 5): Served(
            cache_meta_srv.insert_available, ("bin", "atom", "count", "bin", "any")
        ),
        ("insert_available", 6): Served(
            cache_meta_srv.insert_available, ("bin", "atom", "count", "bin", "any", "any")
        ),
    },
    "erllama_cache_counters": {
        ("init", 0): Served(cache_counters.init, read=True),
        ("incr", 1): Served(cache_counters.incr, ("any",), read=True),
        ("incr", 2): Served(cache_counters.incr, ("any", "any"), read=True),
        ("add", 2): Served(cache_counters.add, ("any", "any"), read=True),
        ("get", 1): Served(cache_counters.get, ("any",), read=True),
        ("snapshot", 0): Served(cache_counters.snapshot, read=True),
        ("reset", 0): Served(cache_counters.reset, read=True),
    },
    "erllama_cache_ram": {
        ("put", 3): Served(cache_ram.put, ("bin", "bin", "bin")),
        ("load", 1): Served(cache_ram.load, ("bin",), "ok"),
        ("delete", 1): Served(cache_ram.delete, ("bin",)),
        ("size_bytes", 0): Served(cache_ram.size_bytes, read=True),
    },
    "erllama_cache_disk_srv": {
        **_SERVER,
        ("start_link", 3): Served("start_tier", ("atom", "atom", "path")),
        ("write_tmp", 3): Served("write_tmp", ("path", "map", "bin")),
        ("touch_hits", 2): Served(cache_disk_srv.touch_hits, ("path", "count")),
        ("publish", 1): Served(cache_disk_srv.publish, ("staged",), "ok_tuple"),
        ("publish", 4): Served(cache_disk_srv.publish, ("path", "path", "path", "bin"), "ok_tuple"),
        ("abort_tmp", 1): Served(cache_disk_srv.abort_tmp, ("staged",)),
    },
    "erllama_cache_ramfile_srv": _SERVER,
    "erllama_cache_writer": {
        ("save", 4): Served("writer_save", ("server", "any", "map", "bin")),
        ("save", 5): Served("writer_save", ("server", "any", "map", "bin", "any")),
        ("acquire", 1): Served("acquire", ("any",)),
        ("release", 0): Served("release"),
        ("current", 0): Served(cache_writer.current, read=True),
        ("max_concurrent", 0): Served(cache_writer.max_concurrent, read=True),
        ("set_max_concurrent", 1): Served(cache_writer.set_max_concurrent, ("count",)),
    },
    "erllama_cache_key": {
        ("make", 1): Served(cache_key.make, ("map",)),
        ("make", 4): Served(cache_key.make, ("bin", "atom", "bin", "bin")),
        ("effective_fingerprint", 2): Served(cache_key.effective_fingerprint, ("bin", "adapters")),
        ("quant_byte", 1): Served(cache_key.quant_byte, ("atom",)),
        ("quant_atom", 1): Served(cache_key.quant_atom, ("any",), "ok"),
        ("quant_tag", 2): Served(cache_key.quant_tag, ("atom", "any")),
        ("encode_tokens", 1): Served(cache_key.encode_tokens, ("list",)),
        ("decode_tokens", 1): Served(cache_key.decode_tokens, ("bin",)),
    },
    "erllama_cache_kvc": {
        ("build", 2): Served(cache_kvc.build, ("map", "bin"), "ok"),
        ("parse", 2): Served(cache_kvc.parse, ("bin", "bin"), "ok_tuple"),
        ("parse_meta", 1): Served(cache_kvc.parse_meta, ("bin",), "ok"),
    },
    "erllama_cache_policy": {
        ("trim_boundary", 3): Served(_trim_boundary, ("list", "any", "any")),
        ("cold_save_split", 2): Served(cache_policy.cold_save_split, ("list", "map")),
        ("should_continued_save", 3): Served(
            cache_policy.should_continued_save, ("any", "any", "map")
        ),
        ("should_finish_save", 2): Served(cache_policy.should_finish_save, ("any", "map")),
        ("validate_config", 1): Served(cache_policy.validate_config, ("map",)),
    },
    "erllama_cache_bench": {
        ("save_load", 3): Served(cache_bench.save_load, ("server", "runs", "size")),
    },
    "erllama_registry": {
        ("whereis_name", 1): Served(registry.whereis_name, ("any",), read=True),
        ("all", 0): Served(registry.all, read=True),
        ("send", 2): Served("send", ("any", "any")),
        ("register_name", 2): Served(registry.register_name, ("any", "pid"), read=True),
        ("unregister_name", 1): Served(registry.unregister_name, ("any",), read=True),
    },
    "erllama_inflight": {
        ("lookup", 1): Served("lookup_stream", ("ref",)),
        ("all", 0): Served("all_streams"),
        ("queue_depth", 1): Served("queue_depth", ("pid",)),
        ("queue_depth", 0): Served(inflight.queue_depth, read=True),
        ("register", 2): Served(inflight.register, ("ref", "pid"), read=True),
        ("unregister", 1): Served(inflight.unregister, ("ref",), read=True),
        ("obs_put", 2): Served(inflight.obs_put, ("any", "any"), read=True),
        ("obs_get", 1): Served(inflight.obs_get, ("any",), read=True),
        ("obs_delete", 1): Served(inflight.obs_delete, ("any",), read=True),
    },
    "erllama_model": {
        ("start_link", 2): Served("start_model", ("id", "map")),
        ("cache_key_meta", 1): Served(model.cache_key_meta, ("model",)),
        ("stop", 1): Served(model.stop, ("model",)),
    },
    "erllama_model_sup": {
        ("start_model", 2): Served("start_model", ("id", "map")),
        ("stop_model", 1): Served(model_sup.stop_model, ("model",)),
        ("models", 0): Served(model_sup.models, read=True),
    },
}
"""Module, then (function, arity)."""
