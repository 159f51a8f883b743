"""What a model will take of memory, worked out from the header of its file.

Before a load nobody knows exactly: the engine decides on buffers when it has read the
file.  This is what its own sums come to, from above where they depend on what a header
does not say:

=========  ==========================================================================
part       is taken to be
=========  ==========================================================================
weights    the file, all its parts
context    K and V of every attention layer at every cell; a state for every sequence
           of a recurrent layer; a row of logits for each sequence.  Layers with a
           sliding window count in full, since files do not say which they are
compute    the mask, and the largest of what is computed for one small batch
=========  ==========================================================================

Once loaded, the engine's own figures take the place of these.  The context of embeddings,
which comes and goes (docs/design/model-process.md), is in neither.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, NamedTuple

from erllama_py._machine.fingerprint import parts_of
from erllama_py._machine.gguf import GgufError, Header, Value, read_header

__all__ = ("ContextShape", "Footprint", "estimate")

_ELEMENT_BYTES: Final = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_0": 18 / 32,
}
_DEFAULT_CELLS: Final = 4096
_CELL_STEP: Final = 256
"""The engine rounds a context up to so many cells."""
_LAYER: Final = re.compile(rb"blk\.(\d+)\.(.+)\.weight")
_FLOAT: Final = 4


class Footprint(NamedTuple):
    """Bytes of one loaded model, wherever they are: in memory, or on a device."""

    weights: int
    context: int
    compute: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


class ContextShape(NamedTuple):
    """What of a load's options decides on the size of its context."""

    n_ctx: int
    """0: the training length, at most 4096."""
    n_batch: int
    n_ubatch: int
    n_seq_max: int
    type_k: str
    type_v: str
    flash_attn: bool


def estimate(path: str | Path, shape: ContextShape) -> Footprint | None:
    """Return what a load of this file would take; None where its header cannot be read.

    Whether such a file is a model is the engine's to say, and it says it better.
    """
    try:
        files = parts_of(Path(os.path.realpath(path)))
        weights = sum(file.stat().st_size for file in files)
        headers = []
        for file in files:
            if not file.is_file():  # a pipe would never end
                return None
            with file.open("rb") as opened:
                headers.append(read_header(opened))
    except (OSError, GgufError):
        return None
    model = _Model(headers)
    cells = shape.n_ctx or min(model.number("context_length") or _DEFAULT_CELLS, _DEFAULT_CELLS)
    cells = -(-cells // _CELL_STEP) * _CELL_STEP
    batch = min(shape.n_ubatch or shape.n_batch, shape.n_batch, cells)
    sequences = shape.n_seq_max + 1
    k, v = (_ELEMENT_BYTES.get(kind, 2.0) for kind in (shape.type_k, shape.type_v))
    logits = sequences * model.vocabulary * _FLOAT
    layers = model.attention()
    context = sum(int(cells * (wide * k + deep * v)) for wide, deep in layers)
    context += sequences * model.state_bytes() + logits
    computed = max(4 * batch * _FLOAT * model.width(), 3 * logits)
    if layers:
        masks = 1 if shape.flash_attn else 1 + model.number("attention.head_count")
        computed += batch * cells * _FLOAT * masks
    return Footprint(weights, context, computed)


class _Model:
    """The headers of a model's files as one."""

    def __init__(self, headers: list[Header]) -> None:
        self._values: dict[bytes, Value] = headers[0].values if headers else {}
        self._shapes: dict[bytes, tuple[int, ...]] = {}
        self._layers: dict[int, set[bytes]] = {}
        for header in headers:
            for name, tensor in header.tensors.items():
                self._shapes[name] = tensor.shape
                if match := _LAYER.fullmatch(name):
                    self._layers.setdefault(int(match[1]), set()).add(match[2])
        named = self._values.get(b"general.architecture")
        self._family = named.value if named and isinstance(named.value, bytes) else b""

    def number(self, key: str) -> int:
        """Return a number of the model's family; 0 where there is none, or a list."""
        found = self._values.get(self._family + b"." + key.encode())
        return max(0, found.value) if found and type(found.value) is int else 0

    @property
    def vocabulary(self) -> int:
        """Tokens of the vocabulary."""
        return self._rows(b"token_embd.weight")

    def width(self) -> int:
        """Numbers of a position in the widest layer, with its input."""
        embedding = self.number("embedding_length")
        return embedding + (self.number("feed_forward_length") or 4 * embedding)

    def attention(self) -> list[tuple[int, int]]:
        """Return numbers of K and of V that a cell holds, by layers with attention."""
        heads = self.number("attention.head_count")
        shared = self.number("attention.head_count_kv") or heads
        each = self.number("embedding_length") // heads if heads else 0
        fused = (
            shared * (self.number("attention.key_length") or each),
            shared * (self.number("attention.value_length") or each),
        )
        found = []
        for layer, parts in self._layers.items():
            if b"attn_k" in parts:
                block = b"blk.%d." % layer
                wide = self._rows(block + b"attn_k.weight")
                found.append((wide, self._rows(block + b"attn_v.weight") or wide))
            elif any(part.startswith((b"attn_qkv", b"attn_kv")) for part in parts):
                found.append(fused)
        return found

    def state_bytes(self) -> int:
        """Bytes of one sequence's states in all recurrent layers."""
        inner, state = self.number("ssm.inner_size"), self.number("ssm.state_size")
        window = max(0, self.number("ssm.conv_kernel") - 1)
        mixed = inner + 2 * self.number("ssm.group_count") * state
        layers = sum(any(p.startswith(b"ssm_") for p in parts) for parts in self._layers.values())
        return layers * (window * mixed + inner * state) * _FLOAT

    def _rows(self, tensor: bytes) -> int:
        shape = self._shapes.get(tensor, ())
        return shape[1] if len(shape) > 1 else 0
