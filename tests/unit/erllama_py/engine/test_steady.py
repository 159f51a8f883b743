"""Memory has a size: on small quotas a thousand requests more weigh nothing more.

In a process of its own, where nothing else comes and goes.  Both quotas are full long
before the first sample, and what is stored is evicted from memory and from disk.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.models import mamba_path
from tests.steady import Load

KB, MB = 1 << 10, 1 << 20


def stub(directory: Path) -> Load:
    """Blocks of a quarter of a kilobyte, which take a page each on disk."""
    config = {"backend": "stub", "stub_opts": {"step_delay_ms": 0.5}}
    return Load(
        config, 256 * KB, 64 * KB, 8 * MB, str(directory), requests=3000, settled=2000, length=150
    )


def recurrent(directory: Path) -> Load:
    """Rows of 20 KB, each with the state of a real model process."""
    context = {"n_ctx": 512, "n_threads": 1, "n_threads_batch": 1}
    config = {"model_path": mamba_path(), "context_opts": context}
    return Load(
        config, 4 * MB, MB, 16 * MB, str(directory), requests=2000, settled=1000, length=150
    )


@pytest.mark.parametrize(
    "load",
    [
        pytest.param(stub, id="blocks"),
        pytest.param(recurrent, id="whole-rows", marks=pytest.mark.model),
    ],
)
def test_memory_is_flat_over_a_thousand_requests_and_quotas_hold(load: Any, tmp_path: Path) -> None:
    asked = load(tmp_path)
    run = subprocess.run(
        [sys.executable, "-m", "tests.steady", json.dumps(asked._asdict())],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(run.stdout)
    assert abs(found["growth"]["core"]) < 0.02, found["weights"]
    assert abs(found["growth"]["model"]) < 0.02, found["weights"]
    highest, counters = found["highest"], found["counters"]
    assert asked.ram * 0.8 < highest["bytes_ram"] <= asked.ram
    assert highest["bytes_disk"] <= asked.disk
    assert asked.disk * 0.9 < highest["files"] <= asked.disk
    # Nothing is flat for want of use.
    assert counters["evictions"] > 0
    assert counters["hits_exact"] > 100
    assert counters["saves_finish"] > 500
    assert counters["corrupt_files"] == 0
    assert found["flushed"]
