"""The edge to llama.cpp: loading, and handles that free what they hold.

Everything here is written against one build (the pinned binding) and its C headers.
Parameters start from the library's own defaults, so that fields we do not know keep
their meaning, and NULL becomes an exception at once: llama.cpp itself answers a NULL
or an argument out of range with an assertion that ends the process.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import llama_cpp
import llama_cpp.llama_cpp as native
from llama_cpp._ggml import libggml as _ggml

from erllama_py._backends import native_log
from erllama_py._backends.base import GUESSED_TOKENS, BackendError, ContextOptions, ModelOptions

__all__ = (
    "ContextHandle",
    "ModelHandle",
    "device_memory",
    "engine_identity",
    "new_context",
)

MAX_SLOTS = 255
"""llama.cpp's 256 sequences, less the scratch sequence."""
DEFAULT_N_CTX = 4096
"""Most cells of a context whose size was not asked for; models trained for a million
tokens would otherwise reserve more memory than most machines have."""
MAX_PATH_BYTES = 4096
MAX_TENSOR_SPLIT = 16

_SPLIT_MODES = {
    "none": native.LLAMA_SPLIT_MODE_NONE,
    "layer": native.LLAMA_SPLIT_MODE_LAYER,
    "row": native.LLAMA_SPLIT_MODE_ROW,
}
_LOAD_MODES = {  # (use_mmap, use_mlock)
    (False, False): native.LLAMA_LOAD_MODE_NONE,
    (True, False): native.LLAMA_LOAD_MODE_MMAP,
    (False, True): native.LLAMA_LOAD_MODE_MLOCK,
    (True, True): native.LLAMA_LOAD_MODE_MMAP_MLOCK,
}
_KV_TYPES = {
    "f32": native.GGML_TYPE_F32,
    "f16": native.GGML_TYPE_F16,
    "bf16": 30,  # the binding's list lacks it
    "q4_0": native.GGML_TYPE_Q4_0,
    "q5_0": native.GGML_TYPE_Q5_0,
    "q5_1": native.GGML_TYPE_Q5_1,
    "q8_0": native.GGML_TYPE_Q8_0,
}
# `auto` is never passed on: the engine would decide by backend, and flash attention
# changes KV content at the same size, so what was resolved must be known.
_FLASH_ATTN = {
    "true": (native.LLAMA_FLASH_ATTN_TYPE_ENABLED,),
    "false": (native.LLAMA_FLASH_ATTN_TYPE_DISABLED,),
    "auto": (native.LLAMA_FLASH_ATTN_TYPE_ENABLED, native.LLAMA_FLASH_ATTN_TYPE_DISABLED),
}
_UINT31 = 2**31
_CELL_PADDING = 256
# What the CPU backend reads from the environment to choose other kernels.
_KERNEL_SWITCHES = ("GGML_CPU_DISABLE_FUSION", "GGML_CPU_TILED_MM", "GGML_CPU_TILED_MM_FORCE")

_CPU_DEVICE = 0  # enum ggml_backend_dev_type

_ggml.ggml_commit.restype = ctypes.c_char_p
_ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
_ggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
_ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
_ggml.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
_ggml.ggml_backend_dev_type.restype = ctypes.c_int
_ggml.ggml_backend_dev_name.argtypes = [ctypes.c_void_p]
_ggml.ggml_backend_dev_name.restype = ctypes.c_char_p
_ggml.ggml_backend_dev_memory.argtypes = [
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_size_t),
    ctypes.POINTER(ctypes.c_size_t),
]
_ggml.ggml_backend_dev_memory.restype = None


class _Started:
    """Whether the library was initialised.  It is never shut down: models may overlap."""

    done = False


def start() -> None:
    """Prepare the library.  Idempotent."""
    if not _Started.done:
        # On an assertion ggml would start gdb on this process to print a backtrace,
        # which takes seconds and tells nobody anything.
        os.environ.setdefault("GGML_NO_BACKTRACE", "1")
        native_log.install()
        native.llama_backend_init()
        _Started.done = True


