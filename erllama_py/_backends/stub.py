"""A backend without a model, for tests and for trying the library out.

It is the original's ``erllama_model_stub``: text is split at spaces and hashed, every
token of one request is the same number, generation never ends by itself.  What the
scheduler and the cache can observe is real, though: sequences have positions, the
cells run out, batches have a limit, packed parts are checked when they come back.

Two rules of the original cannot be reproduced and are replaced:

* A request's token is there a hash of a fresh runtime reference.  Here it is the
  number of the sampler, counted from 1 for each backend, times an odd constant modulo
  2^27.  That is one-to-one, so concurrent requests always differ, and the n-th request
  of a fresh model gives the same token in every run.
* Logits do not exist there.  Here a position has four bytes of them (the sequence's
  length, little endian), so that an exact hit takes the path it takes with a model.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from itertools import count, islice
from typing import Any, TypeGuard

from erllama_py._backends.base import (
    BLOCK,
    MAX_TEXT_BYTES,
    MAX_TOKENS,
    BackendConfig,
    BackendError,
    BackendInfo,
    NoSlot,
    RestoreFailed,
    Row,
    Sampler,
    SamplerOptions,
    StepFailed,
    StubOptions,
)
from erllama_py._backends.phash2 import phash2_binary, phash2_embed
from erllama_py._backends.rows import check_row_number, check_rows
from erllama_py.types import Atom

__all__ = ("StubBackend", "StubSampler", "embed", "render_chat")

N_EMBD = 16
N_VOCAB = 1 << 27
"""Range of ``phash2/1``.  Callers may prefill any token that fits 32 bits."""
DEFAULT_N_CTX = 4096
TOKEN_BYTES = 4
LOGITS_BYTES = 4
_SPREAD = 0x9E3779B1
"""Odd, so that multiplying by it modulo a power of two is one-to-one."""
_WORD = "I"  # array code of an unsigned 32-bit number


class StubSampler:
    """A request's sampler: what it gives first, and then the token it always gives."""

    syntax = False

    def __init__(self, token: int, first: Sequence[int] = ()) -> None:
        self._token = token
        self._first = list(first)

    def draw(self) -> int:
        """Return the next token."""
        return self._first.pop(0) if self._first else self._token

    def close(self) -> None:
        """Nothing is held."""


