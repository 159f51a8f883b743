"""Saves by hand: who may write a row, and what is left when a writer dies."""

from __future__ import annotations

import pytest

from erllama_py._cache import kvc
from erllama_py._cache.reservations import HIT_NS, TTL_NS, Published, Recover, Table
from erllama_py.errors import ErllamaError
from erllama_py.types import Ref

KEY, OTHER = b"k" * 32, b"o" * 32
HEADER = bytes(12) + (3).to_bytes(4, "little") + bytes(32)
FOUND = Published(100, HEADER, b"\x01\0\0\0")


class Desk:
    """A table and its clock."""

    def __init__(self) -> None:
        self.now = 1000
        self.table = Table(lambda: self.now)

    def reserve(self, key: bytes = KEY, writer: object = "writer") -> Ref:
        token = self.table.reserve_save(key, "disk", writer)
        assert isinstance(token, Ref)
        return token

    def published(self, key: bytes = KEY, writer: object = "writer") -> Ref:
        token = self.reserve(key, writer)
        self.table.mark_published(key, token, b"/rows/k.kvc")
        return token


@pytest.fixture
def desk() -> Desk:
    return Desk()


def reason(call, *args) -> object:
    with pytest.raises(ErllamaError) as caught:
        call(*args)
    return caught.value.reason


def test_a_save_by_hand(desk: Desk):
    table = desk.table
    token = desk.reserve()
    assert table.writing(KEY)
    assert table.row(KEY) is None
    assert table.placeholder(KEY) == (KEY, "disk", 0, 1000, 0, "writing", b"", None, None)
    table.check(KEY, token)
    table.mark_published(KEY, token, b"/rows/k.kvc")
    row = table.announce(KEY, token, 100, bytes(48), b"\x01\0\0\0")
    expected = (KEY, "disk", 100, 1000, 0, "available", bytes(48))
    assert row.term() == (*expected, ("disk", b"/rows/k.kvc"), b"\x01\0\0\0", 0)
    assert row.usable
    assert table.rows() == [row]
    assert (table.writing(KEY), table.placeholders()) == (False, [])


def test_a_row_that_is_there_is_not_saved_again(desk: Desk):
    desk.table.insert_available(KEY, "ram", 1, b"", ("ram",))
    assert reason(desk.reserve) == "already_present"


def test_two_live_writers_conflict(desk: Desk):
    desk.reserve()
    assert reason(desk.reserve, KEY, "another") == "conflict"
    desk.reserve(OTHER, "another")


@pytest.mark.parametrize("step", ["check", "mark_published", "announce"])
def test_a_wrong_or_old_token_has_expired(desk: Desk, step: str):
    table, token = desk.table, desk.reserve()
    more = {"check": (), "mark_published": (b"p",), "announce": (1, b"")}[step]
    call = getattr(table, step)
    assert reason(call, KEY, Ref(0), *more) == "expired"
    assert reason(call, OTHER, token, *more) == "expired"
    table.cancel(KEY, token)
    assert reason(call, KEY, token, *more) == "expired"


def test_only_the_right_token_cancels(desk: Desk):
    token = desk.reserve()
    desk.table.cancel(KEY, Ref(0))
    desk.table.cancel(OTHER, token)
    assert desk.table.writing(KEY)
    desk.table.cancel(KEY, token)
    assert not desk.table.writing(KEY)


def test_every_step_extends_a_reservation(desk: Desk):
    token = desk.reserve()
    for step in (
        lambda: desk.table.check(KEY, token),
        lambda: desk.table.mark_published(KEY, token, b"/rows/k.kvc"),
        lambda: desk.table.check(KEY, token),
    ):
        desk.now += TTL_NS - 1
        assert desk.table.sweep() == []
        step()
    desk.now += TTL_NS
    assert desk.table.sweep() == [Recover(KEY, token, "disk", b"/rows/k.kvc")]


def test_a_silent_writer_without_a_file_is_forgotten(desk: Desk):
    token = desk.reserve()
    desk.now += TTL_NS
    assert desk.table.sweep() == []
    assert not desk.table.writing(KEY)
    assert reason(desk.table.check, KEY, token) == "expired"


def test_a_late_writer_keeps_its_reservation_until_somebody_looks(desk: Desk):
    token = desk.reserve()
    desk.now += 2 * TTL_NS
    desk.table.check(KEY, token)
    assert reason(desk.reserve, KEY, "another") == "conflict"


def test_a_stale_reservation_without_a_file_is_taken_over(desk: Desk):
    old = desk.reserve()
    desk.now += TTL_NS
    new = desk.reserve(KEY, "another")
    assert new != old
    assert reason(desk.table.check, KEY, old) == "expired"
    desk.table.check(KEY, new)


