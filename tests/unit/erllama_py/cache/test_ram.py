"""Segments and extents."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import resource
import sys
from pathlib import Path

import pytest

from erllama_py._cache import ram
from erllama_py._cache.ram import ALIGN, RamTier

PAGE = mmap.PAGESIZE


@pytest.fixture
def make():
    """Return a maker of tiers, which are closed afterwards."""
    made = []

    def tier(*args, **options):
        made.append(RamTier(*args, **options))
        return made[-1]

    yield tier
    for one in made:
        one.close()


def open_files():
    """Count this process's descriptors."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def pages_of(tier):
    """Bytes that really are in memory, by the system's account."""
    return sum(os.fstat(fd).st_blocks * 512 for fd, _ in tier.segments.values())


def test_extents_are_aligned_and_apart(make):
    tier = make(4 * PAGE, segment_bytes=2 * PAGE)
    extents = [tier.reserve(100) for _ in range(2 * (2 * PAGE // 128))]
    assert {one.size for one in extents} == {128}
    assert all(one.offset % ALIGN == 0 for one in extents)
    assert len({(one.segment, one.offset // 128) for one in extents}) == len(extents)
    assert tier.used == 128 * len(extents) == tier.backed == tier.quota
    assert tier.reserve(1) is None


@pytest.mark.parametrize(("before", "nbytes"), [(64, 64), (PAGE - 64, 2 * PAGE), (3 * PAGE, PAGE)])
def test_pages_are_entered_wherever_an_extent_begins_and_ends(make, before, nbytes):
    tier = make(4 * PAGE, segment_bytes=4 * PAGE)
    tier.reserve(before)
    extent = tier.reserve(nbytes)
    fd, _ = tier.segments[extent.segment]
    os.pwrite(fd, b"x" * nbytes, extent.offset)
    view = tier.view(extent)
    ram.enter(view, extent.offset)
    assert view == b"x" * nbytes


def test_memory_of_ones_own_needs_no_entering():
    ram.enter(memoryview(b"abc"), 0)


def test_what_is_written_through_the_descriptor_is_read_in_the_view(make):
    tier = make(4 * PAGE, segment_bytes=2 * PAGE)
    tier.reserve(64)
    extent = tier.reserve(64)
    fd, size = tier.segments[extent.segment]
    with mmap.mmap(fd, size) as other:
        other[extent.offset : extent.offset + 5] = b"hello"
    assert bytes(tier.view(extent)[:5]) == b"hello"


def test_freed_neighbours_join(make):
    tier = make(PAGE, segment_bytes=PAGE)
    parts = [tier.reserve(PAGE // 4) for _ in range(4)]
    for at in (0, 2, 1):
        tier.free(parts[at])
    assert tier.reserve(PAGE // 4 * 3) is not None
    assert tier.reserve(1) is None
    tier.free(parts[3])
    assert tier.reserve(PAGE // 4) is not None


def test_trimming_frees_the_end(make):
    tier = make(PAGE, segment_bytes=PAGE)
    trimmed = tier.trim(tier.reserve(PAGE), 65)
    assert trimmed.size == 128 == tier.used
    rest = tier.reserve(PAGE - 128)
    assert rest.offset == 128
    tier.free(trimmed)
    tier.free(rest)
    assert tier.used == 0


def test_an_extent_is_freed_once(make):
    tier = make(PAGE, segment_bytes=PAGE)
    extent = tier.reserve(64)
    tier.free(extent)
    with pytest.raises(ValueError, match="not granted"):
        tier.free(extent)
    with pytest.raises(ValueError, match="not granted"):
        tier.view(extent)


@pytest.mark.parametrize("nbytes", [0, -1])
def test_nothing_is_no_size(make, nbytes):
    with pytest.raises(ValueError, match="cannot reserve"):
        make(PAGE).reserve(nbytes)


def test_more_written_than_granted_is_refused(make):
    tier = make(PAGE, segment_bytes=PAGE)
    extent = tier.reserve(64)
    with pytest.raises(ValueError, match="65 bytes"):
        tier.trim(extent, 65)


def test_a_payload_larger_than_a_segment_gets_its_own(make):
    tier = make(10 * PAGE, segment_bytes=PAGE)
    extent = tier.reserve(5 * PAGE)
    assert tier.segments[extent.segment][1] == 5 * PAGE


def test_the_last_segment_takes_what_the_quota_leaves(make):
    tier = make(3 * PAGE, segment_bytes=2 * PAGE)
    assert [tier.reserve(PAGE).segment for _ in range(3)] == [0, 0, 1]
    assert [size for _, size in tier.segments.values()] == [2 * PAGE, PAGE]
    assert tier.reserve(1) is None


@pytest.mark.parametrize("quota", [0, PAGE - 1, -5])
def test_a_quota_below_a_page_stores_nothing(make, quota):
    tier = make(quota)
    assert tier.reserve(1) is None
    assert tier.segments == {}


def test_pages_exist_before_anyone_writes(make):
    tier = make(8 * PAGE, segment_bytes=8 * PAGE)
    tier.reserve(64)
    assert pages_of(tier) == 8 * PAGE


def test_a_refused_reservation_is_a_refusal(make, monkeypatch):
    """As with a full /dev/shm; there, the file system's own error."""

    def full(fd, start, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = open_files()
    tier = make(8 * PAGE, segment_bytes=PAGE)
    assert tier.reserve(64) is None
    assert (tier.used, tier.backed, tier.segments) == (0, 0, {})
    assert open_files() == before
    monkeypatch.undo()
    assert tier.reserve(64) is not None


@pytest.mark.skipif(sys.platform != "linux", reason="seals are Linux")
def test_a_segment_cannot_be_shrunk_under_its_readers(make):
    tier = make(PAGE, segment_bytes=PAGE)
    extent = tier.reserve(64)
    fd, _ = tier.segments[extent.segment]
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives pages back")
def test_a_drained_segment_keeps_its_mappings_and_is_used_again(make):
    tier = make(4 * PAGE, segment_bytes=4 * PAGE)
    extent = tier.reserve(64)
    fd, size = tier.segments[0]
    with mmap.mmap(fd, size) as other:
        other[:5] = b"hello"
        tier.free(extent)
        (one,) = tier.idle()
        assert tier.retire(one)
        assert tier.take(64) is None
        ram.drain(one)
        tier.withdraw(one)
        assert (pages_of(tier), tier.backed) == (0, 0)
        assert other[:5] == bytes(5)
        again = tier.reserve(64)
        assert again.segment == 0
        tier.view(again)[:2] = b"hi"
        assert other[:2] == b"hi"
    assert tier.backed == size


def test_a_segment_in_use_is_not_retired(make):
    tier = make(PAGE, segment_bytes=PAGE)
    extent = tier.reserve(64)
    assert tier.idle() == []
    tier.free(extent)
    (one,) = tier.idle()
    tier.take(64)
    assert not tier.retire(one)


def test_a_promised_segment_counts_and_is_not_promised_twice(make):
    tier = make(2 * PAGE, segment_bytes=PAGE)
    first, second = tier.promise(64), tier.promise(64)
    assert first.index != second.index
    assert tier.promise(64) is None
    assert not tier.room_for(64)
    tier.withdraw(second)
    assert tier.room_for(64)
    ram.back(first)
    tier.adopt(first)
    assert tier.promise(64).index not in (first.index, second.index)


def test_closing_closes_every_descriptor():
    before = open_files()
    tier = RamTier(4 * PAGE, segment_bytes=PAGE)
    for _ in range(4):
        extent = tier.reserve(PAGE)
    view = tier.view(extent)
    tier.close()
    view[0] = 1  # still mapped, not a crash
    view.release()
    assert open_files() <= before + 1


def test_a_file_elsewhere_than_linux(make, monkeypatch, tmp_path):
    """The other way to make a segment works here too."""
    monkeypatch.setattr(ram.sys, "platform", "darwin")
    monkeypatch.setattr(ram, "CAN_DRAIN", False)
    monkeypatch.setattr(ram.tempfile, "tempdir", str(tmp_path))
    monkeypatch.delattr(os, "posix_fallocate")
    tier = make(4 * PAGE, segment_bytes=4 * PAGE)
    extent = tier.reserve(PAGE)
    assert pages_of(tier) >= 4 * PAGE
    assert not list(tmp_path.iterdir())
    tier.view(extent)[0] = 7
    tier.free(extent)
    assert not ram.drain(tier.idle()[0])
    assert not tier.room_by_swap(5 * PAGE)


def test_a_full_file_system_does_not_kill_the_process(make, monkeypatch, tmp_path):
    """A limit on file size stands for it: the reservation fails, nothing is written."""
    monkeypatch.setattr(ram.sys, "platform", "darwin")
    monkeypatch.setattr(ram.tempfile, "tempdir", str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE, hard))
    try:
        assert make(8 * PAGE, segment_bytes=8 * PAGE).reserve(64) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
