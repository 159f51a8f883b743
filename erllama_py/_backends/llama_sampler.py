"""A request's sampler: a llama.cpp chain, and beside it the grammar.

The chain is penalties, top-k, top-p, min-p, then temperature and a seeded draw, or
greedy.  A grammar is kept out of it: applied first, as the chain order has it, it
tests every token of the vocabulary (25 ms a token with 262k of them).  So the chain
chooses, the grammar is asked about that one token, and only if it refuses is it
applied to all and the chain run again.  Where the grammar accepts, the result is the
one grammar-first would give for greedy, and a fair draw otherwise.

A grammar is about characters, and a token may be a part of one.  The engine takes any byte
for the rest of a character that has begun, a quote too, and the text is broken then: so a
token that would leave something that is not UTF-8 is refused here.  A control token the
engine takes for its name, which is not in the reply: where the reply itself has to be what
the grammar says (``visible``), those are refused, too.

Three ways lead to a token, and all of them to the same one:

========================  ======================  ============================
chain                     from a step             from stored logits
========================  ======================  ============================
greedy alone              numpy's argmax          the same
anything, no grammar      ``llama_sampler_sample``  candidates, applied
with a grammar            candidates, applied     the same
========================  ======================  ============================

Accepting a token a grammar does not allow throws a C++ exception through ctypes, which
ends the process; nothing is accepted here that was not checked.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import weakref
from collections.abc import Callable
from typing import Any, Final

import llama_cpp.llama_cpp as native
import numpy as np

from erllama_py._backends import native_log
from erllama_py._backends.base import BackendError, SamplerOptions
from erllama_py._backends.llama_vocab import Vocab

__all__ = ("Candidates", "LlamaSampler", "unfinished")

PENALTY_WINDOW = 64
"""Tokens the repetition penalty looks back on.  Only generated ones are accepted into
the chain, so the prompt never counts."""
_GRAMMAR_ROOT = b"root"

_BAD_DRAWS: Final = 8
"""Tokens that must not be said, drawn one after the other, before all such are left out."""

# struct llama_token_data
_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Candidates:
    """The vocabulary as llama.cpp's samplers take it; one table serves a whole context."""

    def __init__(self, n_vocab: int) -> None:
        self._ids = np.arange(n_vocab, dtype=np.int32)
        self._table = np.zeros(n_vocab, _TOKEN_DATA)
        self._data = ctypes.cast(self._table.ctypes.data, native.llama_token_data_p)
        self._array: Any = native.llama_token_data_array()
        self._one = np.zeros(1, _TOKEN_DATA)
        self._one_data = ctypes.cast(self._one.ctypes.data, native.llama_token_data_p)

    def choose(self, chain: Any, logits: Any) -> int:
        """Run a chain over fresh candidates; return the token it selects."""
        self._fill(logits)
        return int(self._run(chain)[0])

    def choose_allowed(self, chain: Any, grammar: Any, logits: Any) -> int:
        """Apply the grammar to fresh candidates, then the chain.

        :raises BackendError: ``grammar_failed`` where no token of the vocabulary fits.
        """
        self._fill(logits)
        # Read before the chain runs: samplers sort the table in place.
        best_id = self._best_allowed(grammar)
        token, logit = self._run(chain)
        # A draw may land on a refused token where rounding leaves it the last share, or on any
        # where a temperature near nothing makes of all shares no numbers.
        return token if logit > -math.inf else best_id

    def likeliest_allowed(self, grammar: Any, logits: Any) -> int:
        """Return the likeliest token that the grammar allows.

        :raises BackendError: ``grammar_failed`` where no token of the vocabulary fits.
        """
        self._fill(logits)
        return self._best_allowed(grammar)

    def _best_allowed(self, grammar: Any) -> int:
        """Apply the grammar to the candidates there are."""
        native.llama_sampler_apply(grammar, ctypes.byref(self._array))
        best = int(self._table["logit"].argmax())
        if self._table["logit"][best] == -math.inf:
            raise BackendError("grammar_failed", "no token of the vocabulary fits the grammar here")
        return int(self._table["id"][best])

    def allows(self, grammar: Any, token: int) -> bool:
        """Ask the grammar about one token."""
        self._one[0] = (token, 1.0, 0.0)
        self._point(self._one_data, 1)
        native.llama_sampler_apply(grammar, ctypes.byref(self._array))
        return bool(self._one["logit"][0] != -math.inf)

    def _fill(self, logits: Any) -> None:
        self._table["id"] = self._ids
        self._table["logit"] = logits
        self._point(self._data, len(self._ids))

    def _point(self, data: Any, size: int) -> None:
        self._array.data = data
        self._array.size = size
        self._array.selected = -1
        self._array.sorted = False

    def _run(self, chain: Any) -> tuple[int, float]:
        native.llama_sampler_apply(chain, ctypes.byref(self._array))
        if not 0 <= self._array.selected < self._array.size:
            raise BackendError("sample_failed", "the sampler chain selected no token")
        chosen = self._array.data[self._array.selected]
        return chosen.id, chosen.logit


