"""Pieces in files and in memory, read and verified ahead of the engine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from erllama_py._cache.checksum import crc
from erllama_py._cache.lease import Piece
from erllama_py._cache.ram import Extent
from erllama_py._engine import loader
from erllama_py._engine.frames import (
    Admitted,
    Done,
    Forget,
    Lookup,
    Plan,
    Restored,
    Segment,
    Stored,
    Token,
)
from erllama_py._engine.loader import Loader
from erllama_py._engine.restore import BadPiece, Restore
from erllama_py._engine.sharedkv import SharedKv
from tests.enginepeer import Peer, stub_peer, stub_pieces
from tests.waiting import wait_for

FILE = 7
PROMPT = list(range(1000, 1400))


class Container:
    """A file of payloads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(b"head of the file")

    def put(self, data: bytes) -> Extent:
        offset = self.path.stat().st_size
        with self.path.open("ab") as file:
            file.write(data)
        return Extent(FILE, offset, len(data))

    def open(self) -> int:
        return os.open(self.path, os.O_RDONLY)

    def introduce(self, peer: Peer) -> None:
        fd = self.open()
        peer.send(Segment(FILE, self.path.stat().st_size, file=True), fd)
        os.close(fd)


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path / "00000001.blk")


@pytest.fixture
def peer() -> Iterator[Peer]:
    with stub_peer() as peer:
        peer.grant()
        yield peer


def test_a_prompt_is_restored_from_a_file(peer: Peer, container: Container) -> None:
    pieces = stub_pieces(PROMPT, container.put, 320)
    container.introduce(peer)
    peer.submit(1, PROMPT, 2)
    peer.plan(1, pieces, 320)
    peer.finish(1)
    admitted, restored = peer.wait(Admitted, 1), peer.wait(Restored, 1)
    assert (admitted.kind, admitted.prefix_len) == ("partial", 320)
    assert (restored.bad, restored.corrupt) == ([], False)
    assert restored.read_ns > 0
    assert restored.load_ns > 0
    assert peer.wait(Done, 1).committed == len(PROMPT) + 2


def test_stored_logits_in_a_file_give_the_first_token_before_anything_is_restored(
    peer: Peer, container: Container
) -> None:
    pieces = stub_pieces(PROMPT, container.put)
    data = len(PROMPT).to_bytes(4, "little")
    logits = Stored(container.put(data), len(data), crc(data))
    container.introduce(peer)
    peer.submit(1, PROMPT, 2)
    peer.plan(1, pieces, len(PROMPT), kind="exact", logits=logits)
    peer.finish(1)
    assert peer.wait(Admitted, 1).kind == "exact"
    assert peer.at(Token, 1) < peer.at(Restored, 1)


@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_a_damaged_file_is_a_miss_that_names_the_piece(
    peer: Peer, container: Container, harm: str
) -> None:
    pieces = stub_pieces(PROMPT, container.put, 320)
    container.introduce(peer)
    third = pieces[2].extent.offset
    match harm:
        case "flip":
            data = bytearray(container.path.read_bytes())
            data[third + 5] ^= 4
            container.path.write_bytes(data)
        case "cut":
            os.truncate(container.path, third + 3)
        case "gone":
            os.truncate(container.path, third)
    peer.submit(1, PROMPT, 2)
    peer.plan(1, pieces, 320)
    peer.finish(1)
    restored = peer.wait(Restored, 1)
    assert (restored.bad, restored.corrupt) == ([pieces[2].node_id], True)
    assert peer.wait(Admitted, 1).kind == "cold"
    assert peer.wait(Done, 1).committed == len(PROMPT) + 2


def test_a_directory_as_a_file_is_a_miss_too(peer: Peer, tmp_path: Path) -> None:
    """Reads of it fail, rather than come short."""
    fd = os.open(tmp_path, os.O_RDONLY)
    peer.send(Segment(FILE, 4096, file=True), fd)
    os.close(fd)
    peer.submit(1, PROMPT, 1)
    peer.plan(1, stub_pieces(PROMPT, lambda data: Extent(FILE, 0, len(data)), 64), 64)
    peer.finish(1)
    assert peer.wait(Restored, 1).corrupt


def plan_of(pieces: list[Piece]) -> Plan:
    return Plan(1, "partial", 1, pieces[-1].end, pieces, None, canonical=False, captured=0)


