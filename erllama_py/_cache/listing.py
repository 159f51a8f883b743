"""Which files a directory of containers has, whoever wrote them.

Looking deletes what is of no use to anybody and that nobody uses: a file whose head is
damaged, and a ``.part`` of a writer that has died.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from erllama_py._cache.blockfile import Damaged, Foreign
from erllama_py._cache.container import lock, read_head

if TYPE_CHECKING:
    from erllama_py._cache.blockfile import Head

__all__ = ("SUFFIX", "Known", "is_free", "length_of", "remove_parts", "survey")

SUFFIX: Final = ".blk"
_PART: Final = re.compile(r"[0-9a-f]{16}\.part")


class Known(NamedTuple):
    """A file in the directory."""

    number: int
    inode: int
    head: Head | None
    """None for one that is none of ours, or of a later version."""
    mtime: float
    on_disk: int


def length_of(path: Path) -> int:
    """Return the lengths of all files together, unfinished ones included."""
    return sum(item.stat(follow_symlinks=False).st_size for item in _files(path))


def survey(
    path: Path, before: Mapping[Path, Known], numbers: Callable[[], int]
) -> tuple[dict[Path, Known], int]:
    """List the files, and count the damaged ones that were deleted.

    :param before: what was there; a file that still is keeps its number, and is not read.
    :param numbers: gives a new one its number.
    """
    found: dict[Path, Known] = {}
    damaged = 0
    for item in _files(path):
        if not item.name.endswith(SUFFIX):
            continue
        file = Path(item.path)
        with contextlib.suppress(OSError):
            facts = item.stat(follow_symlinks=False)
            known = before.get(file)
            if known is not None and known.inode == facts.st_ino:
                number, head = known.number, known.head
            else:
                try:
                    number, head = numbers(), _head_of(file)
                except Damaged:
                    damaged += 1
                    continue
            on_disk = facts.st_blocks * 512
            found[file] = Known(number, facts.st_ino, head, facts.st_mtime, on_disk)
    return found, damaged


def remove_parts(path: Path) -> None:
    """Delete the unfinished files of writers that have died."""
    for item in _files(path):
        if _PART.fullmatch(item.name) and (fd := lock(Path(item.path))) is not None:
            with contextlib.suppress(OSError):
                os.unlink(item.path)  # noqa: PTH108 - the entry has a str
            os.close(fd)


def is_free(path: Path) -> bool:
    """Whether no process has a file."""
    fd = lock(path)
    if fd is None:
        return False
    os.close(fd)
    return True


def _files(path: Path) -> Iterator[os.DirEntry[str]]:
    try:
        items = os.scandir(path)
    except (FileNotFoundError, NotADirectoryError):
        return  # deleted by somebody: then there are none
    with items:
        for item in items:
            if item.name.endswith((SUFFIX, ".part")):
                with contextlib.suppress(FileNotFoundError):
                    if item.is_file(follow_symlinks=False):
                        yield item


def _head_of(path: Path) -> Head | None:
    """Read a head; delete a file whose head is damaged, if nobody uses it.

    :raises Damaged: it was damaged, and is deleted.
    :raises OSError: it cannot be read, or not be deleted.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return read_head(fd)
    except Foreign:
        return None
    except Damaged:
        locked = lock(path)
        if locked is None:
            return None
        try:
            path.unlink()
        finally:
            os.close(locked)
        raise
    finally:
        os.close(fd)