class LlamaSampler:
    """One request's chain and grammar.

    :raises BackendError: ``badarg``, ``grammar_failed``, ``oom``.
    """

    syntax = False

    def __init__(
        self,
        vocab: Any,
        candidates: Candidates,
        n_vocab: int,
        o: SamplerOptions,
        text: Vocab,
    ) -> None:
        self._candidates = candidates
        self._text = text
        self._visible = o.visible
        self._unfinished = b""
        """Bytes of a character that has begun; kept with a grammar only."""
        self._free = contextlib.ExitStack()
        # A sampler that was dropped unclosed is freed with its Python object.
        self._close = weakref.finalize(self, self._free.close)
        self._close.atexit = False
        stages = _stages(n_vocab, o)
        self._greedy_alone = stages == [(native.llama_sampler_init_greedy, ())]
        try:
            self._grammar = self._own(_grammar(vocab, o.grammar)) if o.grammar is not None else None
            self._chain = self._own(
                native.llama_sampler_chain_init(native.llama_sampler_chain_default_params())
            )
            for build, arguments in stages:
                native.llama_sampler_chain_add(self._chain, _made(build(*arguments)))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free chain and grammar.  Idempotent."""
        self._chain = self._grammar = None
        self._close()

    def sample(self, context: Any, at: int, logits: Any) -> int:
        """Choose and accept a token of the context's output ``at``.

        :param logits: that output's logits, as a numpy array.
        """
        if self._greedy_alone or self.syntax or self._grammar is not None:
            return self.sample_logits(logits)
        if self._chain is None:
            raise BackendError("released", "the sampler was closed")
        return int(native.llama_sampler_sample(self._chain, context, at))

    def sample_logits(self, logits: Any) -> int:
        """Choose and accept the token :meth:`sample` would, from logits alone."""
        if self._chain is None:
            raise BackendError("released", "the sampler was closed")
        if self.syntax:
            return self._likeliest(logits)
        if self._greedy_alone:
            token = int(logits.argmax())
        else:
            token = self._candidates.choose(self._chain, logits)
        if self._grammar is not None:
            token = self._held(token, logits, self._chosen)
            native.llama_sampler_accept(self._grammar, token)
        if not self._greedy_alone:
            native.llama_sampler_accept(self._chain, token)
        return token

    def _likeliest(self, logits: Any) -> int:
        """Take the likeliest token, past the chain: only the grammar is told of it."""
        token = int(logits.argmax())
        if self._grammar is not None:
            token = self._held(token, logits, self._candidates.likeliest_allowed)
            native.llama_sampler_accept(self._grammar, token)
        return token

    def _chosen(self, grammar: Any, logits: Any) -> int:
        return self._candidates.choose_allowed(self._chain, grammar, logits)

    def _held(self, token: int, logits: Any, choose: Callable[[Any, Any], int]) -> int:
        """Return a token where the grammar allows it, else one that it does allow."""
        left = self._left_by(token)
        if left is None or not self._candidates.allows(self._grammar, token):
            for bad_draws in range(_BAD_DRAWS + 1):
                if bad_draws == _BAD_DRAWS:
                    logits = self._sayable(logits)
                token = choose(self._grammar, logits)
                left = self._left_by(token)
                if left is not None:
                    break
                logits = logits.copy()
                logits[token] = -math.inf
        self._unfinished = left or b""
        return token

    def _left_by(self, token: int) -> bytes | None:
        """Return what a token leaves unfinished; ``None``: it must not be said."""
        piece = self._text.piece(token)
        if self._visible and not piece and not self._text.is_eog(token):
            return None
        return unfinished(self._unfinished + piece)

    def _sayable(self, logits: Any) -> Any:
        """Return logits without the tokens that must not be said here."""
        good = [self._left_by(token) is not None for token in range(len(logits))]
        return np.where(good, logits, np.float32(-math.inf))

    def _own(self, pointer: Any) -> Any:
        self._free.callback(native.llama_sampler_free, _made(pointer))
        return pointer


def unfinished(data: bytes) -> bytes | None:
    """Return the bytes of a character that has begun at the end; ``None``: it is not UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        cut = error.end == len(data) and error.reason == "unexpected end of data"
        return data[error.start :] if cut else None
    return b""


def _stages(n_vocab: int, o: SamplerOptions) -> list[tuple[Any, tuple[Any, ...]]]:
    """Return the chain as constructors and arguments; neutral values leave a stage out."""
    stages: list[tuple[Any, tuple[Any, ...]]] = []
    penalty = o.repetition_penalty
    if penalty is not None and penalty != 1.0:
        if not 0.0 < penalty < math.inf:
            raise BackendError("badarg", f"repetition_penalty is {penalty}: it must be above 0")
        stages.append(
            (native.llama_sampler_init_penalties, (n_vocab, PENALTY_WINDOW, penalty, 0.0, 0.0))
        )
    if o.top_k is not None and o.top_k > 0:
        stages.append((native.llama_sampler_init_top_k, (min(o.top_k, n_vocab),)))
    if o.top_p is not None and o.top_p < 1.0:
        stages.append((native.llama_sampler_init_top_p, (o.top_p, 1)))
    if o.min_p is not None and o.min_p > 0.0:
        stages.append((native.llama_sampler_init_min_p, (o.min_p, 1)))
    if o.temperature is not None and o.temperature > 0.0:
        stages.append((native.llama_sampler_init_temp, (o.temperature,)))
        # 2^32 - 1 asks the engine for a random seed, as it does in the original.
        stages.append((native.llama_sampler_init_dist, (o.seed & 0xFFFFFFFF,)))
    else:
        stages.append((native.llama_sampler_init_greedy, ()))
    return stages


def _grammar(vocab: Any, text: bytes) -> Any:
    if not text or b"\0" in text:
        raise BackendError("badarg", "the grammar is empty or has a NUL in it")
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise BackendError("badarg", f"the grammar is not UTF-8: {error}") from None
    point = native_log.mark()
    with native_log.stderr_captured():
        pointer = native.llama_sampler_init_grammar(vocab, text, _GRAMMAR_ROOT)
    if not pointer:
        raise BackendError("grammar_failed", "; ".join(native_log.errors_since(point)))
    return pointer


def _made(pointer: Any) -> Any:
    if not pointer:
        raise BackendError("oom", "the engine could not make a sampler")
    return pointer
