"""Embeddings: one vector for a list of tokens, from a context of their own.

The weights are the model's; only cells and buffers are made anew.  So a call neither
sees nor changes what generation has in its context, and may run while that computes.

*Pooling* makes one vector of the positions' vectors.  It is the model's own, as its file
says; where that says none, which is true of models made to generate, it is the mean.
Values are the engine's: no vector is normalised.

A causal model is computed in slices, each pooled alone and then put together: with
embeddings on, the engine computes logits for every token of a slice, a megabyte
each with a vocabulary of 262k.  A model in which tokens look at later ones, as encoders
do, must have its whole input in one slice.

The context has as many cells as the longest input so far asked for: making one takes 10
to 20 ms, and most inputs are short.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import llama_cpp.llama_cpp as native
import numpy as np

from erllama_py._backends import native_log
from erllama_py._backends.base import MAX_TOKENS, BackendError, ContextOptions, Row
from erllama_py._backends.llama_batch import Batch
from erllama_py._backends.llama_native import ContextHandle, ModelHandle, new_context

__all__ = ("Embedder",)

FEWEST_CELLS = 512
"""Cells of the smallest context; larger ones are powers of two."""
LOGITS_BYTES = 64 << 20
"""What a slice's logits may take, and the engine holds them twice."""
SLICES = (32, 512)
"""Fewest and most tokens of a slice."""

_NONE = native.LLAMA_POOLING_TYPE_NONE
_MEAN = native.LLAMA_POOLING_TYPE_MEAN
_LAST = native.LLAMA_POOLING_TYPE_LAST
_CLS = native.LLAMA_POOLING_TYPE_CLS


