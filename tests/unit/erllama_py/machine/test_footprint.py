"""What a header says of a model's size, against what the engine makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from erllama_py._backends import open_backend
from erllama_py._engine.budget import foreseen
from erllama_py._machine.footprint import ContextShape, estimate
from erllama_py.config import parse_load
from tests.models import gemma3_path, hybrid_path, mamba_path, smollm2_path

SMALL = {"n_ctx": 1000, "n_seq_max": 4, "n_ubatch": 128, "n_batch": 128, "type_k": "q8_0"}
MIB = 1 << 20
ROOM = {"full": (0.98, 1.15), "windowed": (0.9, 1.35)}
"""Estimate by actual.  Which layers have windows no file says, so all count in full."""


@pytest.mark.model
@pytest.mark.parametrize(
    ("path", "kind"),
    [(smollm2_path, "full"), (gemma3_path, "windowed"), (hybrid_path, ""), (mamba_path, "")],
)
@pytest.mark.parametrize("context", [{}, SMALL], ids=["default", "small"])
def test_the_estimate_is_near_what_the_engine_makes(path, kind, context) -> None:
    threads = {"n_threads": 1, "n_threads_batch": 2}
    config = parse_load({"model_path": path(), "context_opts": {**threads, **context}})
    backend = open_backend(config.backend_config, log=lambda *_: None)
    made = backend.info.buffers
    backend.close()
    guessed = foreseen(config)
    assert all(made)
    assert made[0] >= backend.info.model_size_bytes * 0.99
    if kind:
        low, high = ROOM[kind]
        assert low < guessed.total / sum(made) < high
    else:  # toys: what computes is all there is to them
        assert abs(guessed.total - sum(made)) < 8 * MIB


def shape(**changes: object) -> ContextShape:
    plain = ContextShape(0, 512, 512, 1, "f16", "f16", flash_attn=True)
    return plain._replace(**changes)


@pytest.mark.model
def test_cells_and_their_types_decide_on_the_context() -> None:
    path = smollm2_path()
    whole, half = estimate(path, shape(n_ctx=4096)), estimate(path, shape(n_ctx=2048))
    assert whole is not None
    assert half is not None
    logits = 2 * 49152 * 4
    assert whole.context - logits == 2 * (half.context - logits) == 90 * MIB
    eighths = estimate(path, shape(n_ctx=4096, type_k="q8_0", type_v="q8_0"))
    assert eighths is not None
    assert eighths.context - logits == (whole.context - logits) * 17 // 32
    slow = estimate(path, shape(flash_attn=False))
    assert slow is not None
    assert slow.compute > whole.compute


def test_what_has_no_header_is_left_to_the_engine(tmp_path: Path) -> None:
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(b"GGUF and no more")
    assert estimate(torn, shape()) is None
    assert estimate(tmp_path / "none.gguf", shape()) is None
    assert estimate(tmp_path, shape()) is None
