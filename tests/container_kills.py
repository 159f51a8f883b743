"""Processes that save entries until they are killed, forked by a server that stays.

Run: ``python -m tests.container_kills``.  Each line on the input is a trial in JSON; the
answer is a line of JSON: what the child said before its end, and whether it was killed.

A child kills itself before, in the middle of or after its n-th call that changes the
disk; or the server does, after some time.  It says ``+`` and the numbers of a batch after
it was announced, and ``-`` and numbers before it frees them.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from erllama_py._cache import container
from erllama_py._cache import directory as module
from tests.containers import ONE, TWO, number_of, opened, put

ROUNDS = 40
SIZES = (100, 5000, 9000, 30_000)


class Saboteur:
    """Counts the calls that change the disk, and dies at one of them."""

    def __init__(self, at: int, how: str, *, syncs: bool) -> None:
        self.at = at
        self.how = how
        os.pwrite = self.around(os.pwrite)
        os.ftruncate = self.around(os.ftruncate)
        os.fsync = self.around(os.fsync if syncs else _nothing)
        module._sync = self.around(module._sync if syncs else _nothing)
        container._punch = self.around(container._punch)
        Path.rename = self.around(Path.rename)
        Path.unlink = self.around(Path.unlink)

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            self.at -= 1
            if self.at:
                return call(*args)
            if self.how == "half" and len(args) == 3 and not isinstance(args[1], int):
                call(args[0], args[1][: len(args[1]) // 2], args[2])
            elif self.how == "after":
                call(*args)
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("not reached")

        return counted


def _nothing(*_: Any) -> None:
    """Stand in for a sync: a kill, unlike a power cut, loses nothing that was written."""


def work(path: Path, seed: int, first: int, say: Callable[[str, list[int]], None]) -> None:
    """Save and free until killed, or for some rounds."""
    rng = random.Random(seed)
    directory = opened(path)
    there = {}
    for digest in (ONE, TWO):
        there |= {number_of(one): spot for spot, one, ours in directory.load(digest) if ours}
    number = first
    for _ in range(ROUNDS):
        count = rng.choice((1, 2, 5, 12))
        wanted = range(number, number + count)
        batch = put(directory, wanted, rng.choice(SIZES), rng.choice((ONE, TWO)))
        say("+", [number_of(one) for _, one in batch])
        there |= {number_of(one): spot for spot, one in batch}
        number += count
        if len(batch) < count or rng.random() < 0.2:
            gone = rng.sample(sorted(there), min(len(there), rng.choice((1, 3, 10))))
            say("-", gone)
            directory.free([there.pop(one) for one in gone])
        if there and rng.random() < 0.3:
            directory.touch(there[rng.choice(sorted(there))], number, number)
    directory.close()


def child(trial: dict[str, Any], out: int) -> None:
    """Run one trial."""

    def say(sign: str, numbers: list[int]) -> None:
        os.write(out, (sign + " ".join(map(str, numbers)) + "\n").encode())

    if trial["at"]:
        Saboteur(trial["at"], trial["how"], syncs=trial["syncs"])
    try:
        work(Path(trial["path"]), trial["seed"], trial["first"], say)
    except BaseException as error:  # noqa: BLE001 - the test is told
        os.write(out, f"!{error!r}\n".encode())


def run(trial: dict[str, Any]) -> dict[str, Any]:
    """Fork a child for a trial; return what it said and whether it was killed."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read_end)
        child(trial, write_end)
        os._exit(0)
    os.close(write_end)
    timer = threading.Timer(trial["seconds"], os.kill, (pid, signal.SIGKILL))
    if not trial["at"]:
        timer.start()
    with os.fdopen(read_end) as said:
        lines = said.read().splitlines()
    timer.cancel()
    if not trial["at"]:
        timer.join()  # before the number of the process can be another's
    _, status = os.waitpid(pid, 0)
    return {"said": lines, "killed": os.WIFSIGNALED(status)}


def main() -> None:
    """Run trials until the input ends."""
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)  # noqa: T201 - this is how it talks


if __name__ == "__main__":
    main()
