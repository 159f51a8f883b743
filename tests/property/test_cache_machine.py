"""The cache as a state machine: anything may happen to it, in any order.

After every step the books are checked against the trie itself, taken apart node by node:
who is reachable, who is pinned, which bytes belong to whom.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from erllama_py._cache.finding import search
from erllama_py._cache.grade import Want
from erllama_py._cache.heads import KEPT, SHARE
from erllama_py._cache.key import decode_tokens, encode_tokens
from erllama_py._cache.tier import RAM
from erllama_py._cache.trie import common_tokens
from tests.cachelab import BLOCK, CHUNK, THREADS, TOKEN_BYTES, Lab, Run, check_pieces

QUOTA = 8192  # 32 blocks: a few requests fill it

RUNS = [(0,) * 8, (0,) * 4, (0, 0, 0), (0,), (1,), (256, 1), (1,) * 5]
PROMPTS = st.lists(st.sampled_from(RUNS), min_size=1, max_size=5).map(lambda r: [*sum(r, ())])
"""Out of few parts, so that they meet in whole blocks, in tails and inside blocks."""

OPTIONS = {
    "exactness": st.sampled_from(["token", "bit"]),
    "chunk": st.sampled_from([CHUNK, CHUNK, 2 * CHUNK]),
    "threads": st.sampled_from([THREADS, THREADS, 3]),
    "alone": st.sampled_from([True, True, False]),
}


class Machine(RuleBasedStateMachine):
    """Requests open, compute, save and close while others come and the tier is cleared."""

    leases = Bundle("leases")

    def __init__(self):
        super().__init__()
        self.lab = Lab(QUOTA, segment_bytes=4096)
        self.shared = self.lab.cache._shared
        self.open = {}
        self.pinned = Counter()
        self.loose = []
        self.failed = False

    def teardown(self):
        for lease, _ in self.open.values():
            lease.close()
        for extent in self.loose:
            self.lab.cache.release(extent)
        for key in self.pinned.elements():
            self.lab.space.unpin(key)
        self.lab.cache.gc()
        assert self.shared.ram.used == 0
        assert self.shared.index.nodes == 0
        assert not self.shared.index.payloads
        self.lab.cache.close()

    # -- what happens ---------------------------------------------------------------------

    @rule(target=leases, ids=PROMPTS, **OPTIONS)
    def begin(self, ids, exactness, chunk, threads, alone):
        lease = self.lab.lookup(ids, exactness=exactness, chunk=chunk, threads=threads)
        check_pieces(self.lab.cache, lease, ids)
        assert lease.keep < len(ids) or lease.logits
        if exactness == "bit" and lease.kind == "partial":
            assert lease.keep % chunk == 0
        canonical = alone and (lease.kind == "cold" or lease.label == "bit")
        run = Run(self.lab, lease, ids, [], exactness, chunk, threads, canonical=canonical)
        self.open[id(lease)] = (lease, run)
        return lease

    @rule(ids=PROMPTS, reply=st.lists(st.sampled_from([0, 1]), max_size=6), **OPTIONS)
    def serve(self, ids, reply, **options):
        self.lab.request(ids, reply, **options)

    @rule(ids=PROMPTS, **OPTIONS)
    def prefill(self, ids, **options):
        self.lab.request(ids, **options)

    @rule(lease=leases)
    def let_go(self, lease):
        lease.restored()

    @rule(lease=leases, reply=PROMPTS, rows=st.booleans(), logits=st.booleans())
    def compute(self, lease, reply, rows, logits):
        if id(lease) not in self.open:
            return
        run = self.open[id(lease)][1]
        run.capture(run.prompt)
        if rows:
            run.save(run.prompt, "cold", logits=logits)
        run.ids = [*run.ids[: run.prompt], *reply]
        run.at = min(run.at, run.prompt // BLOCK * BLOCK)
        if rows:
            run.save(len(run.ids), "finish", logits=logits)

    @rule(lease=leases)
    def end(self, lease):
        lease.close()
        self.open.pop(id(lease), None)

    @rule(lease=leases, which=st.integers(0, 7), corrupt=st.booleans())
    def fail(self, lease, which, corrupt):
        if id(lease) in self.open and lease.pieces:
            piece = lease.pieces[which % len(lease.pieces)]
            self.lab.space.quarantine([piece.node_id], corrupt=corrupt)
            lease.restart()
            self.failed = True
            left = self.lab.space.space.rows
            self.pinned = Counter({key: n for key, n in self.pinned.items() if key in left})

    @rule(which=st.integers(0, 50))
    def pin(self, which):
        keys = sorted(self.lab.space.space.rows)
        if keys and len(self.pinned) < 2:
            key = keys[which % len(keys)]
            assert self.lab.space.pin(key)
            self.pinned[key] += 1

    @rule()
    def unpin(self):
        for key in list(self.pinned):
            self.lab.space.unpin(key)
            self.pinned[key] -= 1
            self.pinned += Counter()

    @rule(nbytes=st.integers(1, 5000), back=st.booleans())
    def reserve(self, nbytes, back):
        if back and self.loose:
            self.lab.cache.release(self.loose.pop(0))
        extent = self.lab.cache.reserve(nbytes)
        if extent is not None:
            self.loose.append(extent)

    @rule(ids=PROMPTS, owner=st.sampled_from(["one", "another"]))
    def keep_head(self, ids, owner):
        self.lab.space.keep_head(encode_tokens(ids), owner)

    @rule(owner=st.sampled_from(["one", "another"]))
    def disown_heads(self, owner):
        self.lab.cache.disown_heads(owner)

    @rule(target_bytes=st.sampled_from([1, 64, 64, 200, 700, 10**6]))
    def evict(self, target_bytes):
        before = self.shared.ram.used
        _, freed = self.lab.cache.evict_bytes(target_bytes)
        assert self.shared.ram.used == before - freed

    # -- what must hold ----------------------------------------------------------------------

    def nodes(self):
        """Every node that can be reached from the root."""
        stack = [self.lab.space.space.root]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def path(self, node):
        """All tokens from position 0 to a node's end."""
        runs = []
        while node is not None:
            runs.append(node.tokens)
            node = node.parent
        return b"".join(reversed(runs))

    @invariant()
    def the_trie_is_whole(self):
        index = self.shared.index
        found = list(self.nodes())
        assert index.nodes == len(found) - 1
        payloads = {}
        for node in found:
            assert node.live
            assert node.order == sorted(node.children)
            assert node.pins >= 0
            for tokens, child in node.children.items():
                assert child.tokens == tokens
                assert child.parent is node
                assert child.start == node.end
            if node.parent is not None:
                assert node.variants, "every node on a path has a payload"
                assert 0 < len(node.tokens) <= BLOCK * 4
                assert node.end - node.start == BLOCK or not node.children
            for grade, payload in node.variants.items():
                assert payload.live
                assert (payload.node, payload.grade) == (node, grade)
                assert payload.nbytes == (node.end - node.start) * TOKEN_BYTES
                payloads[payload.serial] = payload
        assert payloads == index.payloads
        kinds = Counter(payload.grade.kind for payload in payloads.values())
        assert {kind: n for kind, n in index.grades.items() if n} == kinds

    @invariant()
    def rows_end_in_the_trie(self):
        index, rows = self.shared.index, self.lab.space.space.rows
        assert set(index.rows) == set(rows.values())
        reachable = set(self.nodes())
        for key, row in rows.items():
            assert row.node in reachable
            assert row in row.node.rows
            assert row.node.start < row.length <= row.node.end
            assert row.cut == row.length - row.node.start
            tokens = self.path(row.node)[: row.length * 4]
            assert self.lab.space.key(tokens) == key
            assert row.pins == self.pinned[key]
            for payload in row.wants:
                assert payload.live
                assert row in payload.needed
                assert row.canonical
        assert sum(len(node.rows) for node in reachable) == len(rows)
        for payload in index.payloads.values():
            assert all(payload in row.wants for row in payload.needed)
        assert set(self.pinned) <= set(rows), "a pinned row was evicted"

    @invariant()
    def no_byte_belongs_to_two(self):
        index, ram = self.shared.index, self.shared.ram
        blobs = {blob for lease, _ in self.open.values() for blob in lease._pinned}
        blobs |= set(index.payloads.values())
        blobs |= {row.logits for row in index.rows if row.logits}
        extents = sorted([blob.extent for blob in blobs] + self.loose)
        for one, next_one in pairwise(extents):
            assert one.segment < next_one.segment or one.offset + one.size <= next_one.offset
        assert sum(extent.size for extent in extents) == ram.used <= ram.backed <= QUOTA
        assert self.lab.cache.counters.snapshot()["bytes_ram"] == ram.used
        for one in ram._segments.values():
            assert one.free == one.size - sum(one.granted.values()) == sum(n for _, n in one.holes)
            ends = [offset + size for offset, size in one.holes]
            assert all(end < start for end, (start, _) in zip(ends, one.holes[1:], strict=False))

    @invariant()
    def pins_are_those_of_the_leases(self):
        pins = Counter()
        tips = Counter()
        for lease, _ in self.open.values():
            pins.update(lease._pinned)
            tips.update([lease._tip] if lease._tip else [])
        for payload in self.shared.index.payloads.values():
            assert payload.pins == pins[payload]
        for blob in pins:
            assert blob.pins == pins[blob]
        tips.update(head.tip for head in self.shared.index.heads)
        for node in self.nodes():
            assert node.pins == tips[node] + sum(row.pins for row in node.rows)

    @invariant()
    def heads_are_what_is_there_and_within_their_share(self):
        heads = list(self.shared.index.heads)
        assert len(heads) <= KEPT
        cover = set()
        for head in heads:
            assert head.owners
            assert head.tokens.startswith(self.path(head.tip))
            assert head.tip.end % BLOCK == 0
            cover.update(head.chain())
        assert cover <= set(self.nodes())
        pinned = sum(payload.nbytes for node in cover for payload in node.variants.values())
        assert pinned == self.shared.index.heads.pinned(RAM) <= QUOTA // SHARE

    @invariant()
    def canonical_chains_are_unbroken(self):
        if self.failed:
            return  # what was dropped was dropped; the rest is found at ``token``
        for payload in self.shared.index.payloads.values():
            parent, grade = payload.node.parent, payload.grade
            if grade.kind == "P" and parent.parent is not None:
                assert grade in parent.variants

    @rule(ids=PROMPTS, bit=st.booleans(), chunk=st.sampled_from([CHUNK, 2 * CHUNK]))
    def search(self, ids, bit, chunk):
        """The search finds what looking at every node finds."""
        want = Want.of("bit" if bit else "token", chunk, THREADS)
        tokens = encode_tokens(ids)
        best = 0
        for node in self.nodes():
            chain = []
            at = node
            while at.parent is not None:
                chain.append(at)
                at = at.parent
            if not all(one.usable(want) for one in chain):
                continue
            both = common_tokens(self.path(node), tokens)
            if bit:
                best = max(best, node.end if both == node.end else 0)
            elif both > node.start:
                best = max(best, both)
        found = search(self.lab.space.space, tokens, want)
        assert found.length == best
        joined = b"".join(payload.node.tokens for payload in found.payloads)
        assert joined[: best * 4] == tokens[: best * 4]
        assert decode_tokens(joined)[:best] == ids[:best]


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestMachine = Machine.TestCase


def test_a_node_whose_read_payload_is_dropped_can_still_be_evicted():
    """Found by the machine: the other payload stayed for ever."""
    machine = Machine()
    first = machine.begin(ids=[0] * 8, exactness="token", chunk=8, threads=THREADS, alone=True)
    machine.compute(first, reply=[0] * 8, rows=False, logits=False)
    machine.prefill(ids=[0] * 8, exactness="token", chunk=16, threads=THREADS, alone=True)
    machine.end(first)
    machine.evict(target_bytes=1)
    second = machine.begin(ids=[0] * 3, exactness="token", chunk=8, threads=THREADS, alone=True)
    machine.evict(target_bytes=1)
    machine.fail(second, which=0, corrupt=False)
    machine.teardown()
