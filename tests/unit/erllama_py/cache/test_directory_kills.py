"""What a directory holds after its process was killed, wherever that was."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.containers import ONE, QUOTA, TWO, opened, sizes, whole
from tests.killserver import KillServer

KILLS = 400
"""Children that are killed, in all."""
LINEAGES = 4
"""Directories; the children of one follow each other in it."""


@pytest.fixture(scope="module")
def server():
    made = KillServer("tests.container_kills")
    yield made
    made.close()


class Lineage:
    """One directory, and what its dead children said."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.rng = random.Random(seed)
        self.must: set[int] = set()
        self.first = 0
        self.kills = 0

    def trial(self, server: KillServer) -> None:
        """Let a child be killed, and look at what is there."""
        how = self.rng.choice(("before", "half", "after"))
        timed = self.rng.random() < 0.2
        result = server.run(
            path=str(self.path),
            seed=self.rng.getrandbits(32),
            first=self.first,
            at=0 if timed else self.stage(),
            how=how,
            seconds=self.rng.uniform(0.001, 0.15),
            syncs=self.rng.random() < 0.1,
        )
        self.kills += result["killed"]
        may: set[int] = set()
        for line in result["said"]:
            assert line[0] in "+-", line
            sign, numbers = line[0], {int(word) for word in line[1:].split()}
            if sign == "+":
                self.must |= numbers
            else:
                self.must -= numbers
                may |= numbers
        self.look(may, torn=how == "half" or timed)
        self.first += 10_000

    def stage(self) -> int:
        # Half of them among the first calls, where files are taken over and made.
        return self.rng.randrange(1, 12 if self.rng.random() < 0.5 else 150)

    def look(self, may: set[int], *, torn: bool) -> None:
        """Compare what is there with what was said; ``may`` was being freed."""
        assert sizes(self.path) <= QUOTA
        after = opened(self.path)
        found = whole(after, ONE).keys() | whole(after, TWO).keys()
        assert self.must <= found, "announced entries are lost"
        unsaid = {one for one in found - self.must if one < self.first}
        assert unsaid <= may, "freed entries are back, or some were never there"
        assert after.corrupt <= torn
        assert after.used <= after.capacity <= QUOTA
        after.close()
        # From now on all of this must stay, and nothing else may come back.
        self.must = set(found)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(LINEAGES))
def test_killed_processes_leave_whole_entries(tmp_path, server, seed):
    lineage = Lineage(tmp_path / "kv", seed)
    while lineage.kills < KILLS // LINEAGES:
        lineage.trial(server)
    assert lineage.must, "nothing was ever saved"
