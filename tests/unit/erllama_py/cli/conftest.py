"""The command in this process, on a stub model and a home of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from erllama_py.cli import bench, loading, main
from erllama_py.config import EVERYDAY_POLICY

Erllama = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Conversations, settings and caches go below it."""
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def erllama(home: Path) -> Erllama:
    def run(*args: str, input: str | None = None) -> Result:  # noqa: A002 - click's word
        return CliRunner().invoke(main, list(args), input=input)

    return run


def load_the_stub(monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    """Have the stub loaded, whatever model is named."""
    fingerprint = os.urandom(32)

    def load_config(model: str, n_ctx: int = 0) -> dict[str, Any]:
        return {
            "backend": "erllama_model_stub",
            "in_process": True,
            "policy": EVERYDAY_POLICY,
            # Every load is the same model, as with a file; a new one for each test.
            "fingerprint": fingerprint,
            **more,
        }

    monkeypatch.setattr(loading, "load_config", load_config)
    monkeypatch.setattr(bench, "load_config", load_config)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever model is named, the stub is loaded."""
    load_the_stub(monkeypatch)
