"""Many blocks in few files: how long a directory takes to open, and what files cost.

Run: ``python -m benchmarks.containers [--blocks N] [--megabytes N] [--dir PATH]``.

First the header scan: seconds to open a directory and load all entries of an identity, for
small payloads and for large ones in sparse files.  Then containers against a file for each
block, written, synced and read back: milliseconds a block, and the ratio.  Large payloads
beside fsync are bound by the disk, and then the ratio says little.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from erllama_py._cache.blockfile import Entry, Spot
from erllama_py._cache.checksum import crc
from erllama_py._cache.directory import Directory
from erllama_py._cache.grade import streamed

TARGET = 5.0
"""Seconds for the scan of 100 000 blocks."""
BATCH = 8
ROUNDS = 3
DIGEST = bytes(32)
DESCRIPTION = b"benchmark"


def main() -> None:
    """Time scans, then writing and reading."""
    parser = argparse.ArgumentParser(description="Time containers.")
    parser.add_argument("--blocks", type=int, default=100_000, help="entries of the scans")
    parser.add_argument("--megabytes", type=int, default=128, help="written in each round")
    parser.add_argument("--dir", type=Path, help="where; default the temporary directory")
    options = parser.parse_args()

    print(f"header scan of {options.blocks} blocks, target {TARGET:.0f} s for 100000")
    for name, nbytes in (("4 kB", 4096), ("1.4 MB, sparse", 1_433_600)):
        with tempfile.TemporaryDirectory(dir=options.dir) as path:
            scan(name, Path(path), options.blocks, nbytes)

    print(
        f"\nms a block of 64 tokens{'files':>12}{'containers':>12}{'ratio':>8}"
        f"   (median of {ROUNDS}, {options.megabytes} MB, synced every {BATCH})"
    )
    for name, nbytes in (("1.4 MB", 1_433_600), ("8 MB", 8 << 20)):
        count = max(BATCH, (options.megabytes << 20) // nbytes)
        with tempfile.TemporaryDirectory(dir=options.dir) as path:
            compare(name, Path(path), count, nbytes)


def opened(path: Path, quota: int) -> Directory:
    """Open a directory."""
    return Directory(path, quota, numbers=itertools.count().__next__)


def entry(number: int, nbytes: int, checksum: int) -> Entry:
    """Describe a block."""
    tokens = number.to_bytes(8, "little") * 32
    return Entry(
        *("block", DIGEST, 0, tokens, 64, streamed(2), DIGEST, nbytes, checksum),
        *("", 0, 1_700_000_000),
    )


def taken(directory: Directory, nbytes: int) -> Spot:
    """Set room aside."""
    spot = directory.take(DIGEST, DESCRIPTION, nbytes)
    assert spot is not None
    return spot


def scan(name: str, path: Path, count: int, nbytes: int) -> None:
    """Fill tables, without payloads, and read them."""
    quota = max(16 << 30, count * nbytes * 2)
    directory = opened(path, quota)
    for start in range(0, count, 1000):
        numbers = range(start, min(count, start + 1000))
        directory.commit([(taken(directory, nbytes), entry(n, nbytes, 0)) for n in numbers])
    directory.close()
    times, cpu = [], []
    for _ in range(ROUNDS):
        began, began_cpu = time.perf_counter(), time.process_time()
        directory = opened(path, quota)
        found = directory.load(DIGEST)
        times.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
        assert len(found) == count
        used = directory.used
        directory.close()
    files = len(list(path.glob("*.blk")))
    took = f"{statistics.median(times):6.2f} s, of the processor {statistics.median(cpu):.2f} s"
    print(f"{name:16} {took}, {files} files, {used / 2**30:.1f} GiB")


def compare(name: str, path: Path, count: int, nbytes: int) -> None:
    """Time both ways, in turn."""
    data = os.urandom(nbytes)
    checksum = crc(data)
    times: dict[str, list[float]] = {"write": [], "write files": [], "read": [], "read files": []}
    for number in range(ROUNDS):
        where = path / str(number)
        where.mkdir()
        directory = opened(where / "kv", 16 << 30)
        spots: list[Spot] = []
        # In turn, since a disk that was just written to is slower for the next.
        for what in ("write", "write files")[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            if what == "write":
                spots = write_containers(directory, data, count)
            else:
                write_files(where, data, count)
            times[what].append(time.perf_counter() - began)
        began = time.perf_counter()
        assert all(crc(one) == checksum for one in read_files(where, count, nbytes))
        times["read files"].append(time.perf_counter() - began)
        began = time.perf_counter()
        assert all(crc(one) == checksum for one in read_containers(directory, spots, nbytes))
        times["read"].append(time.perf_counter() - began)
        directory.close()
    for what in ("write", "read"):
        mine, other = (
            statistics.median(times[key]) / count * 1000 for key in (what, f"{what} files")
        )
        print(f"{name + ', ' + what:23}{other:12.2f}{mine:12.2f}{other / mine:8.2f}")


def write_files(path: Path, data: bytes, count: int) -> None:
    """Write a file for each block, as a cache of such files must: whole, then named."""
    for number in range(count):
        part, final = path / f"{number}.tmp", path / f"{number}.bin"
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fdatasync(file.fileno())
        part.rename(final)
        directory = os.open(path, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)


def write_containers(directory: Directory, data: bytes, count: int) -> list[Spot]:
    """Write blocks and announce them a few at a time, as captures come."""
    checksum = crc(data)
    spots: list[Spot] = []
    batch: list[tuple[Spot, Entry]] = []
    for number in range(count):
        spot = taken(directory, len(data))
        directory.write(spot, data)
        batch.append((spot, entry(number, len(data), checksum)))
        if len(batch) == BATCH or number == count - 1:
            directory.commit(batch)
            spots += [spot for spot, _ in batch]
            batch.clear()
    return spots


def read_files(path: Path, count: int, nbytes: int) -> Iterator[bytearray]:
    """Read the files back, from the page cache."""
    buffer = bytearray(nbytes)
    for number in range(count):
        with (path / f"{number}.bin").open("rb", buffering=0) as file:
            file.readinto(buffer)
        yield buffer


def read_containers(directory: Directory, spots: list[Spot], nbytes: int) -> Iterator[bytearray]:
    """Read the payloads back, from the page cache."""
    buffer = bytearray(nbytes)
    for spot in spots:
        assert directory.read_into(spot, nbytes, buffer)
        yield buffer


if __name__ == "__main__":
    main()