_NAMED_TEMPLATES = b"tokenizer.chat_template."


class ModelHandle:
    """A loaded model.

    :raises BackendError: ``badarg``, ``load_failed``, ``malformed_gguf``, ``oom``.
    """

    def __init__(self, path: str, options: ModelOptions) -> None:
        params = native.llama_model_default_params()
        params.n_gpu_layers = _ranged("n_gpu_layers", max(-1, options.n_gpu_layers), -1)
        params.main_gpu = _ranged("main_gpu", options.main_gpu, 0)
        params.split_mode = _named("split_mode", options.split_mode, _SPLIT_MODES)
        params.load_mode = _LOAD_MODES[options.use_mmap, options.use_mlock]
        params.vocab_only = options.vocab_only
        split = _tensor_split(options.tensor_split)
        if split is not None:
            params.tensor_split = split
        raw = _checked_file(path)
        start()
        point = native_log.mark()
        self.pointer: Any = native.llama_model_load_from_file(raw, params)
        if not self.pointer:
            _refuse("load_failed", point, path)
        self.vocab: Any = native.llama_model_get_vocab(self.pointer)
        self.vocab_only = options.vocab_only

    def close(self) -> None:
        """Free the model.  Idempotent; its contexts must be closed first."""
        pointer, self.pointer = self.pointer, None
        if pointer:
            native.llama_model_free(pointer)

    def describe(self) -> str:
        """Return family, size and quantisation in one line, as the engine says it."""
        buffer = ctypes.create_string_buffer(256)
        native.llama_model_desc(self.pointer, buffer, len(buffer))
        return buffer.value.decode(errors="replace")

    def chat_template(self) -> str | None:
        """Return the default chat template of the file's metadata."""
        text = native.llama_model_chat_template(self.pointer, None)
        return text.decode(errors="replace") if text else None

    def chat_templates(self) -> dict[str, str]:
        """Return the file's further chat templates by name."""
        buffer = ctypes.create_string_buffer(256)
        found: dict[str, str] = {}
        for number in range(native.llama_model_meta_count(self.pointer)):
            size = native.llama_model_meta_key_by_index(self.pointer, number, buffer, len(buffer))
            if not 0 <= size < len(buffer) or not buffer.value.startswith(_NAMED_TEMPLATES):
                continue
            name = buffer.value.removeprefix(_NAMED_TEMPLATES)
            if text := native.llama_model_chat_template(self.pointer, name):
                found[name.decode(errors="replace")] = text.decode(errors="replace")
        return found

    def metadata(self, key: str) -> str:
        """Return a value of the file's metadata as text; empty without one, or a long one.

        :param key: ``%s`` in it stands for the architecture.
        """
        buffer = ctypes.create_string_buffer(256)
        if "%s" in key:
            key %= self.metadata("general.architecture")
        size = native.llama_model_meta_val_str(self.pointer, key.encode(), buffer, len(buffer))
        return buffer.value.decode(errors="replace") if 0 <= size < len(buffer) else ""

    def keeps_states(self) -> bool:
        """Return whether some layers keep one state for all tokens of a sequence."""
        return bool(
            native.llama_model_is_recurrent(self.pointer)
            or native.llama_model_is_hybrid(self.pointer)
        )

    def block_obstacle(self) -> str:
        """Return why this kind of model cannot be cut into blocks, or an empty text."""
        if self.vocab_only:
            return "only the vocabulary is loaded"
        if native.llama_model_is_recurrent(self.pointer):
            return "recurrent models keep one state for all tokens, not cells"
        if native.llama_model_is_hybrid(self.pointer):
            return "hybrid models keep part of their state for all tokens, not in cells"
        if native.llama_model_is_diffusion(self.pointer):
            return "diffusion models do not compute token after token"
        if native.llama_model_has_encoder(self.pointer):
            return "encoder models keep state outside of the cells"
        return ""


