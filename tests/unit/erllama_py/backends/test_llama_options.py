"""Load options as the engine gets them, from the caller's map on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import llama_cpp.llama_cpp as native
import pytest

from erllama_py._backends import llama_native
from erllama_py._backends.base import BackendError
from erllama_py.config import parse_load

MODEL_OPTS = [
    ({}, {"n_gpu_layers": -1, "main_gpu": 0, "split_mode": native.LLAMA_SPLIT_MODE_LAYER}),
    ({}, {"vocab_only": False, "tensor_split": []}),
    ({"n_gpu_layers": 7}, {"n_gpu_layers": 7}),
    ({"n_gpu_layers": 0}, {"n_gpu_layers": 0}),
    ({"main_gpu": 2}, {"main_gpu": 2}),
    ({"split_mode": "none"}, {"split_mode": native.LLAMA_SPLIT_MODE_NONE}),
    ({"split_mode": "row"}, {"split_mode": native.LLAMA_SPLIT_MODE_ROW}),
    ({"tensor_split": [3, 1.5]}, {"tensor_split": [3.0, 1.5, *[0.0] * 14]}),
    ({"vocab_only": True}, {"vocab_only": True}),
]

CONTEXT_OPTS = [
    ({}, {"n_ctx": 4096, "n_batch": 512, "n_ubatch": 512, "n_seq_max": 2, "kv_unified": True}),
    ({}, {"offload_kqv": True, "swa_full": False, "type_k": native.GGML_TYPE_F16}),
    ({}, {"flash_attn_type": native.LLAMA_FLASH_ATTN_TYPE_ENABLED}),
    ({"n_ctx": 300}, {"n_ctx": 300, "n_batch": 300, "n_ubatch": 300}),
    ({"n_batch": 64}, {"n_batch": 64, "n_ubatch": 64}),
    ({"n_ubatch": 32}, {"n_batch": 512, "n_ubatch": 32}),
    ({"n_ubatch": 0, "n_batch": 96}, {"n_batch": 96, "n_ubatch": 96}),
    ({"n_seq_max": 5}, {"n_seq_max": 6}),
    ({"n_threads": 3}, {"n_threads": 3}),
    ({"n_threads_batch": 5}, {"n_threads_batch": 5}),
    ({"offload_kqv": False}, {"offload_kqv": False}),
    ({"flash_attn": False}, {"flash_attn_type": native.LLAMA_FLASH_ATTN_TYPE_DISABLED}),
    ({"type_k": "q8_0"}, {"type_k": native.GGML_TYPE_Q8_0, "type_v": native.GGML_TYPE_F16}),
    ({"type_v": "f32"}, {"type_k": native.GGML_TYPE_F16, "type_v": native.GGML_TYPE_F32}),
    ({"swa_full": True}, {"swa_full": True}),
]


def named(cases: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[Any]:
    """Name each case for its option; a second one of it, or of none, by its number, too."""
    names: list[str] = []
    for number, (options, _) in enumerate(cases):
        name = "-".join(options) or "default"
        names.append(f"{name}-{number}" if name in names else name)
    return [pytest.param(*case, id=name) for case, name in zip(cases, names, strict=True)]


def held(params: Any, name: str) -> Any:
    value = getattr(params, name)
    if name == "tensor_split":
        return [value[at] for at in range(16)] if value else []
    return value


@pytest.mark.parametrize(("options", "expected"), named(MODEL_OPTS))
def test_options_of_the_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: Any, expected: dict[str, Any]
) -> None:
    seen: list[dict[str, Any]] = []
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(100))

    def load(_: bytes, params: Any) -> None:
        seen.append({name: held(params, name) for name in expected})

    monkeypatch.setattr(llama_native.native, "llama_model_load_from_file", load)
    config = parse_load({"model_path": str(path), "model_opts": options}).backend_config
    with pytest.raises(BackendError):
        llama_native.ModelHandle(str(path), config.model)
    assert seen == [expected]


def test_how_the_file_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``use_mmap`` and ``use_mlock`` are one setting of the engine."""
    modes: list[int] = []
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    monkeypatch.setattr(
        llama_native.native,
        "llama_model_load_from_file",
        lambda _, params: modes.append(params.load_mode),
    )
    for mmap in (True, False):
        for mlock in (False, True):
            options = {"use_mmap": mmap, "use_mlock": mlock}
            config = parse_load({"model_path": str(path), "model_opts": options}).backend_config
            with pytest.raises(BackendError):
                llama_native.ModelHandle(str(path), config.model)
    assert len(set(modes)) == len(modes) == 4


@pytest.mark.parametrize(("options", "expected"), named(CONTEXT_OPTS))
def test_options_of_the_context(
    monkeypatch: pytest.MonkeyPatch, options: Any, expected: dict[str, Any]
) -> None:
    seen: list[dict[str, Any]] = []

    def make(_: Any, params: Any) -> None:
        seen.append({name: held(params, name) for name in expected})

    monkeypatch.setattr(llama_native.native, "llama_init_from_model", make)
    monkeypatch.setattr(llama_native.native, "llama_model_n_ctx_train", lambda _: 8192)
    model: Any = SimpleNamespace(pointer=None, keeps_states=lambda: False)
    config = parse_load({"context_opts": options}).backend_config
    with pytest.raises(BackendError) as caught:
        llama_native.ContextHandle(model, config.context)
    assert caught.value.reason == "context_failed"
    assert seen[0] == expected
