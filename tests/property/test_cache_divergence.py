"""Where a prompt leaves the cache, and the row nearest to it, against looking at everything."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from erllama_py._cache.checksum import crc
from erllama_py._cache.identity import Identity
from erllama_py._cache.key import encode_tokens
from erllama_py._cache.row import Space
from erllama_py._cache.trie import Node, tokens_upto
from tests.cachelab import CHUNK, THREADS, Lab, Run, content

TOKENS = st.sampled_from([0, 256, 0x01010101])
HEADS = st.sampled_from([[], [0] * 5, [0] * 10, [0] * 8 + [256] * 3])
PROMPTS = st.builds(
    lambda head, rest: [*head, *rest], HEADS, st.lists(TOKENS, min_size=1, max_size=6)
)
"""Few tokens and common heads: most prompts share something, and fork within blocks."""

EXACTNESS = st.sampled_from(["token", "bit", None])
REQUESTS = st.lists(
    st.tuples(PROMPTS, st.lists(TOKENS, max_size=6), EXACTNESS, st.booleans()), max_size=8
)
WHOLES = st.lists(PROMPTS, max_size=4)


def decode(data: bytes) -> list[int]:
    return memoryview(data).cast("I").tolist()


def shared(one, other):
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def contexts(space: Space) -> list[list[int]]:
    """All that is cached: the tokens up to each node's end."""
    found: list[list[int]] = []

    def visit(node: Node) -> None:
        for child in node.children.values():
            found.append(decode(tokens_upto(child)))
            visit(child)

    visit(space.root)
    visit(space.wholes)
    return found


def rows(space: Space) -> dict[bytes, list[int]]:
    return {key: decode(tokens_upto(row.node))[: row.length] for key, row in space.rows.items()}


def fill(lab: Lab, requests, wholes) -> None:
    """Serve requests; those without an exactness are captured and leave no row."""
    for ids, reply, exactness, alone in requests:
        if exactness:
            lab.request(ids, reply, exactness=exactness, alone=alone, logits=False)
        else:
            with lab.lookup(ids) as lease:
                run = Run(lab, lease, ids, reply, "token", CHUNK, THREADS, canonical=False)
                run.capture(len(run.ids))
    for ids in wholes:
        data = content(ids)
        extent = lab.put(data)
        with lab.lookup(ids) as lease:
            if extent is not None:
                grade = lease._want.stream
                lab.space.add_whole(encode_tokens(ids), grade, extent, len(data), crc(data))
            lease.add_row(encode_tokens(ids), "finish")


@given(REQUESTS, WHOLES, PROMPTS, st.booleans(), st.sampled_from([1 << 20, 2048]))
@example(  # a row that ends within a block, which shares more with the prompt
    [([0] * 5, [], "token", False), ([0] * 5, [256] * 3, None, False)],
    [],
    [0] * 5 + [256, 0],
    False,
    1 << 20,
)
def test_the_fork_and_the_nearest_row_are_those_of_a_look_at_everything(
    requests, wholes, prompt, bit, quota
):
    """With a small quota, much of what was stored is evicted again."""
    lab = Lab(quota, segment_bytes=min(quota, 1 << 16))
    try:
        fill(lab, requests, wholes)
        space = lab.space.space
        options = {"exactness": "bit" if bit else "token", "chunk": CHUNK, "threads": THREADS}
        seen = lab.space.preview(encode_tokens(prompt), **options)
        if seen.apart is None:
            assert seen.kind == "exact"
            return
        apart, there = seen.apart, contexts(space)
        most = max((shared(one, prompt) for one in there), default=0)
        assert apart.shared == most
        nearest = [one for one in there if shared(one, prompt) == most]
        following = {one[most] if len(one) > most else None for one in nearest}
        ends = {row[most] if len(row) > most else None for row in rows(space).values()
                if shared(row, prompt) == most}  # fmt: skip
        assert apart.cached_token in following | ends | ({None} if not most else set())
        if most < len(prompt):
            assert apart.cached_token != prompt[most]
        closest = max((shared(row, prompt) for row in rows(space).values()), default=0)
        assert (apart.row.shared if apart.row else 0) == closest
        if apart.row:
            row = rows(space)[apart.row.key]
            assert (len(row), shared(row, prompt)) == (apart.row.length, closest)
    finally:
        lab.cache.close()


@given(REQUESTS, WHOLES, PROMPTS)
def test_a_preview_is_what_the_lookup_then_finds(requests, wholes, prompt):
    """And it changes nothing: no counter, no pin, no use."""
    lab = Lab()
    try:
        fill(lab, requests, wholes)
        before = lab.cache.counters.snapshot(), list(lab.cache._shared.index.rows), lab.now
        seen = lab.space.preview(encode_tokens(prompt), chunk=CHUNK, threads=THREADS)
        assert (lab.cache.counters.snapshot(), [*lab.cache._shared.index.rows], lab.now) == before
        with lab.lookup(prompt) as lease:
            assert (lease.kind, lease.prefix_len) == (seen.kind, seen.prefix_len)
            found = lease.seen
        assert found.mark > seen.mark
        for name in ("kind", "via", "prefix_len", "label", "tiers", "gated", "resumes", "apart"):
            assert getattr(found, name) == getattr(seen, name), name
    finally:
        lab.cache.close()


@given(REQUESTS, REQUESTS, WHOLES, PROMPTS)
def test_what_was_stored_later_is_left_out_elsewhere(earlier, later, wholes, prompt):
    """Another namespace's share of a prompt is that of the time of the lookup."""
    lab = Lab()
    try:
        fill(lab, earlier, wholes)
        most = max((shared(one, prompt) for one in contexts(lab.space.space)), default=0)
        other = lab.cache.namespace(Identity(bytes(32), "f16", bytes(32)))
        tokens = encode_tokens(prompt)
        seen = other.preview(tokens, chunk=CHUNK, threads=THREADS)
        found = lab.cache.elsewhere(other, tokens, 0, seen.mark)
        assert [length for length, _ in found] == ([most] if most else [])
        fill(lab, later, [])
        found = lab.cache.elsewhere(other, tokens, 0, seen.mark)
        # Less only where something better took the place of what was there.
        assert all(length <= most for length, _ in found)
    finally:
        lab.cache.close()
