"""A model over a cache of its own: what a core is, made and ended by a test.

The core of this process is for its whole life, with the tiers of its settings.  Tests
of tiers and restarts need caches that come and go.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec

from erllama_py._cache.filetier import FileTier
from erllama_py._cache.store import Cache
from erllama_py._engine.caching import ModelCache
from erllama_py._engine.host import ModelHost
from erllama_py._engine.request import Request
from erllama_py.config import EVERYDAY_POLICY, parse_load, parse_request


class Reply(NamedTuple):
    """What a traced request said, from which logits, and how it was found."""

    tokens: list[int]
    logits: list[bytes]
    """A digest of each token's."""
    kind: str
    prefix_len: int
    exactness: str | None
    tier: str | None
    """The slowest that something of it was in."""

    def said(self) -> tuple[list[int], list[bytes]]:
        """Return what has to be equal."""
        return self.tokens, self.logits


class OwnCore:
    """One model in a process of its own."""

    def __init__(self, cache: Cache, home: FileTier | None = None, **config: Any) -> None:
        self.cache = cache
        cache.home = home
        parsed = parse_load({"policy": EVERYDAY_POLICY, **config})
        ignore = lambda *_: None  # noqa: E731 - three callbacks that nobody needs here
        part = ModelCache(cache, parsed)
        self.host = ModelHost("own", parsed, part, on_up=ignore, on_down=ignore, on_gone=ignore)
        self.host.load()

    def request(self, tokens: list[int], count: int, **changes: Any) -> Request:
        """Run a request to its end."""
        options = {"response_tokens": count}
        parsed = parse_request(options, self.host.config.exactness, None).generate
        generate = msgspec.structs.replace(parsed, **changes)
        request = Request("complete", generate, tokens=array("I", tokens))
        self.host.submit(request)
        request.wait()
        return request

    def run(self, tokens: list[int], count: int, **changes: Any) -> Reply:
        """Run a request and digest its trace."""
        request = self.request(tokens, count, trace=True, **changes)
        trace, said = request.trace, request.generated.tolist()
        assert trace is not None
        size = self.host.info.logits_bytes
        assert len(trace) == size * len(said)
        return Reply(
            said,
            [
                hashlib.blake2b(trace[at : at + size], digest_size=16).digest()
                for at in range(0, len(trace), size)
            ],
            request.kind,
            request.prefix_len,
            request.exactness,
            request.tier,
        )

    def cold(self, tokens: list[int], count: int) -> Reply:
        """Run a request that the cache has no part in, alone."""
        return self.run(tokens, count, cached=False, bit=True)

    def forget_memory(self) -> None:
        """Leave what is stored in files only."""
        assert self.cache.flush(60)
        self.cache.evict_bytes(1 << 40, ["ram"])


@contextmanager
def own_core(cache: Cache, home: FileTier | None = None, **config: Any) -> Iterator[OwnCore]:
    """Load a model for the length of a ``with`` block; ends it, and the cache."""
    try:
        core = OwnCore(cache, home, **config)
        try:
            yield core
        finally:
            core.host.unload()
    finally:
        cache.close()
