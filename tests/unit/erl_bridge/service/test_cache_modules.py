"""The cache's modules on a node: the index, and tier servers that processes hold."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from erl_bridge import CallContext, ErlangError
from erl_bridge.etf import Atom, Reference
from erl_bridge.service import ErllamaNode
from erllama_py.otp import cache_disk_srv, cache_writer
from tests.unit.erl_bridge.service.othermodules import (
    DISK,
    ERROR,
    HEADER,
    KEY,
    META,
    MISS,
    OK,
    RAM,
    TOKENS,
    call,
)
from tests.waiting import wait_for

pytestmark = pytest.mark.usefixtures("nothing_cached")


# -- the index -----------------------------------------------------------------------------


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


# -- tier servers --------------------------------------------------------------------------


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
