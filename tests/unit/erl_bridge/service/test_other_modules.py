"""The original's other modules against a stub model, without a peer."""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from erl_bridge import CallContext, ErlangError, Undef
from erl_bridge.etf import Atom, Pid, Reference, encode
from erl_bridge.service import ErllamaNode
from erl_bridge.service.cache_modules import SERVED
from erl_bridge.service.served import path_bytes
from erllama_py import api
from erllama_py._cache.store import Cache
from erllama_py._engine.registry import core
from erllama_py.otp import cache_disk_srv, cache_meta_srv, cache_writer
from erllama_py.testing import stub_model
from tests.property.strategies.erl_terms import terms
from tests.waiting import wait_for

OK, ERROR, MISS, UNDEFINED = map(Atom, ("ok", "error", "miss", "undefined"))
DISK, RAM = Atom("disk"), Atom("ram")
MODEL = b"others"
KEY = b"k" * 32
HEADER = bytes(48)
META: dict[Any, Any] = {
    Atom("save_reason"): Atom("finish"),
    Atom("quant_bits"): 16,
    Atom("fingerprint"): b"\x07" * 32,
    Atom("fingerprint_mode"): Atom("safe"),
    Atom("quant_type"): Atom("f16"),
    Atom("ctx_params_hash"): b"\x08" * 32,
    Atom("tokens"): [1, 2, 3],
    Atom("context_size"): 4096,
}
TOKENS = bytes.fromhex("010000000200000003000000")
QUOTA = 1 << 24


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def node(root: Path) -> Iterator[ErllamaNode]:
    """A node with an epmd of its own, a cache of its own, and a stub model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cache, of_core = Cache(QUOTA), core()
    before, of_core._cache = of_core._cache, cache
    served = ErllamaNode("others", cookie="c", epmd_port=port, roots=[root])
    with served, stub_model(MODEL.decode(), context_opts={"n_ctx": 512}):
        yield served
    of_core._cache = before
    cache.close()


@pytest.fixture(autouse=True)
def nothing_cached(node: ErllamaNode) -> None:
    """Whatever ran before; what a request holds stays for a moment after its reply."""
    wait_for(lambda: bool(cache_meta_srv.gc()) and cache_meta_srv.dump() == [])
    wait_for(lambda: cache_writer.current() == 0)


@pytest.fixture
def caller(node: ErllamaNode) -> Iterator[Any]:
    """A process that ends with the test: what it holds is then let go of."""
    process = node.node.spawn_process()
    yield process
    process.exit()


@pytest.fixture
def disk(node: ErllamaNode, root: Path, request: pytest.FixtureRequest) -> Iterator[Atom]:
    """A tier server, by its name; its rows go with it."""
    name = Atom(f"disk_{abs(hash(request.node.name))}")
    assert call(node, "cache_disk_srv:start_link", name, os.fsencode(root / name.name))[0] is OK
    yield name
    cache_meta_srv.gc()
    cache_disk_srv.stop(name.name)


def call(node: ErllamaNode, what: str, *args: Any, caller: Pid | None = None) -> Any:
    """Apply a function as a peer would; ``what`` is its module and name, without erllama."""
    module, _, function = what.partition(":")
    pid = caller or Pid(Atom("peer@nowhere.invalid"), 9, 0, 1)
    context = CallContext(node.node, "peer@nowhere.invalid", pid, pid)

    async def run() -> Any:
        value = node._apply(context, f"erllama_{module}", function, list(args))
        return await value if inspect.isawaitable(value) else value

    return asyncio.run(run())


# -- who may call what --------------------------------------------------------------------

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


# -- the index ----------------------------------------------------------------------------


def test_a_row_goes_in_and_is_found(node: ErllamaNode) -> None:
    place = (DISK, b"/anywhere/else")
    srv = "cache_meta_srv"
    assert call(node, f"{srv}:insert_available", KEY, DISK, 7, HEADER, place) is OK
    row = call(node, f"{srv}:dump", KEY)[1]
    assert row[:3] == (KEY, DISK, 7)
    assert row[4:] == (0, Atom("available"), HEADER, place, None, 0)
    assert call(node, f"{srv}:dump") == [row]
    assert call(node, f"{srv}:lookup_exact", KEY) == (OK, row)
    assert call(node, f"{srv}:lookup_exact_or_wait", KEY, 0) == (OK, row)
    assert call(node, f"{srv}:lookup_exact", b"other") is MISS
    assert call(node, "cache:evict_bytes", 0) == (Atom("evicted"), 0, 0)
    assert call(node, "cache:gc") == (Atom("evicted"), 1)
    assert call(node, f"{srv}:dump", KEY) is MISS


def test_what_a_process_holds_goes_with_it(node: ErllamaNode, caller: Any) -> None:
    srv = "cache_meta_srv"
    call(node, f"{srv}:insert_available", KEY, RAM, 7, HEADER, (RAM,), TOKENS)
    held = call(node, f"{srv}:checkout", KEY, caller.pid)
    assert held[0] is OK
    assert isinstance(held[1], Reference)
    assert held[2:] == (RAM, (RAM,), HEADER, TOKENS)
    token = call(node, f"{srv}:reserve_save", b"w" * 32, DISK, caller.pid)[1]
    assert call(node, f"{srv}:check_reservation", b"w" * 32, token) is OK
    assert call(node, f"{srv}:checkout", b"w" * 32, caller.pid) == (ERROR, Atom("busy"))
    assert call(node, "cache_writer:acquire", 0, caller=caller.pid) is OK
    assert call(node, "cache_writer:current") == 1
    assert call(node, "cache:gc") == (Atom("evicted"), 0)
    caller.exit()
    wait_for(lambda: call(node, f"{srv}:dump", b"w" * 32) is MISS)
    wait_for(lambda: call(node, "cache_writer:current") == 0)
    assert call(node, f"{srv}:check_reservation", b"w" * 32, token) == (ERROR, Atom("expired"))
    assert call(node, "cache:gc") == (Atom("evicted"), 1)


def test_a_process_that_ended_before_holds_nothing(node: ErllamaNode, caller: Any) -> None:
    caller.exit()
    srv = "cache_meta_srv"
    wait_for(lambda: node.node.find(caller.pid) is None)
    assert call(node, f"{srv}:reserve_save", KEY, DISK, caller.pid)[0] is OK
    wait_for(lambda: call(node, f"{srv}:dump", KEY) is MISS)


def test_what_is_given_back_is_not_watched(node: ErllamaNode, caller: Any) -> None:
    srv = "cache_meta_srv"
    call(node, f"{srv}:insert_available", KEY, RAM, 7, HEADER, (RAM,))
    ref = call(node, f"{srv}:checkout", KEY, caller.pid)[1]
    token = call(node, f"{srv}:reserve_save", b"w" * 32, DISK, caller.pid)[1]
    holders = node._others._callers._holders
    assert list(holders._watches) == [caller.pid]
    assert call(node, f"{srv}:checkin", ref) is OK
    assert call(node, f"{srv}:checkin", ref) is OK
    assert call(node, f"{srv}:announce_saved", b"w" * 32, token, 5, HEADER) is OK
    assert (holders._watches, holders._held, holders._holder) == ({}, {}, {})
    assert call(node, f"{srv}:cancel_reservation", b"w" * 32, token) is OK
    assert call(node, "cache:gc") == (Atom("evicted"), 2)


def test_a_wait_ends_with_its_row_or_its_time(node: ErllamaNode, caller: Any) -> None:
    srv = "cache_meta_srv"
    assert call(node, f"{srv}:lookup_exact_or_wait", KEY, 60_000) is MISS
    token = call(node, f"{srv}:reserve_save", KEY, RAM, caller.pid)[1]
    assert call(node, f"{srv}:lookup_exact_or_wait", KEY, 120) is MISS

    async def both() -> Any:
        context = CallContext(node.node, "p@x", caller.pid, caller.pid)
        ask = node._apply(context, "erllama_cache_meta_srv", "lookup_exact_or_wait", [KEY, 60_000])
        waiter = asyncio.ensure_future(ask)
        await asyncio.sleep(0.12)  # past the first slice of the wait
        announce = [KEY, token, 5, HEADER]
        await node._apply(context, "erllama_cache_meta_srv", "announce_saved", announce)
        return await waiter

    assert asyncio.run(both())[1][0] == KEY
    assert call(node, "cache:gc") == (Atom("evicted"), 1)


# -- tier servers -------------------------------------------------------------------------


def test_a_server_saves_and_loads(node: ErllamaNode, disk: Atom, root: Path) -> None:
    srv = "cache_disk_srv"
    ok, key, header, size = call(node, f"{srv}:save", disk, META, b"payload")
    assert ok is OK
    assert call(node, "cache_key:make", META) == key
    ok, info, payload = call(node, f"{srv}:load", disk, key)
    assert (payload, info[Atom("tokens")], info[Atom("magic")]) == (b"payload", [1, 2, 3], b"KVC")
    assert info[Atom("quant_type")] is Atom("f16")
    folder = os.fsencode(root / disk.name)
    assert call(node, f"{srv}:dir", disk) == folder
    assert call(node, f"{srv}:scan", disk) == [(key, header, size)]
    row = call(node, "cache_meta_srv:lookup_exact", key)[1]
    assert row[7:9] == ((DISK, folder + b"/" + key.hex().encode() + b".kvc"), TOKENS)
    asked = {name: META[Atom(name)] for name in ("fingerprint", "quant_type", "ctx_params_hash")}
    meta = {Atom(name): value for name, value in asked.items()}
    found = call(node, "cache:lookup_longest_prefix", meta, [1, 2, 3, 4], 3, 1)
    assert found == (OK, 3, row)
    assert call(node, f"{srv}:touch_hits", row[7][1], 3) is OK
    assert call(node, f"{srv}:delete", disk, key) is OK
    assert call(node, f"{srv}:load", disk, key) is MISS
    assert call(node, f"{srv}:save", disk, {}, b"") == (
        *(ERROR,),
        (Atom("missing_key"), Atom("save_reason")),
    )


def test_a_directory_given_as_a_charlist_is_shown_as_one(node: ErllamaNode, root: Path) -> None:
    folder = [*map(ord, str(root / "lists"))]
    name = Atom("charlists")
    ok, pid = call(node, "cache_ramfile_srv:start_link", name, folder)
    assert ok is OK
    key = call(node, "cache_ramfile_srv:save", pid, META, b"p")[1]
    assert call(node, "cache_ramfile_srv:dir", pid) == folder
    file = [*folder, *map(ord, f"/{key.hex()}.kvc")]
    assert call(node, "cache_meta_srv:dump", key)[1][7] == (Atom("ram_file"), file)
    written = call(node, "cache_disk_srv:write_tmp", folder, META, b"p")[1]
    assert written[Atom("root")] == folder
    assert written[Atom("final")] == file
    assert call(node, "cache_disk_srv:abort_tmp", written) is OK
    cache_disk_srv.stop("charlists")


def test_a_server_lives_below_the_roots_only(node: ErllamaNode, root: Path, tmp_path: Path) -> None:
    outside = os.fsencode(tmp_path / "rows")
    (root / "link").symlink_to(tmp_path)
    for where in (outside, os.fsencode(root / "link" / "rows"), os.fsencode(root / ".." / "x")):
        refused = (Atom("cannot_create_dir"), where, Atom("eacces"))
        assert call(node, "cache_disk_srv:start_link", DISK, where) == (ERROR, refused)
        assert call(node, "cache_disk_srv:write_tmp", where, META, b"") == (ERROR, Atom("eacces"))
    assert list(tmp_path.iterdir()) == []


def test_a_servers_name_is_registered_and_its_own(
    node: ErllamaNode, disk: Atom, root: Path
) -> None:
    process = node.node.whereis(disk.name)
    assert process is not None
    again = call(node, "cache_disk_srv:start_link", disk, os.fsencode(root / "again"))
    assert again == (ERROR, (Atom("already_started"), process.pid))
    rex = node.node.whereis("rex")
    assert rex is not None
    taken = call(node, "cache_disk_srv:start_link", Atom("rex"), os.fsencode(root / "again"))
    assert taken == (ERROR, (Atom("already_started"), rex.pid))
    assert node.node.whereis("rex") is rex


def test_a_server_has_its_name_however_it_was_started(node: ErllamaNode, root: Path) -> None:
    """From Python, and again after it was stopped: its name stands for the life that runs."""
    name = "by_python"
    assert node.node.whereis(name) is None
    pids = []
    for _ in range(2):
        tier = cache_disk_srv.start_link(name, root / name)
        wait_for(lambda: node.node.whereis(name))
        process = node.node.whereis(name)
        assert process is not None
        assert call(node, "cache_disk_srv:dir", Atom(name)) == os.fsencode(root / name)
        assert call(node, "cache_disk_srv:dir", process.pid) == os.fsencode(root / name)
        pids.append(process.pid)
        assert ("by_python", tier) in cache_disk_srv.running()
        cache_disk_srv.stop(name)
        wait_for(lambda: node.node.whereis(name) is None)
        assert not process.alive
    assert pids[0] != pids[1]


def test_a_server_that_is_not_there(node: ErllamaNode) -> None:
    nobody = Atom("nobody")
    for function, rest in (("load", [KEY]), ("dir", [])):
        with pytest.raises(ErlangError) as caught:
            call(node, f"cache_disk_srv:{function}", nobody, *rest)
        request = (Atom(function), *rest) if rest else Atom(function)
        assert caught.value.class_ == "exit"
        assert caught.value.reason == (
            *(Atom("noproc"),),
            (Atom("gen_server"), Atom("call"), [nobody, request, Atom("infinity")]),
        )


def test_the_writer_saves_by_hand(node: ErllamaNode, disk: Atom, caller: Any) -> None:
    saved = call(node, "cache_writer:save", disk, DISK, META, b"payload")
    assert saved == (OK, call(node, "cache_key:make", META))
    again = call(node, "cache_writer:save", disk, DISK, META, b"payload", 0)
    assert again == (ERROR, Atom("already_present"))
    assert call(node, "cache_writer:current") == 0
    limit = call(node, "cache_writer:max_concurrent")
    assert call(node, "cache_writer:set_max_concurrent", 1) is OK
    assert call(node, "cache_writer:acquire", Atom("infinity"), caller=caller.pid) is OK
    other = {**META, Atom("tokens"): [9]}
    before = call(node, "cache:get_counters")[Atom("saves_dropped")]
    full = call(node, "cache_writer:save", disk, DISK, other, b"payload", 20)
    assert full == (ERROR, Atom("max_concurrent"))
    assert call(node, "cache:get_counters")[Atom("saves_dropped")] == before + 1
    assert call(node, "cache_writer:release", caller=caller.pid) is OK
    cache_writer.set_max_concurrent(limit)


def test_a_save_step_by_step(node: ErllamaNode, disk: Atom, caller: Any) -> None:
    meta_srv, srv = "cache_meta_srv", "cache_disk_srv"
    key = call(node, "cache_key:make", META)
    token = call(node, f"{meta_srv}:reserve_save", key, DISK, caller.pid)[1]
    assert call(node, f"{meta_srv}:dump")[0][5:] == (Atom("writing"), b"", None, None)
    written = call(node, f"{srv}:write_tmp", call(node, f"{srv}:dir", disk), META, b"payload")[1]
    ok, same, header, size = call(node, f"{srv}:publish", written)
    assert (ok, same) == (OK, key)
    assert call(node, f"{meta_srv}:mark_published", key, token, written[Atom("final")]) is OK
    announced = [key, token, size, header, TOKENS]
    assert call(node, f"{meta_srv}:announce_saved", *announced) is OK
    assert call(node, f"{meta_srv}:announce_saved", *announced) == (ERROR, Atom("expired"))
    gone = call(node, f"{srv}:publish", b"x", written[Atom("tmp")], written[Atom("final")], key)
    assert gone == (ERROR, Atom("tmp_unreadable"))
    result = call(node, "cache_bench:save_load", disk, 2, 10)
    assert (result[Atom("runs")], result[Atom("payload_bytes")]) == (2, 10)


# -- the rest -----------------------------------------------------------------------------


def test_counters_payloads_and_pure_functions(node: ErllamaNode) -> None:
    assert call(node, "cache_counters:init") is OK
    assert call(node, "cache:reset_counters") is OK
    assert call(node, "cache_counters:incr", 3) is OK
    assert call(node, "cache_counters:add", 3, 4) is OK
    assert call(node, "cache_counters:get", 3) == 5
    assert call(node, "cache:get_counters") == call(node, "cache_counters:snapshot")
    assert len(call(node, "cache_counters:snapshot")) == 20
    assert call(node, "cache_ram:put", KEY, b"slab", HEADER) is OK
    assert call(node, "cache_ram:load", KEY) == (OK, b"slab")
    assert call(node, "cache_ram:size_bytes") > 0
    assert call(node, "cache_ram:delete", KEY) is OK
    assert call(node, "cache_ram:load", KEY) is MISS
    prefix = call(node, "cache_kvc:build", META, b"payload")[1]
    key = call(node, "cache_key:make", META)
    ok, info, payload = call(node, "cache_kvc:parse", prefix + b"payload", key)
    assert (ok, payload) == (OK, b"payload")
    assert call(node, "cache_kvc:parse_meta", prefix + b"payload") == (OK, info)
    assert call(node, "cache_kvc:parse", prefix, key) == (ERROR, Atom("truncated"))
    assert call(node, "cache_key:quant_atom", 1) == (OK, Atom("f16"))
    assert call(node, "cache_key:quant_atom", 99) == (ERROR, Atom("unknown_quant"))
    assert call(node, "cache_key:quant_tag", Atom("q4_k_m"), 4) == b"q4_k_m"
    assert call(node, "cache_key:quant_byte", Atom("true")) == 255
    assert call(node, "cache_key:decode_tokens", TOKENS) == [1, 2, 3]
    assert call(node, "cache_key:effective_fingerprint", KEY, []) == KEY
    assert call(node, "cache_policy:trim_boundary", [*range(15)], 2, 4) == (OK, [*range(12)])
    assert call(node, "cache_policy:trim_boundary", [1], 2, 4) == (
        *(Atom("skip"),),
        Atom("too_short"),
    )
    assert call(node, "cache_policy:should_finish_save", 4, {Atom("min_tokens"): 4}) is True


def test_models_by_their_names(node: ErllamaNode) -> None:
    (pid,) = call(node, "model:models")
    assert call(node, "registry:whereis_name", MODEL) == pid
    assert call(node, "registry:all") == [(MODEL, pid)]
    assert call(node, "registry:whereis_name", Atom("others")) is None
    assert call(node, "registry:register_name", b"new", pid) is Atom("no")
    assert call(node, "registry:unregister_name", b"new") == b"new"
    assert call(node, "registry:unregister_name", MODEL) == (ERROR, Atom("not_supported"))
    assert call(node, "registry:send", MODEL, Atom("hello")) == pid
    with pytest.raises(ErlangError) as caught:
        call(node, "registry:send", b"nobody", Atom("hello"))
    assert caught.value.reason == (Atom("badarg"), (b"nobody", Atom("hello")))
    child = (None, pid, Atom("worker"), [Atom("erllama_model")])
    assert call(node, "model_sup:models") == [child]


def test_models_by_their_supervisor(node: ErllamaNode) -> None:
    config = {Atom("backend"): Atom("erllama_model_stub"), Atom("in_process"): Atom("true")}
    ok, pid = call(node, "model_sup:start_model", b"child", config)
    assert (ok, call(node, "registry:whereis_name", b"child")) == (OK, pid)
    taken = (ERROR, (Atom("already_started"), pid))
    assert call(node, "model_sup:start_model", b"child", config) == taken
    assert call(node, "model:start_link", b"child", config) == taken
    outside = {Atom("model_path"): b"/etc/passwd"}
    assert call(node, "model_sup:start_model", b"x", outside) == (ERROR, Atom("eacces"))
    assert call(node, "model_sup:stop_model", pid) is OK
    assert call(node, "model_sup:stop_model", pid) is OK
    assert call(node, "model_sup:stop_model", b"child") == (ERROR, Atom("not_found"))
    with pytest.raises(ErlangError) as caught:
        call(node, "model:stop", b"child")
    assert caught.value.reason == (
        *(Atom("noproc"),),
        (Atom("erllama_model"), Atom("not_found"), b"child"),
    )


def test_a_models_rows_are_found_by_what_addresses_them(node: ErllamaNode) -> None:
    result = call(node, "model:prefill_only", MODEL, [*range(20)])[1]
    meta = call(node, "model:cache_key_meta", MODEL)
    assert set(meta) == {*map(Atom, ("fingerprint", "quant_type", "ctx_params_hash"))}
    key = call(node, "cache_key:make", {**meta, Atom("tokens"): [*range(20)]})
    assert key == result[Atom("finish_key")]
    row = call(node, "cache_meta_srv:lookup_exact_or_wait", key, 10_000)[1]
    assert row[:2] == (key, RAM)
    assert call(node, "cache:lookup_longest_prefix", meta, [*range(25)], 10, 1) == (OK, 20, row)
    seen = call(node, "inflight:obs_get", MODEL)
    assert seen == (MODEL, Atom("idle"), 0, Atom("cold"), 0)
    assert call(node, "inflight:obs_get", b"nobody") is None


def test_the_twins_failures_name_its_module(node: ErllamaNode) -> None:
    assert call(node, "model:status", MODEL) is Atom("idle")
    for function, args in (("phase", [5]), ("tokenize", [MODEL, list(b"x")])):
        with pytest.raises(ErlangError) as caught:
            call(node, f"model:{function}", *args)
        assert caught.value.stack == [(Atom("erllama_model"), Atom(function), args, [])]


def test_streams_in_flight(node: ErllamaNode) -> None:
    (pid,) = call(node, "model:models")
    slow = {"stub_opts": {"step_delay_ms": 20}, "context_opts": {"n_seq_max": 1}}
    with stub_model("slow", **slow):
        served = call(node, "registry:whereis_name", b"slow")
        params = {Atom("response_tokens"): 200}
        ref = call(node, "model:infer", b"slow", [1, 2], params, served)[1]
        with api.infer("slow", [3, 4], {"response_tokens": 200}):
            assert call(node, "inflight:lookup", ref) == (OK, served)
            both = call(node, "inflight:all")
            assert (ref, served) in both
            assert len(both) == 2
            wait_for(lambda: call(node, "inflight:queue_depth", served) == 1)
            assert call(node, "inflight:queue_depth") == 1
            assert call(node, "inflight:queue_depth", pid) == 0
            (ours,) = [one for one, _ in both if one != ref]
            assert call(node, "inflight:lookup", ours) == (OK, served)
            assert call(node, "inflight:unregister", ours) == (ERROR, Atom("not_supported"))
            for one in (ours, ref):
                call(node, "model:cancel", one)
            wait_for(lambda: call(node, "inflight:all") == [])
            assert call(node, "inflight:lookup", ref) == (ERROR, Atom("not_found"))


def test_paths_are_binaries_or_charlists() -> None:
    assert path_bytes([0xE4, 0x4E2D]) == "ä中".encode()
    assert path_bytes(b"\xff") == b"\xff"
    for bad in (b"", [], b"a\0", [0xD800], [1 << 40], [-1], Atom("a"), [b"a"], b"x" * 5000):
        assert path_bytes(bad) is None