class ContextHandle:
    """A context: unified KV, and one sequence more than slots for the scratch sequence.

    There is no scratch sequence where there are no blocks to cut: each sequence of a
    recurrent or hybrid model has its states reserved, megabytes in real ones.

    :raises BackendError: ``badarg``, ``context_failed``, ``oom``.
    """

    def __init__(self, model: ModelHandle, options: ContextOptions) -> None:
        if not 1 <= options.n_seq_max <= MAX_SLOTS:
            raise BackendError(
                "badarg", f"n_seq_max is {options.n_seq_max}: 1 to {MAX_SLOTS} are possible"
            )
        n_ctx = _ranged("n_ctx", options.n_ctx or 0, 0) or min(
            native.llama_model_n_ctx_train(model.pointer) or DEFAULT_N_CTX, DEFAULT_N_CTX
        )
        n_batch = min(max(1, _ranged("n_batch", options.n_batch, 0)), n_ctx)
        params = native.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = n_batch
        params.n_ubatch = min(_ranged("n_ubatch", options.n_ubatch, 0) or n_batch, n_batch)
        sequences = options.n_seq_max + (0 if model.keeps_states() else 1)
        params.n_seq_max = sequences
        # One row of logits a sequence, and enough for guesses.  By default the engine
        # reserves room for a row of every token of a batch: 514 MiB with a vocabulary
        # of 262k.  Fewer than n_seq_max is an assertion.
        params.n_outputs_max = max(sequences, min(GUESSED_TOKENS, params.n_ubatch))
        params.n_threads = _ranged("n_threads", options.n_threads, 1)
        params.n_threads_batch = _ranged("n_threads_batch", options.n_threads_batch, 1)
        params.offload_kqv = options.offload_kqv
        params.type_k = _named("type_k", options.type_k, _KV_TYPES)
        params.type_v = _named("type_v", options.type_v, _KV_TYPES)
        params.kv_unified = True
        params.swa_full = options.swa_full
        params.no_perf = True
        flash_attn = _named("flash_attn", options.flash_attn, _FLASH_ATTN)
        self.pointer: Any
        self.pointer, self.flash_attn = new_context(model, params, flash_attn)
        self.memory: Any = native.llama_get_memory(self.pointer)
        self.n_ctx: int = native.llama_n_ctx(self.pointer)
        self.n_batch: int = native.llama_n_batch(self.pointer)
        self.n_ubatch: int = native.llama_n_ubatch(self.pointer)

    def close(self) -> None:
        """Free the context.  Idempotent."""
        pointer, self.pointer, self.memory = self.pointer, None, None
        if pointer:
            native.llama_free(pointer)


def new_context(model: ModelHandle, params: Any, flash_attn: Sequence[int]) -> tuple[Any, int]:
    """Make a context; return it and the first kind of flash attention that works.

    :raises BackendError: ``context_failed``, ``oom``.
    """
    point = native_log.mark()
    for kind in flash_attn:
        params.flash_attn_type = kind
        pointer: Any = native.llama_init_from_model(model.pointer, params)
        if pointer:
            break
    else:
        _refuse("context_failed", point, f"n_ctx {params.n_ctx}, n_seq_max {params.n_seq_max}")
    return pointer, kind


def engine_identity(
    model: ModelHandle, context: ContextHandle | None, options: ContextOptions
) -> dict[str, str]:
    """Return what changes KV content besides the model file.

    :param context: made with ``options``; ``None`` where only the vocabulary is loaded.
    """
    flash_attn = context is not None and bool(context.flash_attn)
    n_ctx = context.n_ctx if context else 0
    trained = native.llama_model_n_ctx_train(model.pointer)
    switches = [f"{name}={os.environ[name]}" for name in _KERNEL_SWITCHES if name in os.environ]
    return {
        "engine": f"llama-cpp-python {llama_cpp.__version__}",
        "ggml": _ggml.ggml_commit().decode(),
        "cpu": native.llama_print_system_info().decode().strip(" |"),
        "devices": " ".join(name for name, _ in _devices()) or "none",
        "flash_attn": "on" if flash_attn else "off",
        "type_k": options.type_k,
        "type_v": options.type_v,
        "rope": "model",
        "yarn": "model",
        "beyond_training": "yes" if trained and n_ctx > trained else "no",
        "kv_rotation": os.environ.get("LLAMA_ATTN_ROT_DISABLE", "default"),
        "kernels": " ".join(switches) or "default",
        "window_cells": _window_cells(model, context, options),
    }


