"""llama.cpp as a backend: one model, one context.

This is the contract of :mod:`erllama_py._backends.base` put together from its parts:
the edge to the library (``llama_native``), text (``llama_vocab``), the batch
(``llama_batch``), samplers (``llama_sampler``), sequences (``llama_memory``) and
embeddings (``llama_embed``).

The context is made so that blocks work: unified KV, one sequence more than slots as
scratch, flash attention resolved here and never left to the engine.  At load a
self-test computes about fifty tokens to see that blocks do work, or else whole rows.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import llama_cpp.llama_cpp as native
import msgspec
import numpy as np

from erllama_py._backends import native_log
from erllama_py._backends.base import (
    BLOCK,
    GUESSED_TOKENS,
    BackendConfig,
    BackendError,
    BackendInfo,
    NoSlot,
    Row,
    Sampler,
    SamplerOptions,
    StepFailed,
)
from erllama_py._backends.llama_adapters import LlamaAdapters
from erllama_py._backends.llama_batch import Batch
from erllama_py._backends.llama_embed import Embedder
from erllama_py._backends.llama_layout import PartLayout, Sample, learn
from erllama_py._backends.llama_memory import Memory
from erllama_py._backends.llama_native import (
    ContextHandle,
    ModelHandle,
    device_memory,
    engine_identity,
)
from erllama_py._backends.llama_sampler import Candidates, LlamaSampler
from erllama_py._backends.llama_vocab import Vocab
from erllama_py._backends.rows import check_row_number, check_rows
from erllama_py._backends.selftest import SEQUENCE, Part, Verdict, check_blocks, check_whole_rows

__all__ = ("LlamaBackend",)

_NO_CELLS = 1  # llama_decode: no slot for the batch, nothing changed


class LlamaBackend:
    """A loaded model with its context.

    :raises BackendError: see :func:`erllama_py._backends.open_backend`.
    """

    def __init__(self, config: BackendConfig) -> None:
        self._stack = contextlib.ExitStack()
        self._outputs: list[int] = []
        self._rows: Sequence[Row] = ()
        self._embedder: Embedder | None = None
        self._samplers: weakref.WeakSet[LlamaSampler] = weakref.WeakSet()
        try:
            self._open(config)
        except BaseException:
            self.close()
            raise

    def _open(self, config: BackendConfig) -> None:
        point = native_log.mark()
        model = self._model = ModelHandle(config.model_path, config.model)
        self._stack.callback(model.close)
        self._vocab = Vocab(model.vocab)
        self._stack.callback(self._vocab.close)
        n_vocab = self._vocab.n_tokens
        self._candidates = Candidates(n_vocab)
        self._logits_type = ctypes.c_float * n_vocab
        # Without weights a step is an assertion, so there is no context to make one in.
        context = None if config.model.vocab_only else ContextHandle(model, config.context)
        self._context: Any = context.pointer if context else None
        self.info = _info(config, model, context, self._vocab, native_log.buffers_since(point))
        if context is None:
            return
        self._stack.callback(context.close)
        self._embedder = Embedder(model, context, config.context, n_vocab)
        self._stack.callback(self._embedder.close)
        if not self.info.generates:
            # An encoder: a step without embeddings is an assertion, as is one to test it.
            self._context = None
            context.close()
            return
        self._memory = Memory(
            context.pointer,
            context.memory,
            config.context.n_seq_max,
            self.info.n_swa,
            states=model.keeps_states(),
        )
        self._stack.callback(self._memory.close)
        self._adapters = LlamaAdapters(model.pointer, context.pointer)
        self._batch = Batch(context.n_batch, context.n_ctx, n_vocab)
        why_not = self._test_blocks(model.block_obstacle())
        if why_not and (model.keeps_states() or not model.block_obstacle()):
            self._test_whole_rows(why_not)

    def _test_blocks(self, obstacle: str) -> str:
        """Find out whether blocks work; return why not."""
        verdict = Verdict(obstacle) if obstacle else check_blocks(self)
        self._memory.clear_all()
        why_not = verdict.why_not
        layout = None
        if not why_not:
            scratch, window = self._memory.scratch, self.info.n_swa
            layout = self._memory.layout = _learnt(verdict.parts, scratch, window)
            if layout is None:
                why_not = "the size of a packed part is not a head plus so much a token"
        self.info = msgspec.structs.replace(
            self.info,
            blocks=not why_not,
            blocks_why_not=why_not,
            block_bytes=layout.size(BLOCK) if layout else 0,
        )
        return why_not

    def _test_whole_rows(self, no_blocks: str) -> None:
        """Find out whether whole rows work, now that blocks do not."""
        self._memory.whole_rows = True
        verdict = check_whole_rows(self)
        self._memory.clear_all()
        # Rows longer than a sliding window have other sizes than the samples tell.
        if not verdict.why_not and not self.info.n_swa:
            self._memory.layout = _learnt(verdict.parts, SEQUENCE)
        self.info = msgspec.structs.replace(
            self.info,
            whole_rows=not verdict.why_not,
            blocks_why_not=f"{no_blocks}; {verdict.why_not}" if verdict.why_not else no_blocks,
        )

    def close(self) -> None:
        """Free samplers, contexts and model.  Idempotent."""
        self._context = self._embedder = None
        self._outputs = []
        for sampler in list(self._samplers):
            sampler.close()
        self._stack.close()

    # -- text: any thread -----------------------------------------------------------

    def tokenize(self, text: bytes, *, special: bool, parse_special: bool) -> list[int]:
        """Tokenise; see the contract for limits and errors."""
        return self._vocab.tokenize(text, special=special, parse_special=parse_special)

    def control_texts(self) -> list[bytes]:
        """Return the spellings of the control tokens."""
        return self._vocab.control_texts()

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """Concatenate the tokens' pieces."""
        return self._vocab.detokenize(tokens)

    def piece(self, token: int) -> bytes:
        """Return one token's text; empty for control tokens."""
        return self._vocab.piece(token)

    def written(self, token: int) -> bytes:
        """Return one token's text as templates write it."""
        return self._vocab.written(token)

    def is_eog(self, token: int) -> bool:
        """Return whether the token ends generation."""
        return self._vocab.is_eog(token)

    def device_memory(self) -> tuple[int, int]:
        """Return (total, free) bytes over non-CPU devices."""
        return device_memory()

    # -- generation: engine thread ----------------------------------------------------

    def new_sampler(self, options: SamplerOptions) -> LlamaSampler:
        """Build a request's sampler."""
        self._running()
        sampler = LlamaSampler(
            self._model.vocab, self._candidates, self.info.n_vocab, options, self._vocab
        )
        self._samplers.add(sampler)
        return sampler

    def step(self, rows: Sequence[Row]) -> None:
        """Evaluate one batch."""
        context = self._running()
        self._outputs = []
        total = check_rows(
            rows,
            n_batch=self.info.n_batch,
            n_seq_max=self.info.n_seq_max,
            length=self._memory.length,
        )
        outputs = self._batch.fill(rows, total)
        self._decode(context, rows, total)
        self._outputs, self._rows = outputs, rows

    def _decode(self, context: Any, rows: Sequence[Row], total: int) -> None:
        """Evaluate what is in the batch."""
        point = native_log.mark()
        code = native.llama_decode(context, self._batch.struct)
        if code == _NO_CELLS:
            raise NoSlot("no_slot", f"no free cells for {total} tokens")
        if code:
            lines = "; ".join(native_log.errors_since(point))
            if self._memory.states:
                # A state half computed cannot be taken back: the engine reports lengths
                # of which it is not.
                for row in rows:
                    self._memory.clear(row.seq)
            raise StepFailed("decode_failed", f"the engine answered {code}: {lines}")

    def likeliest(self, row: int, at: int = -1) -> int:
        """Return the token of a row's highest logit."""
        last = check_row_number(row, self._outputs)
        if at >= 0:
            wanted = self._rows[row]
            if at >= len(wanted.tokens) or not (wanted.every or at == len(wanted.tokens) - 1):
                raise BackendError("badarg", f"logits of row {row} at {at} were not asked for")
            last += at + 1 - len(wanted.tokens)
        return int(self._logits(last).argmax())

    def digest(self, row: int) -> bytes:
        """Return a digest of a row's logits."""
        return _digest(self._logits(check_row_number(row, self._outputs)))

    def rehearse(self, row: Row) -> list[bytes]:
        """Evaluate a row in the scratch sequence."""
        context = self._running()
        self._outputs = []
        total = len(row.tokens)
        if not 0 < total <= min(GUESSED_TOKENS, self.info.n_ubatch):
            raise StepFailed("batch_overflow", f"{total} tokens to rehearse")
        if not self._memory.lend_head(row.seq, row.pos):
            raise BackendError("window", f"sequence {row.seq} cannot go on at {row.pos}")
        try:
            copy = row._replace(seq=self._memory.scratch)
            self._batch.fill([copy], total)
            self._batch.want_all()
            self._decode(context, [row], total)
            return [_digest(self._logits(at)) for at in range(total)]
        finally:
            self._memory.clear_scratch()

    def guess(self, row: Row) -> list[int]:
        """Evaluate one row, with the logits of every token."""
        context = self._running()
        self._outputs = []
        total = check_rows(
            [row],
            n_batch=min(GUESSED_TOKENS, self.info.n_ubatch),
            n_seq_max=self.info.n_seq_max,
            length=self._memory.length,
        )
        self._batch.fill([row], total)
        self._batch.want_all()
        self._decode(context, [row], total)
        return [int(self._logits(at).argmax()) for at in range(total)]

    def sample(self, sampler: Sampler, row: int) -> int:
        """Draw a token from a row's logits."""
        at = check_row_number(row, self._outputs)
        return _ours(sampler).sample(self._running(), at, self._logits(at))

    def sample_stored(self, sampler: Sampler, logits: memoryview) -> int:
        """Draw a token from saved logits."""
        self._running()
        if logits.nbytes != self.info.logits_bytes:
            raise BackendError(
                "badarg", f"logits of {logits.nbytes} bytes, not {self.info.logits_bytes}"
            )
        return _ours(sampler).sample_logits(np.frombuffer(logits, np.float32))

    def thinking_signature(self, seq: int) -> bytes | None:
        """Return nothing: the core signs."""
        del seq
        return None

    def copy_logits(self, row: int, out: memoryview) -> None:
        """Copy a row's logits to ``out``, which may be longer."""
        logits = self._logits(check_row_number(row, self._outputs))
        if out.nbytes < self.info.logits_bytes:
            raise BackendError(
                "badarg", f"{out.nbytes} bytes for logits of {self.info.logits_bytes}"
            )
        np.frombuffer(out, np.float32, self.info.n_vocab)[:] = logits

    # -- adapters: engine thread ------------------------------------------------------

    def load_adapter(self, number: int, path: str, *, tried: bool) -> None:
        """Load a LoRA adapter."""
        self._running()
        self._adapters.load(number, path)
        if tried:
            before = self._adapters.used
            self._adapters.use([(number, 1.0)])
            try:
                self.step([Row(0, 0, [0], logits=False)])
            except StepFailed as error:
                self._adapters.use(before)
                self._adapters.free(number)
                raise BackendError("load_failed", f"{path}: {error.detail}") from error
            finally:
                self._memory.clear_all()
            self._adapters.use(before)

    def free_adapter(self, number: int) -> None:
        """Free a loaded adapter."""
        self._running()
        self._adapters.free(number)

    def use_adapters(self, adapters: Sequence[tuple[int, float]]) -> None:
        """Compute with these adapters and no others."""
        self._running()
        self._adapters.use(adapters)

    # -- memory: engine thread --------------------------------------------------------

    def clear(self, seq: int) -> None:
        """Remove every cell of a sequence."""
        self._running()
        self._memory.clear(seq)

    def truncate(self, seq: int, length: int) -> bool:
        """Cut a sequence; the positions decide whether it can go on."""
        self._running()
        return self._memory.truncate(seq, length)

    def share(self, source: int, target: int, length: int) -> bool:
        """Share the head of a sequence; the positions decide whether that can go on."""
        self._running()
        return self._memory.share(source, target, length)

    def length(self, seq: int) -> int:
        """Return the engine's count of a sequence's tokens."""
        self._running()
        return self._memory.length(seq)

    def packed_size(self, seq: int, start: int, end: int) -> int:
        """Return the bytes :meth:`pack` would write."""
        self._running()
        return self._memory.packed_size(seq, start, end)

    def pack(self, seq: int, start: int, end: int, out: memoryview) -> int:
        """Pack a part of a sequence through the scratch sequence."""
        self._running()
        return self._memory.pack(seq, start, end, out)

    def unpack(self, seq: int, start: int, end: int, data: memoryview) -> None:
        """Append a packed part."""
        self._running()
        self._memory.unpack(seq, start, end, data)

    # -- embeddings: one thread ---------------------------------------------------------

    def embed(self, tokens: Sequence[int], crowded: Callable[[], bool]) -> list[float]:
        """Return the tokens' vector, pooled as the model says, else their mean."""
        if self._embedder is None:
            raise BackendError("released", f"the model cannot compute: {self._why_not()}")
        return self._embedder.embed(tokens, crowded)

    def drop_embedder(self) -> None:
        """Free the context that embeddings were made in."""
        if self._embedder:
            self._embedder.close()

    def _running(self) -> Any:
        if self._context is None:
            raise StepFailed("released", f"the model cannot compute: {self._why_not()}")
        return self._context

    def _why_not(self) -> str:
        if not self.info.generates:
            return "it embeds, and does not generate"
        return "only the vocabulary is loaded" if self._model.vocab_only else "it was closed"

    def _logits(self, at: int) -> Any:
        """Return the logits of output ``at`` as an array over the engine's own memory."""
        pointer = native.llama_get_logits_ith(self._running(), at)
        if not pointer:
            raise StepFailed("decode_failed", f"the engine has no logits at {at}")
        memory: Any = self._logits_type.from_address(ctypes.addressof(pointer.contents))
        return np.frombuffer(memory, np.float32)


