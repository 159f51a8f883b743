"""Search against brute force, on anything stored and any prompt."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from erllama_py._cache.grade import Want, streamed
from erllama_py._cache.key import encode_tokens
from erllama_py._cache.trie import Blob, Node, Payload, common_tokens
from tests.cachelab import BLOCK, Lab

TOKENS = st.sampled_from([0, 1, 2, 256, 257, 65536, 0x01010101])
"""Chosen so that byte order, token order and common bytes all disagree."""

PROMPTS = st.lists(TOKENS, min_size=1, max_size=14)


def shared(one, other):
    """Count common leading tokens, the plain way."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


@given(PROMPTS, PROMPTS)
def test_common_tokens_counts_tokens(one, other):
    assert common_tokens(encode_tokens(one), encode_tokens(other)) == shared(one, other)


@given(
    st.lists(st.tuples(st.lists(TOKENS, min_size=1, max_size=4), st.booleans()), max_size=30),
    st.lists(TOKENS, min_size=1, max_size=4),
)
def test_the_nearest_child_is_the_best_usable_one(children, query):
    """Sorting by bytes loses nothing against looking at every child."""
    root = Node(None, b"")
    usable = []
    for run, mine in children:
        tokens = encode_tokens(run)
        if tokens in root.children:
            continue
        child = Node(root, tokens)
        grade = streamed(2 if mine else 3)
        child.variants[grade] = Payload(0, child, grade, Blob({}, 1, 0))
        root.hang(child)
        usable += [run] if mine else []
    best = max((shared(run, query) for run in usable), default=0)
    found = root.nearest(encode_tokens(query), Want.of("token", 8, 2))
    assert (found[1] if found else 0) == best
    if found:
        assert streamed(2) in found[0].node.variants


@given(
    st.lists(
        st.tuples(PROMPTS, st.lists(TOKENS, max_size=6), st.booleans(), st.booleans()), max_size=8
    ),
    PROMPTS,
)
def test_every_token_shared_with_anything_computed_is_found(requests, prompt):
    """While nothing is evicted; a prompt leaves at least one token to compute."""
    lab = Lab()
    try:
        contexts = []
        for ids, reply, bit, alone in requests:
            exactness = "bit" if bit else "token"
            lab.request(ids, reply, exactness=exactness, alone=alone, logits=False)
            contexts.append([*ids, *reply])
        best = max((shared(context, prompt) for context in contexts), default=0)
        rows = [ids for ids, *_ in requests] + contexts
        expected = len(prompt) if prompt in rows else min(best, len(prompt) - 1)
        assert lab.probe(prompt) == expected
        assert lab.probe(prompt, threads=9) <= expected
    finally:
        lab.cache.close()


@given(st.lists(st.tuples(PROMPTS, st.booleans()), min_size=1, max_size=8))
@example([([0] * 8, True), ([0] * 4, True)])
def test_a_canonical_prompt_is_exact_when_it_comes_again(requests):
    """Whatever was computed in between, and its whole chunks are there for any longer one."""
    lab = Lab()
    try:
        for ids, alone in requests:
            lab.request(ids, exactness="bit", alone=alone)
            if not alone:
                continue
            again = lab.request(ids, exactness="bit")
            assert (again.kind, again.label, again.logits) == ("exact", "bit", True)
            longer = lab.probe([*ids, 3], exactness="bit")
            assert longer == len(ids) // (2 * BLOCK) * 2 * BLOCK
    finally:
        lab.cache.close()
