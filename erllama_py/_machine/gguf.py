"""What a GGUF file says of itself: its values, its quantisation, and where its tensors are.

========================  =======================================================
part                      content
========================  =======================================================
magic, version            ``GGUF``, 2 or 3
tensor count, pair count  64 bits each
pairs                     key, type, value; numbers, texts, arrays of them
tensor records            name, dimensions, type, offset into the data
padding, data             the data starts at a multiple of ``general.alignment``
========================  =======================================================

The core reads headers, and the core must survive every file: whoever may load a model may
name any file.  So nothing is mapped (a file cut short while it is read would end the
process), nothing is allocated by what a length claims, and the number of pairs, texts and
records is bounded.  What cannot be read is a :class:`GgufError`; whether such a file is a
model is the engine's to say, in its own process.

The ``gguf`` package does not do here: it maps the file, builds an array for every field
(a second for a vocabulary of 262k), and brings NumPy into the core.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

__all__ = (
    "FLOAT32",
    "TEXT",
    "GgufError",
    "Header",
    "Layout",
    "Tensor",
    "Value",
    "bits_of",
    "quantisation",
    "read_header",
    "read_layout",
    "template_names",
)

FLOAT32, TEXT = 6, 8
"""Types of values."""

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_FILE_TYPE: Final = b"general.file_type"
_ALIGNMENT: Final = b"general.alignment"
_TEMPLATE: Final = b"tokenizer.chat_template"
_DEFAULT_ALIGNMENT: Final = 32

_WINDOW: Final = 1 << 20
_MAX_PAIRS: Final = 1 << 16
_MAX_TENSORS: Final = 1 << 16
_MAX_TEXTS: Final = 1 << 21
"""In all arrays of a file together: the largest vocabularies have some 300k tokens and as
many merges."""
_MAX_KEY_BYTES: Final = 1 << 16
_MAX_DIMENSIONS: Final = 8

_ARRAY = 9
_SCALARS: Final = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_INTEGERS: Final = frozenset((0, 1, 2, 3, 4, 5, 10, 11))

_GUESSED: Final = 1024
"""A flag llama.cpp adds to a file type that it worked out from the tensors."""

_FILE_TYPES: Final = (
    *("f32", "f16", "q4_0", "q4_1", "", "", "", "q8_0", "q5_0", "q5_1"),
    *("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k"),
    *("iq2_xxs", "iq2_xs", "q2_k_s", "iq3_xs", "iq3_xxs", "iq1_s", "iq4_nl", "iq3_s", "iq3_m"),
    *("iq2_s", "iq2_m", "iq4_xs", "iq1_m", "bf16", "", "", "", "tq1_0", "tq2_0"),
    *("mxfp4", "nvfp4", "q1_0"),
)
"""Position is llama.cpp's number; the names are those of cache keys.  What the original has
no code for (q2_k_s, tq1_0, tq2_0, mxfp4, nvfp4, q1_0) stand as they are: their code is 255."""


class GgufError(ValueError):
    """The header cannot be read; the message says what is wrong with it."""


class Layout(NamedTuple):
    """Where the parts of a file are.  Bytes from its beginning."""

    data: int
    """The first byte after header and padding."""
    tensors: tuple[tuple[int, int], ...]
    """(start, end) of each tensor, in the order of the file; padding counts as its end."""


class Value(NamedTuple):
    """A value of the header."""

    kind: int
    """As the file has it: :data:`TEXT`, :data:`FLOAT32`, ..."""
    value: Any
    """``bytes`` of a text, a number, or None for what is not looked at: arrays, long texts."""


class Tensor(NamedTuple):
    """A tensor's record."""

    shape: tuple[int, ...]
    """The fastest dimension first, as the engine has it."""
    kind: int
    offset: int
    """From the first byte of the data."""


class Header(NamedTuple):
    """Everything a file says of itself but for its arrays."""

    values: dict[bytes, Value]
    tensors: dict[bytes, Tensor]
    data: int
    """The first byte after header and padding."""


