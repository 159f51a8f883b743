"""Which functions of the original's other modules there are, and what any call of them gets."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from erl_bridge import ErlangError, Undef
from erl_bridge.etf import Atom, Pid, Reference, encode
from erl_bridge.service import ErllamaNode
from erl_bridge.service.cache_modules import SERVED
from erllama_py import api
from tests.property.strategies.erl_terms import terms
from tests.unit.erl_bridge.service.othermodules import (
    DISK,
    HEADER,
    KEY,
    META,
    MODEL,
    RAM,
    UNDEFINED,
    call,
)

pytestmark = pytest.mark.usefixtures("nothing_cached")


EXPORTS = """
    cache: evict_bytes/1 evict_bytes/2 gc/0 get_counters/0 lookup_longest_prefix/2
        lookup_longest_prefix/4 reset_counters/0
    cache_bench: save_load/3
    cache_counters: add/2 get/1 incr/1 incr/2 init/0 reset/0 snapshot/0
    cache_disk_srv: abort_tmp/1 delete/2 dir/1 load/2 publish/1 publish/4 save/3 scan/1
        start_link/2 start_link/3 touch_hits/2 write_tmp/3
    cache_key: decode_tokens/1 effective_fingerprint/2 encode_tokens/1 make/1 make/4
        quant_atom/1 quant_byte/1 quant_tag/2
    cache_kvc: build/2 parse/2 parse_meta/1
    cache_meta_srv: announce_saved/4 announce_saved/5 cancel_reservation/2
        check_reservation/2 checkin/1 checkout/2 dump/0 dump/1 evict_bytes/1 evict_bytes/2
        gc/0 insert_available/5 insert_available/6 lookup_exact/1 lookup_exact_or_wait/2
        lookup_longest_prefix/4 mark_published/3 reserve_save/3
    cache_policy: cold_save_split/2 should_continued_save/3 should_finish_save/2
        trim_boundary/3 validate_config/1
    cache_ram: delete/1 load/1 put/3 size_bytes/0
    cache_ramfile_srv: delete/2 dir/1 load/2 save/3 scan/1 start_link/2
    cache_writer: acquire/1 current/0 max_concurrent/0 release/0 save/4 save/5
        set_max_concurrent/1
    inflight: all/0 lookup/1 obs_delete/1 obs_get/1 obs_put/2 queue_depth/0 queue_depth/1
        register/2 unregister/1
    model: cache_key_meta/1 start_link/2 stop/1
    model_sup: models/0 start_model/2 stop_model/1
    registry: all/0 register_name/2 send/2 unregister_name/1 whereis_name/1