def test_a_stale_reservation_with_a_file_is_checked_first(desk: Desk):
    old = desk.published()
    desk.now += TTL_NS
    which = desk.table.reserve_save(KEY, "disk", "another")
    assert which == Recover(KEY, old, "disk", b"/rows/k.kvc")
    assert reason(desk.reserve, KEY, "third") == "conflict"
    assert reason(desk.table.announce, KEY, old, 1, b"") == "expired"
    assert desk.table.recovered(which, None) is None
    desk.reserve(KEY, "another")


def test_a_dead_writer_without_a_file_is_forgotten_at_once(desk: Desk):
    desk.reserve()
    desk.reserve(OTHER, "another")
    assert desk.table.writer_died("writer") == []
    assert (desk.table.writing(KEY), desk.table.writing(OTHER)) == (False, True)


def test_a_dead_writers_whole_file_becomes_a_row(desk: Desk):
    desk.published()
    (which,) = desk.table.writer_died("writer")
    assert desk.table.writing(KEY)
    row = desk.table.recovered(which, FOUND)
    assert row is desk.table.row(KEY)
    assert row is not None
    assert row.term()[7:] == (("disk", b"/rows/k.kvc"), FOUND.tokens, 3)
    assert desk.table.writer_died("writer") == []


def test_a_dead_writers_torn_file_leaves_nothing(desk: Desk):
    desk.published()
    (which,) = desk.table.writer_died("writer")
    assert desk.table.recovered(which, None) is None
    assert (desk.table.row(KEY), desk.table.writing(KEY)) == (None, False)
    assert desk.table.recovered(which, FOUND) is None


def test_a_file_being_checked_is_not_checked_twice(desk: Desk):
    desk.published()
    assert len(desk.table.writer_died("writer")) == 1
    desk.now += TTL_NS
    assert desk.table.sweep() == []


def test_a_row_that_came_meanwhile_stays(desk: Desk):
    desk.published()
    (which,) = desk.table.writer_died("writer")
    row = desk.table.insert_available(KEY, "ram", 1, b"", ("ram",))
    assert desk.table.recovered(which, FOUND) is None
    assert desk.table.row(KEY) is row


def test_hits_of_an_earlier_life_count_as_recency_until_the_next_use(desk: Desk):
    row = desk.table.insert_available(KEY, "disk", 1, HEADER, ("disk", b"p"))
    assert (row.hits, row.used) == (3, 1000 + 3 * HIT_NS)
    short = desk.table.insert_available(OTHER, "ram", 1, HEADER[:15], ("ram",))
    assert (short.hits, short.used, short.usable) == (0, 1000, False)
    desk.table.pin(KEY)
    assert (row.hits, row.used, row.refcount) == (4, 1000, 1)


def test_eviction_order_pins_and_tiers(desk: Desk):
    table = desk.table
    for name, tier in ((b"a", "ram"), (b"b", "disk"), (b"c", "disk")):
        desk.now += 1
        table.insert_available(name, tier, 1, b"", ("ram",))
    everything = ("ram", "ram_file", "disk")
    assert [row.key for row in table.evictable(everything)] == [b"a", b"b", b"c"]
    assert [row.key for row in table.evictable(("disk",))] == [b"b", b"c"]
    desk.now += 1
    table.pin(b"a")
    assert [row.key for row in table.evictable(everything)] == [b"b", b"c"]
    table.unpin(b"a")
    table.unpin(b"a")
    assert [row.key for row in table.evictable(everything)] == [b"b", b"c", b"a"]
    table.pin(b"gone")
    table.unpin(b"gone")


def test_pins_outlive_a_row_that_is_put_in_again(desk: Desk):
    desk.table.insert_available(KEY, "ram", 1, b"", ("ram",))
    desk.table.pin(KEY)
    desk.table.insert_available(KEY, "ram", 2, b"", ("ram",))
    assert list(desk.table.evictable(("ram",))) == []


def test_a_row_without_tokens_or_file_carries_nothing_usable(desk: Desk):
    insert = desk.table.insert_available
    assert insert(KEY, "disk", 1, kvc_header(), ("disk", b"p"), b"").usable
    assert not insert(KEY, "disk", 1, kvc_header(), ("disk", b"p")).usable
    assert not insert(KEY, "ram", 1, kvc_header(), ("ram",), b"").usable


def kvc_header() -> bytes:
    return b"KVC\x01" + bytes(kvc.HEADER_BYTES - 4)
