"""A process that uses a directory of containers as it is told, a line at a time.

Run: ``python -m tests.container_process PATH``.  Each line on its input is a command and
a number; the answer is a line of the numbers of entries.  Its entries begin at 100.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from erllama_py._cache.blockfile import Entry, Spot
from tests.containers import content, number_of, opened, payload, put


def main() -> None:
    """Answer until the input ends."""
    directory = opened(Path(sys.argv[1]))
    numbers = itertools.count(100)
    there: dict[int, tuple[Spot, Entry]] = {}
    for line in sys.stdin:
        command, _, word = line.strip().partition(" ")
        number = int(word or 0)
        answer: list[int] = []
        if command == "put":
            batch = put(directory, list(itertools.islice(numbers, number)))
            answer = [number_of(one) for _, one in batch]
            there |= {number_of(item[1]): item for item in batch}
        elif command == "free":
            directory.free([there.pop(number)[0]])
            directory.sync()
        elif command == "touch":
            for spot, _ in there.values():
                directory.touch(spot, number, number)
        elif command == "drop":
            directory.drop_empty()
        elif command == "there":
            answer = [
                one
                for one, (spot, entry) in there.items()
                if payload(directory, spot, entry) == content(one, entry.nbytes)
            ]
        print(*answer, flush=True)  # noqa: T201 - this is how it talks


if __name__ == "__main__":
    main()
