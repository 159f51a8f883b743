"""What is an adapter of SmolLM2, and what is not."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erllama_py._machine.adapter_file import NotThisModel, check_lora, examine, stamp_of
from tests.adapters import lora_tensors, write_lora
from tests.models import mamba_path, smollm2_path

QUERY = "blk.0.attn_q.weight"


def pair(name: str, a: tuple[int, ...], b: tuple[int, ...], dtype: Any = np.float32) -> dict:
    """Both matrices, in numpy's order: the fastest dimension last."""
    return {name + ".lora_a": np.ones(a, dtype), name + ".lora_b": np.ones(b, dtype)}


GOOD = pair(QUERY, (4, 576), (576, 4))


def test_an_adapter_of_the_model_is_one(tmp_path: Path) -> None:
    for number, tensors in enumerate(
        (
            lora_tensors(1),
            GOOD,
            pair(QUERY, (4, 576), (576, 4), np.float16),
            # Norms are left out by the engine.
            {**GOOD, "blk.0.attn_norm.weight": np.ones(576, np.float32)},
        )
    ):
        check_lora(str(write_lora(tmp_path / f"{number}.gguf", tensors=tensors)), smollm2_path())


def test_embeddings_can_be_changed_where_the_output_is_another_matrix(tmp_path: Path) -> None:
    tensors = pair("token_embd.weight", (320, 4), (64, 4))
    check_lora(
        str(write_lora(tmp_path / "a.gguf", architecture="mamba", tensors=tensors)), mamba_path()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"values": {"general.type": "model"}}, "general.type"),
        ({"values": {"general.type": 1.0}}, "general.type"),
        ({"values": {"adapter.type": "control_vector"}}, "adapter.type"),
        ({"values": {"adapter.lora.alpha": "4"}}, "alpha"),
        ({"values": {"adapter.alora.invocation_tokens": [1, 2]}}, "aLoRA"),
        ({"architecture": "gemma3"}, "for models of gemma3, and this one is of llama"),
        ({"tensors": {**GOOD, "blk.0.attn_q.bias": np.ones(576, np.float32)}}, "none of a LoRA"),
        ({"tensors": {QUERY + ".lora_a": GOOD[QUERY + ".lora_a"]}}, "only one of two"),
        ({"tensors": {"a_norm.weight": np.ones(4, np.float32)}}, "no LoRA tensors"),
        ({"tensors": pair("blk.30.attn_q.weight", (4, 576), (576, 4))}, "no 'blk.30.attn_q"),
        ({"tensors": pair(QUERY, (4, 512), (576, 4))}, "it is for another model"),
        ({"tensors": pair(QUERY, (4, 576), (512, 4))}, "it is for another model"),
        ({"tensors": pair(QUERY, (4, 576), (576, 8))}, "do not go together"),
        ({"tensors": pair(QUERY, (576,), (576,))}, "do not go together"),
        ({"tensors": pair(QUERY, (3, 4, 576), (3, 576, 4))}, "3 dimensions"),
        ({"tensors": pair(QUERY, (4, 576), (576, 4), np.int32)}, "of a type that no LoRA has"),
        ({"tensors": pair("token_embd.weight", (49152, 4), (576, 4))}, "for its output too"),
        ({"tensors": pair("token_embd.weight", (49152, 4), (576, 8))}, "do not go together"),
    ],
)
def test_what_the_engine_could_not_use_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    path = write_lora(tmp_path / "a.gguf", **{"tensors": GOOD, **options})
    with pytest.raises(NotThisModel, match=message):
        check_lora(str(path), smollm2_path())


def test_a_file_that_ends_early_is_refused_wherever_that_is(tmp_path: Path) -> None:
    data = write_lora(tmp_path / "a.gguf", layers=[0]).read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in (0, 3, 100, len(data) // 2, len(data) - 33):
        cut.write_bytes(data[:length])
        with pytest.raises(NotThisModel, match=r"not a GGUF|the file ends"):
            check_lora(str(cut), smollm2_path())


def test_a_model_is_no_adapter() -> None:
    with pytest.raises(NotThisModel, match="no LoRA adapter"):
        check_lora(smollm2_path(), smollm2_path())


def test_a_file_is_known_by_its_content_and_noticed_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"adapter-1")
    found = examine(str(path))
    assert found.sha == hashlib.sha256(b"adapter-1").digest()
    assert stamp_of(str(path)) == found.stamp
    (tmp_path / "b").write_bytes(b"adapter-1")
    (tmp_path / "b").replace(path)
    assert stamp_of(str(path)) != found.stamp
    assert examine(str(path)).sha == found.sha


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, error in (
        (tmp_path / "none", FileNotFoundError),
        (tmp_path, IsADirectoryError),
        (tmp_path / "pipe", OSError),
        (Path("/dev/zero"), OSError),
    ):
        with pytest.raises(error):
            examine(str(path))
