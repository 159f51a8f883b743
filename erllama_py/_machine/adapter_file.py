"""LoRA adapter files: what identifies one, and whether a model can use it.

The engine believes much of what such a file says, and finds out by an assertion when it
first computes with it.  The process that this would end serves others, so here a file is
held against the model's own before the engine sees it.  In a GGUF an adapter has two
matrices for each weight ``W`` of the model that it changes, named ``W.lora_a`` and
``W.lora_b``; of a weight with so many inputs and outputs they are inputs x rank and
rank x outputs.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import stat
from io import BufferedReader
from typing import Final, NamedTuple

from erllama_py._machine.gguf import (
    FLOAT32,
    TEXT,
    GgufError,
    Header,
    Tensor,
    Value,
    read_header,
)

__all__ = ("AdapterFile", "NotThisModel", "check_lora", "examine", "stamp_of")

MAX_PATH_BYTES: Final = 4096

_A, _B, _NORM = b".lora_a", b".lora_b", b"_norm.weight"
_EMBEDDING = b"token_embd.weight"
_OUTPUT = b"output.weight"
_EXPERTS = b"_exps."

_TYPES: Final = {  # ggml type: (elements of a block, bytes of a block)
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    30: (1, 2),  # BF16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
}

_ARCHITECTURE = b"general.architecture"
_NONE = Value(TEXT, b"")


class NotThisModel(Exception):
    """The file is no adapter that the model can use; the message says why.

    :param reason: ``load_failed`` or ``not_supported``.
    """

    def __init__(self, message: str, reason: str = "load_failed") -> None:
        self.reason = reason
        super().__init__(message)


class AdapterFile(NamedTuple):
    """A file as it was when it was read."""

    path: str
    sha: bytes
    stamp: tuple[int, ...]
    """Tells a file that was changed since from one that was not."""


def examine(path: str) -> AdapterFile:
    """Read a file for its SHA-256.

    :raises OSError: it cannot be read.
    """
    with _opened(path) as file:
        stamp = _stamp(os.fstat(file.fileno()))
        return AdapterFile(path, hashlib.file_digest(file, "sha256").digest(), stamp)


def stamp_of(path: str) -> tuple[int, ...]:
    """Return a file's present stamp.

    :raises OSError: there is none.
    """
    return _stamp(os.stat(path))  # noqa: PTH116 - a path is text here, maybe with escapes


def check_lora(path: str, model_path: str) -> None:
    """Check that a file is a LoRA adapter of a model.

    :raises NotThisModel: it is not.
    :raises OSError: one of the two cannot be read.
    """
    with _opened(path) as file:
        try:
            adapter = read_header(file)
        except GgufError as error:
            raise NotThisModel(str(error)) from None
        size = os.fstat(file.fileno()).st_size
    _check_kind(adapter)
    pairs = _pairs(adapter)
    for name, (a, b) in pairs.items():
        _check_ranks(name, a, b)
    for name, tensor in adapter.tensors.items():
        _check_bytes(name, tensor, size - adapter.data)
    with _opened(model_path) as file:
        try:
            model = read_header(file)
        except GgufError:
            return  # the engine could load it, so it knows better
    _check_against(adapter, pairs, model)


def _opened(path: str) -> BufferedReader:
    """Open a file that is one: a pipe would be waited for, a device read for ever."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(fd, "rb")
    os.close(fd)
    code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
    raise OSError(code, os.strerror(code), path)


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _check_kind(adapter: Header) -> None:
    for key, wanted in ((b"general.type", b"adapter"), (b"adapter.type", b"lora")):
        if adapter.values.get(key) != Value(TEXT, wanted):
            raise NotThisModel(f"its {_say(key)} is not {_say(wanted)}: it is no LoRA adapter")
    if adapter.values.get(_ARCHITECTURE, _NONE).kind != TEXT:
        raise NotThisModel("its general.architecture is no text")
    if adapter.values.get(b"adapter.lora.alpha", Value(FLOAT32, 0)).kind != FLOAT32:
        raise NotThisModel("its adapter.lora.alpha is no 32-bit float")
    if b"adapter.alora.invocation_tokens" in adapter.values:
        # It is to work from certain tokens on only, and would be applied to all.
        raise NotThisModel("activated LoRA adapters (aLoRA) are not supported", "not_supported")