class Embedder:
    """Embeds with one model; one thread at a time.

    :param context: the generation's, whose kind and size are followed.
    :param options: those the generation's was made with.
    :param pooling: the engine's number of a kind of pooling; without, the model's own.
    """

    def __init__(
        self,
        model: ModelHandle,
        context: ContextHandle,
        options: ContextOptions,
        n_vocab: int,
        pooling: int = native.LLAMA_POOLING_TYPE_UNSPECIFIED,
    ) -> None:
        self._model = model
        self._options = options
        self._n_vocab = n_vocab
        self._flash_attn = context.flash_attn
        self._encodes = not context.memory
        self._whole = self._encodes or model.metadata("%s.attention.causal") == "false"
        trained = native.llama_model_n_ctx_train(model.pointer)
        self._limit = min(context.n_ctx, trained) if trained else context.n_ctx
        """Beyond the training length some models have no positions at all."""
        self._asked_pooling = pooling
        self._pooling = _NONE
        self._size = native.llama_model_n_embd_out(model.pointer)
        self._cells = 0
        self._slice = 0
        self._pointer: Any = None
        self._batch: Batch

    def close(self) -> None:
        """Free the context; the next call makes one again."""
        pointer, self._pointer, self._cells = self._pointer, None, 0
        if pointer:
            native.llama_free(pointer)

    def embed(self, tokens: Sequence[int], crowded: Callable[[], bool]) -> list[float]:
        """See :meth:`erllama_py._backends.base.Backend.embed`."""
        self._check(tokens)
        self._make_room(len(tokens))
        native.llama_memory_clear(native.llama_get_memory(self._pointer), False)
        parts = []
        for at in range(0, len(tokens), self._slice):
            self._choose_threads(crowded=crowded())
            parts.append(self._compute(at, tokens[at : at + self._slice]))
        vector = self._together(parts, len(tokens))
        if not np.isfinite(vector).all():
            raise BackendError("embed_failed", "the model's numbers are not finite here")
        values: list[float] = vector.astype(np.float32).tolist()
        return values

    def _check(self, tokens: Sequence[int]) -> None:
        if len(tokens) > MAX_TOKENS:
            raise BackendError("too_large", f"{len(tokens)} tokens; {MAX_TOKENS} at most")
        if not tokens:
            raise BackendError("invalid_token", "there are no tokens: give at least one")
        if not 0 <= min(tokens) <= max(tokens) < self._n_vocab:
            raise BackendError("invalid_token", f"the vocabulary has 0 to {self._n_vocab - 1}")
        if len(tokens) >= self._limit:
            raise BackendError(
                "context_overflow",
                f"{len(tokens)} tokens; this context takes up to {self._limit - 1}",
            )

    # -- the context ------------------------------------------------------------------------

    def _make_room(self, count: int) -> None:
        """Have a context with cells for so many tokens."""
        if count <= self._cells:
            return
        self.close()
        cells = min(max(FEWEST_CELLS, 1 << (count - 1).bit_length()), self._limit)
        self._slice = cells if self._whole else min(self._fitting_slice(), cells)
        self._create(cells)
        self._pooling = native.llama_pooling_type(self._pointer)
        if self._pooling not in (_NONE, _MEAN, _LAST, _CLS):
            self.close()
            raise BackendError("not_supported", "this model ranks: it gives scores, not vectors")
        self._cells = cells
        self._batch = Batch(self._slice, cells, self._n_vocab, all_outputs=True)

    def _create(self, cells: int) -> None:
        params = native.llama_context_default_params()
        params.n_ctx = cells
        params.n_batch = params.n_ubatch = self._slice
        params.n_seq_max = 1
        params.n_threads = params.n_threads_batch = self._options.n_threads_batch
        params.offload_kqv = self._options.offload_kqv
        params.swa_full = False
        params.embeddings = True
        params.pooling_type = self._asked_pooling
        params.no_perf = True
        self._pointer, _ = new_context(self._model, params, (self._flash_attn,))

    def _fitting_slice(self) -> int:
        fewest, most = SLICES
        fitting = LOGITS_BYTES // (4 * self._n_vocab) or 1
        return min(max(fewest, 1 << (fitting.bit_length() - 1)), most)

    def _choose_threads(self, *, crowded: bool) -> None:
        """Leave the cores that generation uses to it, while it does.

        Measured on two cores: a stream keeps 93 to 95 % of its speed beside embeddings
        then, 88 % where both take all cores; the embeddings take as long either way.
        """
        threads = self._options.n_threads_batch
        if crowded:
            threads = max(1, threads - self._options.n_threads)
        native.llama_set_n_threads(self._pointer, threads, threads)

    # -- computing --------------------------------------------------------------------------

    def _compute(self, at: int, tokens: Sequence[int]) -> Any:
        """Evaluate one slice; return its pooled vector, float64."""
        self._batch.fill([Row(0, at, tokens, True)], len(tokens))
        point = native_log.mark()
        evaluate = native.llama_encode if self._encodes else native.llama_decode
        code = evaluate(self._pointer, self._batch.struct)
        values: Any = None
        if not code and self._pooling == _NONE:
            values = native.llama_get_embeddings(self._pointer)
        elif not code:
            values = native.llama_get_embeddings_seq(self._pointer, 0)
        if not values:
            lines = "; ".join(native_log.errors_since(point))
            raise BackendError("embed_failed", f"the engine answered {code}: {lines}")
        rows = len(tokens) if self._pooling == _NONE else 1
        memory = (ctypes.c_float * (rows * self._size)).from_address(
            ctypes.addressof(values.contents)
        )
        # A copy: the engine's memory is good until the next slice.
        return np.frombuffer(memory, np.float32).reshape(rows, -1).mean(axis=0, dtype=np.float64)

    def _together(self, parts: list[Any], count: int) -> Any:
        """Pool the slices' vectors as one slice of everything would have been."""
        if len(parts) == 1 or self._pooling == _CLS:
            return parts[0]
        if self._pooling == _LAST:
            return parts[-1]
        weights = [min(self._slice, count - at) for at in range(0, count, self._slice)]
        return np.average(parts, axis=0, weights=weights)