def quantisation(path: str | Path) -> tuple[str, int] | None:
    """Return a file's (quantisation, nominal bits); ``None`` where it does not say.

    Reads up to ``general.file_type`` and no further, which is near the beginning.

    :raises GgufError: not a GGUF file, or damaged.
    :raises OSError: it cannot be read.
    """
    if not Path(path).is_file():  # a pipe would never end
        raise GgufError("not a file")
    with Path(path).open("rb") as file:
        reader = _Reader(file)
        _, pairs = _begin(reader)
        number = next((value for key, value in _pairs(reader, pairs) if key == _FILE_TYPE), None)
    if number is None or not 0 <= (number := number & ~_GUESSED) < len(_FILE_TYPES):
        return None
    name = _FILE_TYPES[number]
    return (name, bits_of(name) or 16) if name else None


def template_names(path: str | Path) -> list[str]:
    """Return the names of a file's chat templates; ``default`` is its own.

    Empty where there are none, or the file cannot be read.
    """
    try:
        if not Path(path).is_file():  # a pipe would never end
            return []
        with Path(path).open("rb") as file:
            keys = list(read_header(file).values)
    except (OSError, GgufError):
        return []
    named = [key.removeprefix(_TEMPLATE + b".") for key in keys if key.startswith(_TEMPLATE + b".")]
    own = [b"default"] if _TEMPLATE in keys else []
    return [name.decode(errors="replace") for name in own + named]


def bits_of(name: str) -> int | None:
    """Return the nominal bits of a quantisation's name: 4 for ``q4_k_m``; None for others."""
    if name in ("mxfp4", "nvfp4"):
        return 4
    digits = name.lstrip("abfiqt")[:2].rstrip("_")
    return int(digits) if name and (name in _FILE_TYPES or name == "q8_k") else None


