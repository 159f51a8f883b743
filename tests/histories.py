"""A stub whose cells remember what they were computed behind.

A model's KV at a position depends on all of the KV before it, and on how it was computed.
Here a computed cell has a number of its own, and it is known behind which other number it
was computed.  So cells can be asked whether they are, from the first on, what one
sequence computed: what a hit calls ``stream``.
"""

from __future__ import annotations

import itertools
import struct
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from erllama_py._backends.base import BLOCK, BackendConfig, Row
from erllama_py._backends.stub import StubBackend
from erllama_py._cache.filetier import FileTier
from erllama_py._cache.store import Cache
from erllama_py._engine import worker
from erllama_py._engine.request import Request
from erllama_py._engine.scheduler import Scheduler
from erllama_py.config import EVERYDAY_POLICY, parse_request
from tests.owncore import OwnCore, own_core
from tests.waiting import wait_for

CELL_BYTES = 12
"""A packed cell: its token, and its number."""


class Histories:
    """What every cell was computed behind, over the lives of several models."""

    def __init__(self) -> None:
        self.number = itertools.count(1).__next__
        self.behind: dict[int, int] = {}
        """By a cell's number, that of the one before it; 0: none."""
        self.steps: list[tuple[list[int], bool]] = []
        """Of each row that was computed, all tokens of its sequence, and whether what was
        there before is one stream's."""

    def compute(self, before: int) -> int:
        number = self.number()
        self.behind[number] = before
        return number

    def is_stream(self, numbers: Sequence[int]) -> bool:
        return all(
            self.behind[one] == before for before, one in zip([0, *numbers], numbers, strict=False)
        )

    def of(self, tokens: Sequence[int]) -> list[bool]:
        """Whether each sequence that has computed behind exactly these began as one stream."""
        size = len(tokens)
        return [kept for said, kept in self.steps if said[:size] == list(tokens)]


class Remembering(StubBackend):
    """See the module."""

    def __init__(self, config: BackendConfig, histories: Histories) -> None:
        super().__init__(config)
        self._histories = histories
        self._numbers: list[list[int]] = [[] for _ in self._cells]
        if self.info.blocks:
            self.info = msgspec.structs.replace(self.info, block_bytes=BLOCK * CELL_BYTES)

    def step(self, rows: Sequence[Row]) -> None:
        before = [(list(self._cells[row.seq]), list(self._numbers[row.seq])) for row in rows]
        super().step(rows)
        for row, (tokens, numbers) in zip(rows, before, strict=True):
            kept = self._histories.is_stream(numbers)
            self._histories.steps.append(([*tokens, *row.tokens], kept))
            mine = self._numbers[row.seq]
            for _ in row.tokens:
                mine.append(self._histories.compute(mine[-1] if mine else 0))

    def clear(self, seq: int) -> None:
        super().clear(seq)
        self._numbers[seq] = []

    def truncate(self, seq: int, length: int) -> bool:
        done = super().truncate(seq, length)
        del self._numbers[seq][self.length(seq) :]
        return done

    def share(self, source: int, target: int, length: int) -> bool:
        done = super().share(source, target, length)
        if done:
            self._numbers[target] = self._numbers[source][:length]
        return done

    def packed_size(self, seq: int, start: int, end: int) -> int:
        return super().packed_size(seq, start, end) // 4 * CELL_BYTES

    def pack(self, seq: int, start: int, end: int, out: memoryview) -> int:
        size = self.packed_size(seq, start, end)
        if not size or out.nbytes < size:
            return 0
        count = end - start
        struct.pack_into(f"<{count}I", out, 0, *self._cells[seq][start:end])
        struct.pack_into(f"<{count}Q", out, 4 * count, *self._numbers[seq][start:end])
        return size

    def unpack(self, seq: int, start: int, end: int, data: memoryview) -> None:
        count = end - start
        super().unpack(seq, start, end, data[: 4 * count])
        self._numbers[seq].extend(struct.unpack_from(f"<{count}Q", data, 4 * count))


@contextmanager
def remembering(
    histories: Histories,
    cache: Cache,
    home: FileTier | None = None,
    *,
    parking: bool = False,
    min_tokens: int = 16,
    **config: Any,
) -> Iterator[OwnCore]:
    """Load such a model in this process."""
    config = {
        "backend": "stub",
        "in_process": True,
        "context_opts": {"n_ctx": 4096, "n_seq_max": 3},
        "policy": {**EVERYDAY_POLICY, "min_tokens": min_tokens, "cold_min_tokens": min_tokens},
        **config,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "open_backend", lambda asked, log: Remembering(asked, histories))
        patch.setattr(worker, "Scheduler", lambda *given: Scheduler(*given, parking=parking))
        with own_core(cache, home, **config) as core:
            yield core


def ask(core: OwnCore, *prompts: Sequence[int], count: int = 2, **options: Any) -> list[Request]:
    """Run requests beside each other; return them when they hold nothing any more."""
    asked = {"response_tokens": count, **options}
    parsed = parse_request(asked, core.host.config.exactness, None)
    requests = [
        Request("complete", parsed.generate, tokens=array("I", prompt), session=parsed.session)
        for prompt in prompts
    ]
    for request in requests:
        core.host.submit(request)
    for request in requests:
        request.wait()
    wait_for(lambda: all(request.closed for request in requests), 20)
    return requests


def check(histories: Histories, request: Request) -> str | None:
    """Compare what a request was told with its cells; return that.

    What it generated is a number that no other request has, so its sequence is known.
    """
    first = [*request.tokens[: request.prompt_len], request.drawn[0]]
    found = histories.of(first)
    assert found, "it went on behind its first token"
    if request.exactness == "stream":
        assert all(found), (request.kind, request.prefix_len)
    return request.exactness
