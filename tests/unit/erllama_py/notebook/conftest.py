"""A bare IPython shell with the magics loaded, and what it displays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

from erllama_py import api, testing


class Shell:
    """Runs cells as a notebook does and collects what they display."""

    def __init__(self, ip: InteractiveShell) -> None:
        self.ip = ip
        self.shown: list[dict[str, Any]] = []
        """``data``, ``metadata``, ``transient`` and ``update`` of each display."""
        ip.display_pub.publish = self._publish

    def _publish(self, data: Any, metadata: Any = None, **options: Any) -> None:
        self.shown.append({"data": data, "metadata": metadata, **options})

    def run(self, code: str) -> list[str]:
        """Run a cell that must succeed; return the plain text of its displays."""
        self.shown.clear()
        result = self.ip.run_cell(code, store_history=False)
        result.raise_error()
        return [item["data"]["text/plain"] for item in self.shown]

    def error(self, code: str) -> Exception:
        """Run a cell that must raise; return what it raised."""
        self.shown.clear()
        result = self.ip.run_cell(code, store_history=False)
        assert isinstance(result.error_in_exec, Exception), "nothing was raised"
        return result.error_in_exec


@pytest.fixture
def bare() -> Iterator[InteractiveShell]:
    """A shell without the extension."""
    ip = InteractiveShell.instance()
    try:
        yield ip
    finally:
        ip.extension_manager.unload_extension("erllama_py")
        ip.history_manager.end_session()
        ip.history_manager.save_thread.stop()
        InteractiveShell.clear_instance()


@pytest.fixture
def shell(bare: InteractiveShell) -> Shell:
    """A shell with the extension loaded."""
    assert bare.extension_manager.load_extension("erllama_py") is None
    return Shell(bare)


@pytest.fixture
def stub() -> Iterator[api.Model]:
    """The stub model, loaded as ``stub``."""
    with testing.stub_model("stub") as model:
        yield model