def _window_cells(
    model: ModelHandle, context: ContextHandle | None, options: ContextOptions
) -> str:
    """Return the cells of the sliding window's half of the cache, where they are reused.

    Once they are, a sequence's cells stand in another order, attention adds up in that
    order, and what is computed from there on has other bits.  So this is the one way in
    which the number of slots, n_ubatch and swa_full change KV content.  ``all``: nothing
    is reused; ``none``: there is no window.
    """
    window = native.llama_model_n_swa(model.pointer)
    if not window or context is None:
        return "none"
    cells = window * native.llama_n_seq_max(context.pointer) + context.n_ubatch
    cells += -cells % _CELL_PADDING
    return "all" if options.swa_full or cells >= context.n_ctx else str(cells)


def device_memory() -> tuple[int, int]:
    """Return (total, free) bytes over the non-CPU devices.  Any thread."""
    total = free = 0
    for _, device in _devices():
        free_here, total_here = ctypes.c_size_t(), ctypes.c_size_t()
        _ggml.ggml_backend_dev_memory(device, ctypes.byref(free_here), ctypes.byref(total_here))
        total += total_here.value
        free += free_here.value
    return total, free


def _devices() -> list[tuple[str, int]]:
    start()
    devices = [_ggml.ggml_backend_dev_get(i) for i in range(int(_ggml.ggml_backend_dev_count()))]
    return [
        (_ggml.ggml_backend_dev_name(device).decode(), device)
        for device in devices
        if _ggml.ggml_backend_dev_type(device) != _CPU_DEVICE
    ]


def _checked_file(path: str) -> bytes:
    """Return the path's bytes once the file is there, readable and begins as a GGUF."""
    raw = os.fsencode(path)
    if not raw or len(raw) > MAX_PATH_BYTES or b"\0" in raw:
        raise BackendError("badarg", f"model_path must have 1 to {MAX_PATH_BYTES} bytes and no NUL")
    try:
        with Path(path).open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise BackendError("load_failed", f"{path}: {error.strerror}") from None
    if magic != b"GGUF":
        raise BackendError("load_failed", f"{path}: not a GGUF file")
    return raw


def _tensor_split(shares: tuple[float, ...]) -> Any:
    if not shares:
        return None
    if len(shares) > MAX_TENSOR_SPLIT:
        raise BackendError(
            "badarg", f"tensor_split has {len(shares)} entries; at most {MAX_TENSOR_SPLIT}"
        )
    # The engine reads as many entries as it could have devices.
    room = max(MAX_TENSOR_SPLIT, native.LLAMA_MAX_DEVICES)
    return (ctypes.c_float * room)(*shares)


def _named(what: str, value: str, table: dict[str, Any]) -> Any:
    if value not in table:
        raise BackendError("badarg", f"{what} is {value!r}: one of {', '.join(table)}")
    return table[value]


def _ranged(what: str, value: int, low: int) -> int:
    if not low <= value < _UINT31:
        raise BackendError("badarg", f"{what} is {value}: {low} to 2^31 - 1 are possible")
    return value


def _refuse(reason: str, point: int, what: str) -> NoReturn:
    lines = native_log.errors_since(point)
    text = "; ".join(lines)
    if "assert" in text.lower() and reason == "load_failed":
        reason = "malformed_gguf"
    elif "allocate" in text or "insufficient memory" in text:
        reason = "oom"
    raise BackendError(reason, f"{what}: {text or 'no reason given by the engine'}")