def read_layout(file: BinaryIO) -> Layout:
    """Read a header whole.

    :raises GgufError: not a GGUF file, damaged, or tensors beyond the end of the file.
    """
    file.seek(0)
    reader = _Reader(file)
    tensors, pairs = _begin(reader)
    alignment = _DEFAULT_ALIGNMENT
    for key, value in _pairs(reader, pairs):
        if key == _ALIGNMENT:
            alignment = value
    if not 0 < alignment <= _WINDOW:
        raise GgufError(f"the alignment cannot be {alignment}")
    offsets = sorted(_offsets(reader, tensors))
    data = -(-reader.position // alignment) * alignment
    if data + (offsets[-1] if offsets else 0) > reader.size:
        raise GgufError("the file ends before its tensors begin")
    starts = [data + offset for offset in offsets]
    return Layout(data, tuple(zip(starts, [*starts[1:], reader.size], strict=False)))


def read_header(file: BinaryIO) -> Header:
    """Read a header whole, with values and shapes.

    :raises GgufError: not a GGUF file, or damaged.
    """
    file.seek(0)
    reader = _Reader(file)
    count, pairs = _begin(reader)
    values: dict[bytes, Value] = {}
    for _ in range(pairs):
        key, kind = reader.text(), reader.number("I")
        values[key] = Value(kind, _value(reader, kind))
    tensors: dict[bytes, Tensor] = {}
    for _ in range(count):
        name, tensor = _tensor(reader)
        if name in tensors:
            raise GgufError(f"two tensors {name!r}")
        tensors[name] = tensor
    alignment = values.get(_ALIGNMENT, Value(4, _DEFAULT_ALIGNMENT))
    if alignment.kind not in _INTEGERS or not 0 < alignment.value <= _WINDOW:
        raise GgufError(f"the alignment cannot be {alignment.value}")
    return Header(values, tensors, -(-reader.position // alignment.value) * alignment.value)


# -- parts ------------------------------------------------------------------------------


class _Reader:
    """Takes a file from the front, a window at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = os.fstat(file.fileno()).st_size
        self._window = b""
        self._at = 0
        self._before = 0
        self._texts = _MAX_TEXTS

    @property
    def position(self) -> int:
        return self._before + self._at

    def take(self, size: int) -> bytes:
        """Return the next bytes; at most a window at once."""
        self._need(size)
        self._at += size
        return self._window[self._at - size : self._at]

    def number(self, form: str) -> int:
        value: int = struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0]
        return value

    def text(self, limit: int = _MAX_KEY_BYTES) -> bytes:
        size = self.number("Q")
        if size > limit:
            raise GgufError(f"a name of {size} bytes at {self.position}")
        return self.take(size)

    def skip(self, size: int) -> None:
        """Pass over bytes that nobody looks at, unread where they are many."""
        if size > self.size - self.position:
            raise GgufError(f"{size} bytes at {self.position} go beyond the end of the file")
        inside = len(self._window) - self._at
        if size <= inside:
            self._at += size
            return
        self._before, self._at = self.position + size, 0
        self._window = b""
        self._file.seek(self._before)

    def skip_texts(self, count: int) -> None:
        self._texts -= count
        if self._texts < 0:
            raise GgufError(f"{count} texts in an array at {self.position}")
        for _ in range(count):
            self.skip(self.number("Q"))

    def _need(self, size: int) -> None:
        if len(self._window) - self._at >= size:
            return
        if size > self.size - self.position:
            raise GgufError(f"the file ends in its header, at {self.size}")
        self._window = self._window[self._at :] + self._file.read(max(_WINDOW, size))
        self._before, self._at = self._before + self._at, 0
        if len(self._window) < size:
            raise GgufError("the file was cut short while it was read")


def _begin(reader: _Reader) -> tuple[int, int]:
    """Read magic, version and the two counts; return (tensors, pairs)."""
    if reader.size < 24 or reader.take(4) != _MAGIC:
        raise GgufError("not a GGUF file")
    version = reader.number("I")
    if version not in _VERSIONS:
        raise GgufError(f"GGUF version {version} is not known")
    tensors, pairs = reader.number("Q"), reader.number("Q")
    if tensors > _MAX_TENSORS or pairs > _MAX_PAIRS:
        raise GgufError(f"{tensors} tensors and {pairs} pairs in the header")
    return tensors, pairs


def _pairs(reader: _Reader, count: int) -> Iterator[tuple[bytes, int]]:
    """Pass over the pairs; yield those whose value is a whole number."""
    for _ in range(count):
        key, kind = reader.text(), reader.number("I")
        if kind in _INTEGERS:
            yield key, reader.number(_SCALARS[kind])
        elif kind in _SCALARS:
            reader.skip(struct.calcsize("<" + _SCALARS[kind]))
        else:
            _skip_value(reader, kind)


def _value(reader: _Reader, kind: int) -> Any:
    """Return a number or a text; pass over anything else."""
    if kind in _SCALARS:
        return reader.number(_SCALARS[kind])
    if kind == TEXT:
        size = reader.number("Q")
        if size <= _MAX_KEY_BYTES:
            return reader.take(size)
        reader.skip(size)
        return None
    _skip_value(reader, kind)
    return None


def _skip_value(reader: _Reader, kind: int) -> None:
    """Pass over a value that is no number."""
    if kind == TEXT:
        reader.skip(reader.number("Q"))
    elif kind == _ARRAY:
        _skip_array(reader)
    else:
        raise GgufError(f"a value of type {kind} at {reader.position}")


def _skip_array(reader: _Reader) -> None:
    kind, count = reader.number("I"), reader.number("Q")
    if kind == TEXT:
        reader.skip_texts(count)
    elif kind in _SCALARS:
        reader.skip(count * struct.calcsize("<" + _SCALARS[kind]))
    else:  # of arrays: the format allows it, the engine does not
        raise GgufError(f"an array of type {kind} at {reader.position}")


def _offsets(reader: _Reader, count: int) -> Iterator[int]:
    """Pass over the tensor records; yield the offsets."""
    for _ in range(count):
        yield _tensor(reader)[1].offset


def _tensor(reader: _Reader) -> tuple[bytes, Tensor]:
    name, dimensions = reader.text(), reader.number("I")
    if dimensions > _MAX_DIMENSIONS:
        raise GgufError(f"a tensor of {dimensions} dimensions at {reader.position}")
    shape = struct.unpack(f"<{dimensions}Q", reader.take(8 * dimensions))
    kind = reader.number("I")
    return name, Tensor(shape, kind, reader.number("Q"))