"""


def test_these_are_served_besides_erllama_and_its_twin() -> None:
    served = [
        f"{module.removeprefix('erllama_')}: "
        + " ".join(sorted(f"{name}/{arity}" for name, arity in functions))
        for module, functions in sorted(SERVED.items())
    ]
    assert " ".join(served).split() == EXPORTS.split()


@pytest.mark.parametrize(
    ("what", "args"),
    [
        ("cache:clear", []),
        ("cache_meta_srv:process_died", [KEY]),
        ("cache_meta_srv:checkout", [KEY]),
        ("cache_disk_srv:stop", [DISK]),
        ("model:get_policy", [MODEL]),
        ("registry:start_link", []),
        ("sup:start_link", []),
    ],
)
def test_everything_else_is_undef(node: ErllamaNode, what: str, args: list[Any]) -> None:
    with pytest.raises(Undef):
        call(node, what, *args)


@pytest.mark.parametrize(
    "function",
    ["get_policy", "get_backend_state", "get_last_sampler_cfg", "get_request_sampler_ref"],
)
def test_windows_for_the_originals_own_tests_are_undef(node: ErllamaNode, function: str) -> None:
    with pytest.raises(Undef):
        call(node, f"model:{function}", MODEL)


@pytest.mark.parametrize(
    ("what", "args", "reason"),
    [
        ("cache:evict_bytes", [-1], "function_clause"),
        ("cache:evict_bytes", [1, [Atom("tape")]], "function_clause"),
        ("cache:lookup_longest_prefix", [{}, [1]], "function_clause"),
        ("cache_meta_srv:dump", [Atom("key")], "function_clause"),
        ("cache_meta_srv:checkout", [KEY, KEY], "function_clause"),
        ("cache_meta_srv:reserve_save", [KEY, Atom("tape"), Pid(DISK, 1, 0, 1)], "function_clause"),
        ("cache_counters:get", [0], "badarg"),
        ("cache_counters:incr", [21], "badarg"),
        ("cache_ram:put", [KEY, list(b"text"), HEADER], "function_clause"),
        ("cache_disk_srv:start_link", [b"name", b"/tmp"], "function_clause"),
        ("cache_disk_srv:start_link", [DISK, Atom("tmp")], "function_clause"),
        ("cache_disk_srv:start_link", [DISK, b"a\0b"], "function_clause"),
        ("cache_disk_srv:start_link", [DISK, RAM, b"/tmp"], "function_clause"),
        ("cache_disk_srv:start_link", [UNDEFINED, b"/tmp"], "badarg"),
        ("cache_disk_srv:publish", [{Atom("key"): KEY}], "function_clause"),
        ("cache_writer:acquire", [Atom("soon")], "function_clause"),
        ("cache_writer:save", [DISK, RAM, META, b""], "function_clause"),
        ("cache_writer:set_max_concurrent", [0], "function_clause"),
        ("cache_key:make", [{}], "function_clause"),
        ("cache_key:make", [b"", Atom("f16"), b"", b""], "function_clause"),
        ("cache_key:effective_fingerprint", [KEY, [KEY]], "function_clause"),
        ("cache_policy:trim_boundary", [[1], 0, 0], "function_clause"),
        ("inflight:lookup", [KEY], "function_clause"),
        ("model:cache_key_meta", [Atom("m")], "function_clause"),
        ("model_sup:start_model", [Atom("m"), {}], "function_clause"),
    ],
)
def test_what_no_clause_takes(node: ErllamaNode, what: str, args: list[Any], reason: str) -> None:
    module, _, function = what.partition(":")
    with pytest.raises(ErlangError) as caught:
        call(node, what, *args)
    assert (caught.value.class_, caught.value.reason) == ("error", Atom(reason))
    assert caught.value.stack == [(Atom(f"erllama_{module}"), Atom(function), args, [])]


@settings(
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_call_is_answered_with_a_term_or_one_of_erlangs_failures(
    node: ErllamaNode, disk: Atom, data: st.DataObject
) -> None:
    """No argument reaches a defect of ours."""
    listed = sorted((module, *which) for module, some in SERVED.items() for which in some)
    module, function, arity = data.draw(st.sampled_from(listed))
    ended = Pid(Atom(node.name), 3, 0, 1)  # one of our own, so that nothing is dialled
    likely = st.sampled_from(
        [
            *(KEY, HEADER, META, disk, DISK, [1, 2], 0, 3, 1 << 70, 1.5, MODEL, (DISK, b"path")),
            *(Atom("infinity"), Atom("true"), ended),
            Reference(DISK, 1, (1, 2, 3)),
        ]
    )
    args = data.draw(st.lists(likely | terms, min_size=arity, max_size=arity))
    what = f"{module.removeprefix('erllama_')}:{function}"
    if function in ("acquire", "save", "lookup_exact_or_wait", "set_max_concurrent", "save_load"):
        args = [0 if type(arg) is int or arg is Atom("infinity") else arg for arg in args]
    args = [ended if isinstance(arg, Pid) else arg for arg in args]
    if function in ("stop", "stop_model"):  # the other tests need it
        args = [b"another" if arg == MODEL else arg for arg in args]
    failure: ErlangError | None = None
    try:
        encode(call(node, what, *args, caller=ended))
    except ErlangError as error:
        failure = error
    if failure is not None:
        encode((failure.reason, failure.stack))
        why = failure.reason[0] if type(failure.reason) is tuple else failure.reason
        assert why.name in ("noproc", "function_clause", "badarg", "badkey", "badmap")
    for info in api.list_models():
        if info["id"] != MODEL.decode():
            api.unload(info["id"])
    assert isinstance(call(node, "registry:whereis_name", MODEL), Pid)
