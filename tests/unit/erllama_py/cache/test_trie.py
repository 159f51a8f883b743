"""Common prefixes in byte order."""

from __future__ import annotations

import pytest

from erllama_py._cache.grade import Want, streamed
from erllama_py._cache.key import encode_tokens
from erllama_py._cache.trie import Blob, Node, Payload, common_tokens, covering, prefixes

WANT = Want.of("token", 8, 2)


def family(*runs, unusable=()):
    """A root with these children; those in ``unusable`` are another thread count's."""
    root = Node(None, b"")
    for number, run in enumerate((*runs, *unusable)):
        child = Node(root, encode_tokens(run))
        grade = streamed(2 if number < len(runs) else 3)
        child.variants[grade] = Payload(number, child, grade, Blob({}, 1, 0))
        root.hang(child)
    return root


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ([1, 2, 3], [1, 2, 3], 3),
        ([1, 2, 3], [1, 2], 2),
        ([1, 2, 3], [1, 258, 3], 1),  # differs in the token's second byte only
        ([1, 2, 3], [1, 2, 3 + (1 << 31)], 2),
        ([5], [6], 0),
        ([], [1], 0),
    ],
)
def test_common_tokens(one, other, shared):
    assert common_tokens(encode_tokens(one), encode_tokens(other)) == shared
    assert common_tokens(encode_tokens(other), encode_tokens(one)) == shared


def test_the_nearest_child_is_found_where_byte_order_is_not_token_order():
    # 256 is 00 01 in bytes and sorts before 1; 1 and 257 share their first byte.
    root = family([256, 1, 1], [1, 256, 9], [257, 1, 1], [1, 255, 7])
    payload, shared = root.nearest(encode_tokens([1, 256, 8]), WANT)
    assert (payload.node.tokens, shared) == (encode_tokens([1, 256, 9]), 2)


def test_half_a_token_in_common_is_nothing():
    root = family([257], [513])
    assert root.nearest(encode_tokens([1]), WANT) is None


def test_unusable_children_are_stepped_over_on_both_sides():
    root = family([7, 1], unusable=([7, 5], [7, 6], [7, 5, 5], [7, 4]))
    payload, shared = root.nearest(encode_tokens([7, 5, 4]), WANT)
    assert (payload.serial, shared) == (0, 1)
    assert family(unusable=([7, 5], [7, 6])).nearest(encode_tokens([7, 5]), WANT) is None


def test_covering_finds_what_begins_with_the_tokens():
    root = family([1, 2, 3], [1, 3], unusable=([1, 2],))
    assert covering(root, encode_tokens([1, 2]), WANT).serial == 0
    assert covering(root, encode_tokens([1, 2])).serial == 2
    assert covering(root, encode_tokens([1, 2, 4])) is None
    assert covering(root, encode_tokens([1, 3]), WANT).serial == 1


@pytest.mark.parametrize("others", [0, 100])
def test_prefixes_are_the_shorter_siblings_a_run_begins_with(others):
    root = family([1], [1, 2], [1, 2, 3], [1, 2, 4], [2], *([9, n] for n in range(others)))
    node = root.children[encode_tokens([1, 2, 3])]
    found = {tail.tokens for tail in prefixes(node)}
    assert found == {encode_tokens([1]), encode_tokens([1, 2])}
