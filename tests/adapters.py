"""LoRA adapters for the test models, with random weights: the same bytes every time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

SMOLLM2_SHAPES = {
    "attn_q": (576, 576),
    "attn_k": (576, 192),
    "attn_v": (576, 192),
    "attn_output": (576, 576),
    "ffn_gate": (576, 1536),
    "ffn_up": (576, 1536),
    "ffn_down": (1536, 576),
}
"""Inputs and outputs of the weights in each of SmolLM2's 30 layers."""

LAYERS = range(30)
SCALE = 0.05
"""Of all layers enough for other words, and so little that a step of one token still
gives the bits of one of many: with few and large changes it does not, here."""

Shapes = Mapping[str, tuple[int, int]]


def lora_tensors(
    seed: int,
    scale: float = SCALE,
    rank: int = 4,
    layers: Iterable[int] = LAYERS,
    shapes: Shapes = SMOLLM2_SHAPES,
) -> dict[str, np.ndarray]:
    """Return both matrices of each weight; numpy has the fastest dimension last."""
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in layers:
        for part, (inputs, outputs) in shapes.items():
            name = f"blk.{layer}.{part}.weight"
            for suffix, shape in ((".lora_a", (rank, inputs)), (".lora_b", (outputs, rank))):
                values = random.standard_normal(shape) * scale
                tensors[name + suffix] = values.astype(np.float32)
    return tensors


def write_lora(
    target: Path,
    seed: int = 1,
    *,
    architecture: str = "llama",
    values: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    **options: Any,
) -> Path:
    """Write an adapter for SmolLM2, or for what ``tensors`` are of.

    :param values: of the header, instead of the usual ones; texts and floats.
    :param options: of :func:`lora_tensors`.
    """
    writer = gguf.GGUFWriter(target, architecture)
    usual = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 4.0}
    for key, value in {**usual, **(values or {})}.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_float32(key, value)
    for name, tensor in (tensors or lora_tensors(seed, **options)).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