class Sequence:
    """What a restore needs of a backend."""

    def __init__(self) -> None:
        self.ends: list[int] = []

    def unpack(self, seq: int, start: int, end: int, data: memoryview) -> None:
        assert len(data) == 4 * (end - start)
        self.ends.append(end)


@pytest.fixture
def kv(container: Container) -> Iterator[SharedKv]:
    kv = SharedKv()
    kv.add_file(FILE, container.open())
    yield kv
    kv.close()


@pytest.fixture
def idle(kv: SharedKv) -> Iterator[Loader]:
    """A loader whose thread is not started: its steps are made by the test."""
    one = Loader(kv, lambda: None)
    yield one
    one.close()


def load(one: Loader, plans: list[Restore]) -> int:
    """Load until the loader would wait; return how many pieces that were."""
    count = 0
    while restore := one._choose():
        restore.load_next()
        count += 1
    del plans
    return count


def test_the_loader_stays_a_bounded_number_of_bytes_ahead(
    kv: SharedKv, idle: Loader, container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "AHEAD_BYTES", 3 * 256)
    first = Restore(plan_of(stub_pieces(PROMPT, container.put, 384)), kv, idle.nudge)
    second = Restore(plan_of(stub_pieces(PROMPT, container.put, 384)), kv, idle.nudge)
    for restore in (first, second):
        idle.add(restore)
    assert load(idle, [first, second]) == 4  # the bound, and one of the plan that has none
    assert (first.ahead, second.ahead) == (3 * 256, 256)
    sequence = Sequence()
    assert first.advance(sequence, 0, None)  # type: ignore[arg-type]
    assert sequence.ends == [64, 128, 192]
    assert first.ahead == 0
    assert load(idle, [first, second]) == 2
    first.drop()
    assert load(idle, [first, second]) > 0  # what the dropped plan held is free
    assert second.ahead == 3 * 256


def test_pieces_that_come_from_elsewhere_are_left_out(
    kv: SharedKv, idle: Loader, container: Container
) -> None:
    restore = Restore(plan_of(stub_pieces(PROMPT, container.put, 384)), kv, idle.nudge)
    idle.add(restore)
    restore.load_next()
    assert restore.whole(63) == 0
    assert restore.whole(200) == 192
    assert restore.whole(1000) == 384
    restore.skip(192)
    assert restore.ahead == 0
    assert load(idle, [restore]) == 3
    sequence = Sequence()
    restore.advance(sequence, 0, None)  # type: ignore[arg-type]
    assert sequence.ends == [256, 320, 384]
    assert restore.complete


def test_a_bad_piece_is_raised_behind_those_before_it(
    kv: SharedKv, idle: Loader, container: Container
) -> None:
    pieces = stub_pieces(PROMPT, container.put, 192)
    pieces[1] = pieces[1]._replace(crc=pieces[1].crc ^ 1)
    restore = Restore(plan_of(pieces), kv, idle.nudge)
    idle.add(restore)
    assert load(idle, [restore]) == 2
    sequence = Sequence()
    with pytest.raises(BadPiece) as caught:
        restore.advance(sequence, 0, None)  # type: ignore[arg-type]
    assert sequence.ends == [64]
    assert (caught.value.node, caught.value.corrupt) == (pieces[1].node_id, True)


def open_files(path: Path) -> int:
    links = Path("/proc/self/fd")
    return sum(os.path.realpath(link) == str(path) for link in links.iterdir())


def test_a_forgotten_file_is_closed_when_no_plan_uses_it(peer: Peer, container: Container) -> None:
    pieces = stub_pieces(PROMPT, container.put, 320)
    container.introduce(peer)
    wait_for(lambda: open_files(container.path) == 1)
    peer.submit(1, PROMPT, 2)
    peer.wait(Lookup, 1)
    peer.plan(1, pieces, 320)
    peer.send(Forget(FILE))
    peer.finish(1)
    assert peer.wait(Admitted, 1).kind == "partial"
    wait_for(lambda: open_files(container.path) == 0)


def test_forgotten_memory_is_granted_no_more() -> None:
    kv = SharedKv()
    for index in (1, 2):
        fd = os.memfd_create("one")
        os.ftruncate(fd, 4096)
        kv.add_segment(index, 4096, fd)
    kv.grant([Extent(1, 0, 64), Extent(2, 0, 64)], [Extent(1, 64, 64)])
    kv.forget(1)
    assert kv.take_block() == Extent(2, 0, 64)
    assert kv.take_block() is None
    assert kv.take_logits() is None
    kv.close()