class StubBackend:
    """The stub as a :class:`~erllama_py._backends.base.Backend`."""

    def __init__(self, config: BackendConfig) -> None:
        options = config.context
        if not 1 <= options.n_seq_max <= 255:
            raise BackendError("badarg", f"n_seq_max is {options.n_seq_max}: 1 to 255 are possible")
        n_ctx = options.n_ctx or DEFAULT_N_CTX
        n_batch = max(1, min(options.n_batch, n_ctx))
        self._hooks = config.stub
        self._cells: list[array[int]] = [array(_WORD) for _ in range(options.n_seq_max)]
        self._ids: list[list[int]] = [[] for _ in range(options.n_seq_max)]
        """Which cell each token is in: sequences may share cells."""
        self._next_id = count()
        self._outputs: list[int] = []
        self._samplers = count(1)
        self._marked = _marked(config.stub)
        self._adapters: set[int] = set()
        self._steps = 0
        self.info = BackendInfo(
            backend="erllama_model_stub",
            n_ctx=n_ctx,
            n_ctx_train=n_ctx,
            n_batch=n_batch,
            n_ubatch=min(options.n_ubatch or n_batch, n_batch),
            n_seq_max=options.n_seq_max,
            n_threads=options.n_threads,
            n_threads_batch=options.n_threads_batch,
            n_vocab=N_VOCAB,
            n_embd=N_EMBD,
            n_swa=0,
            logits_bytes=LOGITS_BYTES,
            model_size_bytes=0,
            total_layers=0,
            n_gpu_layers=0,
            blocks=not config.stub.whole_rows,
            blocks_why_not="whole_rows is set" if config.stub.whole_rows else "",
            block_bytes=0 if config.stub.whole_rows else BLOCK * TOKEN_BYTES,
            chat_template=None,
            bos="",
            eos="",
            identity={"engine": "stub 1"},
            description="stub (no model)",
            whole_rows=config.stub.whole_rows,
            buffers=(config.stub.weights_bytes, 0, 0),
        )

    # -- text ---------------------------------------------------------------------

    def tokenize(self, text: bytes, *, special: bool, parse_special: bool) -> list[int]:
        """Hash the pieces between single spaces; there are no special tokens."""
        del special, parse_special
        if len(text) > MAX_TEXT_BYTES:
            raise BackendError("too_large", f"{len(text)} bytes of text; {MAX_TEXT_BYTES} at most")
        pieces = [piece for piece in text.split(b" ") if piece]
        if len(pieces) > MAX_TOKENS:
            raise BackendError("too_large", f"{len(pieces)} tokens; {MAX_TOKENS} at most")
        return list(map(phash2_binary, pieces))

    def control_texts(self) -> list[bytes]:
        """Return none: there are none."""
        return []

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """Join the numbers by spaces.  Not the inverse of :meth:`tokenize`."""
        if len(tokens) > MAX_TOKENS:
            raise BackendError("too_large", f"{len(tokens)} tokens; {MAX_TOKENS} at most")
        return b" ".join(map(self.piece, tokens))

    def piece(self, token: int) -> bytes:
        """Return the number in decimal, without the space :meth:`detokenize` puts."""
        return self._marked.get(token) or b"%d" % token

    def written(self, token: int) -> bytes:
        """Return the same: there are no control tokens."""
        return self.piece(token)

    def is_eog(self, token: int) -> bool:
        """Return False: generation never ends by itself."""
        del token
        return False

    def device_memory(self) -> tuple[int, int]:
        """Return zeros: there is no device."""
        return 0, 0

    # -- generation -----------------------------------------------------------------

    def new_sampler(self, options: SamplerOptions) -> StubSampler:
        """Accept any options; a grammar is ignored."""
        del options
        return StubSampler(next(self._samplers) * _SPREAD % N_VOCAB, list(self._marked))

    def step(self, rows: Sequence[Row]) -> None:
        """Append the rows' tokens to their sequences, within cells and batch."""
        self._steps += 1
        self._outputs = []
        if self._hooks.step_delay_ms > 0:
            time.sleep(self._hooks.step_delay_ms / 1000)
        if self._steps == self._hooks.crash_at_step:
            os.abort()
        if self._steps == self._hooks.fail_at_step:
            raise StepFailed("decode_failed", f"fail_at_step is {self._steps}")
        total = check_rows(
            rows, n_batch=self.info.n_batch, n_seq_max=self.info.n_seq_max, length=self.length
        )
        try:
            words = [array(_WORD, row.tokens) for row in rows]
        except (OverflowError, TypeError):
            raise StepFailed("invalid_token", "a token does not fit 32 bits") from None
        if total > self._free():
            raise NoSlot("no_slot", f"{total} tokens for {self._free()} free cells")
        for row, new in zip(rows, words, strict=True):
            self._append(row.seq, new)
        self._outputs = [row.pos + len(row.tokens) if row.logits else -1 for row in rows]

    def sample(self, sampler: Sampler, row: int) -> int:
        """Return the sampler's token."""
        check_row_number(row, self._outputs)
        return _token_of(sampler)

    def sample_stored(self, sampler: Sampler, logits: memoryview) -> int:
        """Return the sampler's token, once the logits have the right size."""
        if logits.nbytes != LOGITS_BYTES:
            raise BackendError("badarg", f"logits of {logits.nbytes} bytes, not {LOGITS_BYTES}")
        return _token_of(sampler)

    def thinking_signature(self, seq: int) -> bytes | None:
        """Return 32 bytes of the sequence's number, as in the original."""
        return hashlib.sha256(b"stub-thinking-sig-%d" % seq).digest()

    def copy_logits(self, row: int, out: memoryview) -> None:
        """Write the row's new length, the stub's stand-in for logits."""
        struct.pack_into("<I", out, 0, check_row_number(row, self._outputs))

    def likeliest(self, row: int, at: int = -1) -> int:
        """Refuse: a request's token is its sampler's, and no other is likelier."""
        del at
        raise BackendError("not_supported", f"the stub has no logits, of row {row} or any other")

    def guess(self, row: Row) -> list[int]:
        """Refuse, as in the original."""
        raise BackendError(
            "not_supported", f"the stub has no logits after {len(row.tokens)} tokens"
        )

    def digest(self, row: int) -> bytes:
        """Return what stands for the row's logits."""
        return struct.pack("<I", check_row_number(row, self._outputs))

    def rehearse(self, row: Row) -> list[bytes]:
        """Refuse: there is nothing to be compared."""
        raise BackendError("not_supported", f"the stub computes nothing after {row.pos} tokens")

    # -- adapters -------------------------------------------------------------------

    def load_adapter(self, number: int, path: str, *, tried: bool) -> None:
        """Take any file: it changes nothing."""
        del path, tried
        self._adapters.add(number)

    def free_adapter(self, number: int) -> None:
        """Forget an adapter."""
        self._adapters.remove(number)

    def use_adapters(self, adapters: Sequence[tuple[int, float]]) -> None:
        """Check that they are loaded."""
        if unknown := {number for number, _ in adapters} - self._adapters:
            raise BackendError("not_found", f"no adapters {sorted(unknown)}")

    # -- memory ---------------------------------------------------------------------

    def clear(self, seq: int) -> None:
        """Remove every cell of a sequence."""
        self._sequence(seq)
        self._cells[seq] = array(_WORD)
        self._ids[seq] = []

    def truncate(self, seq: int, length: int) -> bool:
        """Cut a sequence; without a window this works at any length it has."""
        cells = self._sequence(seq)
        if not 0 <= length <= len(cells):
            return False
        if self._hooks.whole_rows and length not in (0, len(cells)):
            return False
        del cells[length:]
        del self._ids[seq][length:]
        return True

    def share(self, source: int, target: int, length: int) -> bool:
        """Share cells; without a window this works up to any length the source has."""
        cells = self._sequence(source)
        self.clear(target)
        if self._hooks.whole_rows or not 0 < length <= len(cells):
            return False
        self._cells[target] = cells[:length]
        self._ids[target] = self._ids[source][:length]
        return True

    def length(self, seq: int) -> int:
        """Return the sequence's number of tokens."""
        return len(self._sequence(seq))

    def packed_size(self, seq: int, start: int, end: int) -> int:
        """Return four bytes a token."""
        length = self.length(seq)
        if self._hooks.whole_rows and (start, end) != (0, length):
            return 0
        return TOKEN_BYTES * (end - start) if 0 <= start < end <= length else 0

    def pack(self, seq: int, start: int, end: int, out: memoryview) -> int:
        """Write the tokens as little-endian 32-bit numbers, as the original does."""
        cells = self._sequence(seq)
        size = self.packed_size(seq, start, end)
        if not size or out.nbytes < size:
            return 0
        struct.pack_into(f"<{end - start}I", out, 0, *cells[start:end])
        return size

    def unpack(self, seq: int, start: int, end: int, data: memoryview) -> None:
        """Append what :meth:`pack` wrote."""
        cells = self._sequence(seq)
        if len(cells) != start or not start < end:
            raise RestoreFailed(
                "restore_failed", f"part {start} to {end} on a sequence of {len(cells)} tokens"
            )
        if data.nbytes != TOKEN_BYTES * (end - start):
            raise RestoreFailed("restore_failed", f"{data.nbytes} bytes for {end - start} tokens")
        if end - start > self._free():
            raise RestoreFailed(
                "restore_failed", f"{end - start} tokens for {self._free()} free cells"
            )
        if self._hooks.whole_rows and start:
            raise RestoreFailed("restore_failed", "whole_rows is set: only whole sequences")
        self._append(seq, struct.unpack(f"<{end - start}I", data))

    # -- embeddings -------------------------------------------------------------------

    def embed(self, tokens: Sequence[int], crowded: Callable[[], bool]) -> list[float]:
        """Return 16 numbers out of a hash; no tokens at all have one, too."""
        del crowded
        if len(tokens) > MAX_TOKENS:
            raise BackendError("too_large", f"{len(tokens)} tokens; {MAX_TOKENS} at most")
        if tokens and not 0 <= min(tokens) <= max(tokens) < N_VOCAB:
            raise BackendError("invalid_token", f"the vocabulary has 0 to {N_VOCAB - 1}")
        return embed(tokens)

    def drop_embedder(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is held."""

    def _append(self, seq: int, tokens: Sequence[int]) -> None:
        self._cells[seq].extend(tokens)
        self._ids[seq].extend(islice(self._next_id, len(tokens)))

    def _free(self) -> int:
        """Count free cells; a shared one is one."""
        return self.info.n_ctx - len(set().union(*self._ids))

    def _sequence(self, seq: int) -> array[int]:
        if not 0 <= seq < len(self._cells):
            raise BackendError("badarg", f"there is no sequence {seq}")
        return self._cells[seq]


def embed(tokens: Sequence[int]) -> list[float]:
    """Return the stub's embedding: 16 numbers from 0 to 1 out of one hash."""
    bits = phash2_embed(tokens)
    return [((bits >> 4 * i) & 0xFFFF) / 65535.0 for i in range(N_EMBD)]


def render_chat(request: Mapping[str, Any]) -> bytes:
    """Render a chat request in the stub's own format.

    ``system: S``, then ``tools:`` with a line for each, then a ``role: content`` line
    for each message.  Content may be a list of blocks, of which texts count.

    :raises BackendError: ``badarg`` for a role or a system text that is not text,
        ``invalid_content`` for content that is neither text nor blocks.
    """
    lines: list[bytes] = []
    system = request.get("system")
    if _is_text(system) and system:
        lines.append(b"system: " + _bytes_of(system))
    tools = request.get("tools")
    if isinstance(tools, Sequence) and not _is_text(tools) and tools:
        lines.append(b"tools:")
        lines += [
            b"  - " + _bytes_of(tool["name"]) + b": " + _bytes_of(tool.get("description") or b"")
            for tool in tools
            if isinstance(tool, Mapping) and "name" in tool
        ]
    messages = request.get("messages") or ()
    if not isinstance(messages, Sequence) or _is_text(messages):
        raise BackendError("badarg", "messages must be a list")
    for message in messages:
        if isinstance(message, Mapping) and "role" in message and "content" in message:
            lines.append(_bytes_of(message["role"]) + b": " + _content(message["content"]))
    return b"".join(line + b"\n" for line in lines)


def _content(content: Any) -> bytes:
    if _is_text(content):
        return _bytes_of(content)
    if not isinstance(content, Sequence):
        raise BackendError("invalid_content", f"content of type {type(content).__name__}")
    return b" ".join(
        _bytes_of(block["text"])
        for block in content
        if isinstance(block, Mapping) and block.get("type") in ("text", b"text") and "text" in block
    )


def _marked(options: StubOptions) -> dict[int, bytes]:
    """Return the tokens every reply begins with, in order, with their texts.

    Numbers from the end of the vocabulary, where no hash of a word is to be expected.
    """
    texts: list[bytes] = []
    if markers := options.thinking:
        texts += [markers.start + b"1", b"2", markers.end]
    if markers := options.tool_calls:
        inner = [markers.payload_start, b"4", markers.payload_end]
        texts += [markers.start + b"3", *(inner if options.tool_payloads else [b"4"]), markers.end]
    return {N_VOCAB - 1 - at: text for at, text in enumerate(texts) if text}


def _token_of(sampler: Sampler) -> int:
    if not isinstance(sampler, StubSampler):
        raise BackendError("badarg", "the sampler is another backend's")
    return sampler.draw()


def _is_text(value: Any) -> TypeGuard[str | bytes | bytearray]:
    """Whether it is a binary in Erlang: an atom's name is no text."""
    return isinstance(value, (str, bytes, bytearray)) and not isinstance(value, Atom)


def _bytes_of(value: Any) -> bytes:
    if _is_text(value):
        return value.encode() if isinstance(value, str) else bytes(value)
    raise BackendError("badarg", f"text was expected, not {type(value).__name__}")
