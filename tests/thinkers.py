"""A model that thinks and calls tools where a grammar makes it: toys with a real tokenizer.

One layer of random weights over SmolLM2's vocabulary.  What it says means nothing, so a
grammar says what it may say.  ``plain``: the markers are text of several tokens.
``control``: each is a control token as well, without a text of its own, and likely.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.ggufs import ARRAY, F32, TEXT, gguf, number, pair, text
from tests.models import _cached, _written, smollm2_path

EDITION = 1
WIDTH, HEADS, N_CTX = 32, 2, 2048
MARKERS = (b"<think>", b"</think>", b"<tool_call>", b"</tool_call>")
TEMPLATE = (
    b"{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    b"assistant: {# <think></think> <tool_call></tool_call> #}"
)
_CONTROL = 3
_LIKELY = 20
"""How much larger than others the embeddings of control tokens are: where they point with
the state rather than against it, nothing is likelier."""
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def thinker_path(kind: str) -> str:
    """Return the file of the ``plain`` or the ``control`` toy."""
    target = _cached(f"toy-thinker-{kind}-{EDITION}.gguf")
    return str(target if target.exists() else _written(target, lambda at: _write(at, kind)))


def _write(target: Path, kind: str) -> None:
    added = MARKERS if kind == "control" else ()
    pairs = [
        pair(b"general.architecture", TEXT, text(b"llama")),
        number(b"llama.context_length", N_CTX),
        number(b"llama.embedding_length", WIDTH),
        number(b"llama.block_count", 1),
        number(b"llama.attention.head_count", HEADS),
        number(b"llama.feed_forward_length", WIDTH),
        number(b"llama.rope.dimension_count", WIDTH // HEADS),
        pair(b"llama.attention.layer_norm_rms_epsilon", F32, struct.pack("<f", 1e-5)),
        pair(b"tokenizer.chat_template", TEXT, text(TEMPLATE)),
    ]
    n_vocab = 0
    more = {
        b"tokenizer.ggml.tokens": [text(marker) for marker in added],
        b"tokenizer.ggml.token_type": [struct.pack("<i", _CONTROL)] * len(added),
    }
    for key, form, value in _tokenizer():
        whole = _longer(value, more[key]) if key in more else value
        pairs.append(pair(key, form, whole))
        if key == b"tokenizer.ggml.tokens":
            (n_vocab,) = struct.unpack_from("<Q", whole, 4)
    weights = _weights(n_vocab, len(added))
    shapes = {name: (WIDTH, len(data) // 4 // WIDTH) for name, data in weights.items()}
    shapes |= {name: (WIDTH,) for name in weights if b"norm" in name}
    target.write_bytes(gguf(pairs, weights, shapes))


def _tokenizer() -> Iterator[tuple[bytes, int, bytes]]:
    """Yield what SmolLM2's file says of its tokenizer: key, type, value as written."""
    with (
        Path(smollm2_path()).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        (count,) = struct.unpack_from("<Q", data, 16)
        at = 24
        for _ in range(count):
            (size,) = struct.unpack_from("<Q", data, at)
            key = data[at + 8 : at + 8 + size]
            (form,) = struct.unpack_from("<I", data, at + 8 + size)
            begin = at + 12 + size
            at = _end(data, begin, form)
            if key.startswith(b"tokenizer.") and key != b"tokenizer.chat_template":
                yield key, form, data[begin:at]


def _end(data: mmap.mmap, at: int, form: int) -> int:
    """Return where a value ends."""
    if form == TEXT:
        return at + 8 + int(struct.unpack_from("<Q", data, at)[0])
    if form != ARRAY:
        return at + _SIZES[form]
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner != TEXT:
        return at + int(count) * _SIZES[inner]
    for _ in range(count):
        at += 8 + int(struct.unpack_from("<Q", data, at)[0])
    return at


def _longer(value: bytes, items: list[bytes]) -> bytes:
    """Return an array with more items."""
    inner, count = struct.unpack_from("<IQ", value)
    return struct.pack("<IQ", inner, count + len(items)) + value[12:] + b"".join(items)


def _weights(n_vocab: int, likely: int) -> dict[bytes, bytes]:
    random = np.random.default_rng(7)
    embeddings = random.standard_normal((n_vocab, WIDTH)).astype(np.float32)
    embeddings[n_vocab - likely :] *= _LIKELY
    one = np.ones(WIDTH, np.float32).tobytes()
    weights = {b"token_embd.weight": embeddings.tobytes(), b"output_norm.weight": one}
    for part in (b"attn_norm", b"ffn_norm"):
        weights[b"blk.0.%s.weight" % part] = one
    for part in (b"attn_q", b"attn_k", b"attn_v", b"attn_output", b"ffn_gate", b"ffn_up"):
        weights[b"blk.0.%s.weight" % part] = _noise(random)
    weights[b"blk.0.ffn_down.weight"] = _noise(random)
    return weights


def _noise(random: np.random.Generator) -> bytes:
    return (random.standard_normal((WIDTH, WIDTH)) * WIDTH**-0.5).astype(np.float32).tobytes()
