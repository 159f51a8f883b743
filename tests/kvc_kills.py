"""Processes that save one row and are killed on the way, forked by a server that stays.

Run: ``python -m tests.kvc_kills``.  Each line on the input is a trial in JSON: where, at
which call, and ``before``, ``after`` or ``within`` it.  The answer says whether the child
was killed, and the key it had announced before, if any.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from erllama_py._cache import kvc, kvcfile
from erllama_py._cache.key import encode_tokens
from erllama_py._cache.kvcfile import KvcDirectory

META = kvc.Meta(
    save_reason="finish",
    quant_bits=16,
    fingerprint=b"\x01" * 32,
    fingerprint_mode="safe",
    quant_type="f16",
    ctx_params_hash=b"\x02" * 32,
    tokens=encode_tokens([1, 2, 3]),
    context_size=4096,
    engine=b"build 1",
)
PAYLOAD = bytes(range(256)) * 300

STEPS = ("open", "flock", "write", "fdatasync", "link", "unlink", "fsync", "pread", "close")


class Killer:
    """Kills its process before, after or within the n-th system call of a save."""

    def __init__(self, fatal: int, when: str) -> None:
        self.left = fatal
        self.when = when

    def install(self) -> None:
        for name in STEPS:
            owner = fcntl if name == "flock" else os
            setattr(owner, name, self._wrap(name, getattr(owner, name)))
        kvcfile._sync_data = os.fdatasync

    def _wrap(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            self.left -= 1
            if self.left or self.when == "never":
                return real(*args, **options)
            if self.when == "within" and name == "write":
                real(args[0], args[1][: len(args[1]) // 2])
            elif self.when == "after":
                real(*args, **options)
            os.kill(os.getpid(), signal.SIGKILL)
            return None

        return call


def work(path: Path, fatal: int, when: str, pipe: int) -> None:
    """Save a row, and say so."""
    real_write = os.write
    rows = KvcDirectory(path)
    Killer(fatal, when).install()
    real_write(pipe, rows.save(META, PAYLOAD).key)


def run(trial: dict) -> dict:
    """Fork a child for a trial; return what became of it."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            work(Path(trial["path"]), trial["fatal"], trial["when"], writer)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as said:
        report = said.read()
    _, status = os.waitpid(pid, 0)
    return {"killed": os.WIFSIGNALED(status), "said": report.hex()}


def main() -> None:
    """Run trials until the input ends."""
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)  # noqa: T201 - this is how it talks


if __name__ == "__main__":
    main()
