"""Containers that were damaged in every way a file can be.

Opening and loading never fails, and never shows a payload for tokens it was not made of:
what comes back passes its checksum and is what was written, or fails it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erllama_py._cache import directory as module
from tests.containers import DESCRIPTIONS, ONE, TWO, content, number_of, opened, payload, put

MUTATIONS = 10_000
AT_ONCE = 20
"""Mutations of one example, which is a directory of its own: about two in a file."""

QUOTA = 320 << 10
SIZES = {"file_bytes": 32 << 10, "table_rows": 8}


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    """The containers of a directory with two identities."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        directory = opened(path, QUOTA, **SIZES)
        for number in range(24):
            put(directory, [number], (10, 5000, 9000)[number % 3], (ONE, TWO)[number % 2])
        gone = put(directory, range(90, 95), 100)
        directory.free([spot for spot, _ in gone[::2]])
        directory.close()
        made = sorted(path.glob("*.blk"))
        assert len(made) > 6
        return [one.read_bytes() for one in made]


wheres = st.one_of(
    st.integers(0, 100),  # the head's fields
    st.integers(0, 12_288),  # head and table
    st.integers(0, 40_000),
)
which = st.integers(0, 20)
mutations = st.one_of(
    st.tuples(st.just("flip"), which, wheres, st.integers(0, 7)),
    st.tuples(st.just("cut"), which, wheres),
    st.tuples(st.just("extend"), which, st.integers(1, 10_000)),
    st.tuples(st.just("swap"), which, which),
    st.tuples(st.just("zero"), which, wheres, st.integers(1, 9000)),
    st.tuples(st.just("copy"), which, which, wheres, wheres, st.integers(1, 9000)),
    st.tuples(st.just("version"), which, st.sampled_from([0, 2, 3, 255])),
    st.tuples(st.just("foreign"), which, st.binary(max_size=40)),
)


def mutate(files: list[bytearray], mutation: tuple) -> None:
    """Damage files in place."""
    kind, first, *rest = mutation
    one = files[first % len(files)]
    if kind == "flip":
        if rest[0] < len(one):
            one[rest[0]] ^= 1 << rest[1]
    elif kind == "cut":
        del one[rest[0] :]
    elif kind == "extend":
        one.extend(bytes(rest[0]))
    elif kind == "swap":
        other = files[rest[0] % len(files)]
        one[:], other[:] = bytes(other), bytes(one)
    elif kind == "zero":
        end = min(len(one), rest[0] + rest[1])
        one[rest[0] : end] = bytes(max(0, end - rest[0]))
    elif kind == "copy":
        other, source, at, size = rest
        piece = files[other % len(files)][source : source + size]
        one[at : at + len(piece)] = piece
    elif kind == "version":
        one[8:9] = bytes(rest[:1])
    else:
        one[: len(rest[0])] = rest[0]


def check(path: Path, damaged: list[bytearray]) -> int:
    """Open what is there, and use it; return how many entries were still good."""
    for number, data in enumerate(damaged):
        (path / f"{number:016x}.blk").write_bytes(data)
    later = {one.name: one.read_bytes() for one in path.iterdir() if not is_ours(one)}
    directory = opened(path, QUOTA, **SIZES)
    good = 0
    for digest in (ONE, TWO):
        for spot, one, ours in directory.load(digest):
            data = payload(directory, spot, one)
            assert ours
            assert data in (None, content(number_of(one), one.nbytes))
            good += data is not None
        fresh = put(directory, range(200, 204), 5000, digest)
        assert all(payload(directory, *item) for item in fresh)
    directory.idle()
    directory.close()
    assert {name: (path / name).read_bytes() for name in later} == later
    after = opened(path, QUOTA, **SIZES)
    kept = [(*item[:2], after) for digest in DESCRIPTIONS for item in after.load(digest)]
    assert after.corrupt == 0, "damage was left behind"
    assert sum(payload(after, spot, one) is not None for spot, one, _ in kept) >= good
    after.close()
    return good


def is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(12) == b"erllamaB\x01\0\0\0"


def test_undamaged_files_are_all_good(files, tmp_path):
    assert check(tmp_path, [bytearray(one) for one in files]) == 24 + 2


def test_damage_is_found(files, monkeypatch):
    # Nothing here is about what reaches the disk, and a sync takes longer than all the rest.
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(module, "_sync", lambda fd: None)
    total = 0

    @settings(
        max_examples=MUTATIONS // AT_ONCE,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(st.lists(mutations, min_size=AT_ONCE, max_size=AT_ONCE))
    def run(some: list[tuple]) -> None:
        nonlocal total
        total += len(some)
        damaged = [bytearray(one) for one in files]
        for mutation in some:
            mutate(damaged, mutation)
        path = Path(tempfile.mkdtemp())
        try:
            check(path, damaged)
        finally:
            shutil.rmtree(path)

    run()
    assert total >= MUTATIONS


def test_the_mutations_are_what_they_say():
    files = [bytearray(b"abcdef"), bytearray(os.urandom(6))]
    other = bytes(files[1])
    mutate(files, ("flip", 0, 0, 1))
    assert files[0] == b"cbcdef"
    mutate(files, ("zero", 0, 1, 2))
    assert files[0] == b"c\0\0def"
    mutate(files, ("swap", 0, 1))
    assert (files[0], files[1]) == (other, b"c\0\0def")
    mutate(files, ("cut", 1, 1))
    mutate(files, ("extend", 1, 2))
    mutate(files, ("copy", 1, 0, 2, 1, 1))
    assert files[1] == b"c" + other[2:3] + b"\0"
    mutate(files, ("foreign", 1, b"xy"))
    assert files[1] == b"xy\0"