def _pairs(adapter: Header) -> dict[bytes, tuple[Tensor, Tensor]]:
    """Return the two matrices of each weight."""
    tensors = adapter.tensors
    for name in tensors:
        stem = name.removesuffix(_A).removesuffix(_B)
        if name.endswith(_NORM):
            continue  # the engine leaves them out
        if stem == name or _A in stem or _B in stem:
            raise NotThisModel(f"its tensor {_say(name)!r} is none of a LoRA")
        if not (stem + _A in tensors and stem + _B in tensors):
            raise NotThisModel(f"of {_say(stem)!r} it has only one of two matrices")
    pairs = {
        name.removesuffix(_A): (tensor, tensors[name.removesuffix(_A) + _B])
        for name, tensor in tensors.items()
        if name.endswith(_A)
    }
    if not pairs:
        raise NotThisModel("it has no LoRA tensors")
    return pairs


def _check_ranks(name: bytes, a: Tensor, b: Tensor) -> None:
    both = f"the matrices of {_say(name)!r}"
    flat = len(a.shape) < 2 or len(a.shape) != len(b.shape)
    # Of an embedding, whose rows are looked up, A is the other way round.
    if flat or a.shape[name != _EMBEDDING] != b.shape[0] or a.shape[2:] != b.shape[2:]:
        raise NotThisModel(f"{both} do not go together: {a.shape} and {b.shape}")
    if len(a.shape) > 2 and _EXPERTS not in name:
        raise NotThisModel(f"{both} have {len(a.shape)} dimensions, not 2")


def _check_bytes(name: bytes, tensor: Tensor, room: int) -> None:
    it = f"its tensor {_say(name)!r}"
    known = _TYPES.get(tensor.kind)
    if known is None:
        raise NotThisModel(f"{it} is of a type that no LoRA has ({tensor.kind})")
    block, nbytes = known
    elements = math.prod(tensor.shape)
    if not elements or not tensor.shape or tensor.shape[0] % block:
        raise NotThisModel(f"{it} has the impossible shape {tensor.shape}")
    if tensor.offset + elements // block * nbytes > room:
        raise NotThisModel(f"the file ends inside {it}: it is incomplete")


def _check_against(
    adapter: Header, pairs: dict[bytes, tuple[Tensor, Tensor]], model: Header
) -> None:
    ours = adapter.values.get(_ARCHITECTURE, _NONE).value
    theirs = model.values.get(_ARCHITECTURE, _NONE).value
    if ours != theirs:
        raise NotThisModel(f"it is for models of {_say(ours)}, and this one is of {_say(theirs)}")
    if model.values.get(b"split.count", Value(2, 0)).value:
        return  # most tensors are in other files
    for name, (a, b) in pairs.items():
        weight = model.tensors.get(name)
        if weight is None:
            raise NotThisModel(f"the model has no {_say(name)!r}: it is for another model")
        changed = (a.shape[0], b.shape[1])
        if name == _EMBEDDING:
            changed = (b.shape[1], a.shape[1])
            if _OUTPUT not in model.tensors:
                # The engine would multiply by it once more, the other way round, for the
                # output, and that is where it ends by an assertion.
                raise NotThisModel(
                    f"the model uses {_say(name)!r} for its output too, where the engine "
                    "cannot apply an adapter",
                    "not_supported",
                )
        if changed + a.shape[2:] != weight.shape:
            raise NotThisModel(
                f"{_say(name)!r} is {weight.shape} in the model, and {changed} in it: "
                "it is for another model"
            )


def _say(text: object) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else "?"
