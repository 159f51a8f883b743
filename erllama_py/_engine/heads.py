"""The heads of a model's chats: found when a chat is rendered, kept by the cache.

The first time a system text with its tools is seen, two more renderings of it are
tokenised; what they and the request itself have in common is the head.  From then on it
is known, unless what is rendered does not begin with it any more: some templates put the
date there.

Nothing is computed for a head, and no prefill is cut at its end: that would make other
bits than a cold run's.  Its blocks are those of the conversations that begin with it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from erllama_py._cache.trie import TOKEN_BYTES, common_tokens
from erllama_py._templates.openings import opening_of, openings
from erllama_py.errors import ErllamaError

__all__ = ("ChatHeads",)

KNOWN = 32
"""Heads remembered: more than the cache keeps, since each costs its tokens only."""


class ChatHeads:
    """One model's.

    :param tokenize: renders a chat request and returns its encoded tokens.
    :param keep: has the cache keep a head; called each time one is used.
    """

    def __init__(
        self, tokenize: Callable[[Mapping[str, Any]], bytes], keep: Callable[[bytes], None]
    ) -> None:
        self._tokenize = tokenize
        self._keep = keep
        self._known: OrderedDict[bytes, bytes] = OrderedDict()

    def note(self, request: Mapping[str, Any], tokens: bytes) -> None:
        """Have the head of a request kept; ``tokens`` is what it was rendered to.

        Never an error of the request: what has no head just has none.
        """
        opening = opening_of(request)
        if not opening:
            return
        which = hashlib.sha256(repr(opening).encode(errors="backslashreplace")).digest()
        head = self._known.get(which)
        if head is None or not tokens.startswith(head):
            head = self._find(request, tokens)
            self._known[which] = head
            while len(self._known) > KNOWN:
                self._known.popitem(last=False)
        if head:
            self._keep(head)

    def _find(self, request: Mapping[str, Any], tokens: bytes) -> bytes:
        try:
            others = [self._tokenize(one) for one in openings(request)]
        except ErllamaError:  # a template may refuse conversations that begin like this
            return b""
        shared = min(common_tokens(tokens, other) for other in others)
        shared = min(shared, common_tokens(*others))
        return tokens[: shared * TOKEN_BYTES]