def _digest(logits: Any) -> bytes:
    return hashlib.blake2b(logits, digest_size=16).digest()


def _learnt(parts: Sequence[Part], seq: int, window: int = 0) -> PartLayout | None:
    return learn([Sample(part.start, part.end, seq, part.data) for part in parts], window)


def _ours(sampler: Sampler) -> LlamaSampler:
    if not isinstance(sampler, LlamaSampler):
        raise BackendError("badarg", "the sampler is another backend's")
    return sampler


def _info(
    config: BackendConfig,
    model: ModelHandle,
    context: ContextHandle | None,
    vocab: Vocab,
    buffers: tuple[int, int, int],
) -> BackendInfo:
    """Describe the model.  Blocks are tentatively possible: the self-test decides."""
    pointer = model.pointer
    generates = context is None or bool(context.memory)
    obstacle = "" if generates else "the model embeds, and does not generate"
    return BackendInfo(
        backend="erllama_model_llama",
        n_ctx=context.n_ctx if context else 0,
        n_ctx_train=native.llama_model_n_ctx_train(pointer),
        n_batch=context.n_batch if context else 0,
        n_ubatch=context.n_ubatch if context else 0,
        n_seq_max=config.context.n_seq_max,
        n_threads=config.context.n_threads,
        n_threads_batch=config.context.n_threads_batch,
        n_vocab=vocab.n_tokens,
        n_embd=native.llama_model_n_embd(pointer),
        n_swa=native.llama_model_n_swa(pointer),
        logits_bytes=4 * vocab.n_tokens,
        model_size_bytes=native.llama_model_size(pointer),
        total_layers=native.llama_model_n_layer(pointer),
        n_gpu_layers=config.model.n_gpu_layers,
        blocks=context is not None and generates,
        blocks_why_not=obstacle if context else model.block_obstacle(),
        block_bytes=0,
        chat_template=model.chat_template(),
        chat_templates=model.chat_templates(),
        bos=vocab.bos_text(),
        eos=vocab.eos_text(),
        identity=engine_identity(model, context, config.context),
        description=model.describe(),
        generates=generates,
        verifies=context is not None and generates,
        # An encoder's context goes at once: it was only asked what the model is.
        buffers=buffers if generates else (buffers[0], 0, 0),
    )
