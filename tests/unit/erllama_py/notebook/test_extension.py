"""Loading, reloading and unloading the extension."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import threading
import warnings
from typing import Any

from IPython.core.interactiveshell import InteractiveShell


def state(ip: InteractiveShell) -> dict[str, Any]:
    """Everything of a shell that an extension can change."""
    return {
        "magics": {kind: dict(table) for kind, table in ip.magics_manager.magics.items()},
        "registry": dict(ip.magics_manager.registry),
        "configurables": list(ip.configurables),
        "matchers": list(ip.Completer.custom_matchers),
        "cleanup": list(ip.input_transformers_cleanup),
        "post": list(ip.input_transformers_post),
        "events": copy.copy(ip.events.callbacks),
        "names": set(ip.user_ns) - {"_", "__", "___", "_i", "_ii", "_iii"},
        "exceptions": ip.custom_exceptions,
        "warnings": list(warnings.filters),
        "threads": {thread.name for thread in threading.enumerate()},
    }


def test_unloading_leaves_the_shell_as_it_was(bare: InteractiveShell, stub: Any) -> None:
    before = state(bare)
    for _ in range(2):
        assert bare.extension_manager.load_extension("erllama_py") is None
        assert bare.extension_manager.load_extension("erllama_py") == "already loaded"
        bare.run_cell("%%erllama --max 2\nhello", store_history=False).raise_error()
        assert "_erllama" in bare.user_ns
        bare.extension_manager.unload_extension("erllama_py")
    assert state(bare) == before


def test_reloading_leaves_one_of_everything(bare: InteractiveShell) -> None:
    bare.extension_manager.load_extension("erllama_py")
    before = state(bare)
    bare.extension_manager.reload_extension("erllama_py")
    after = state(bare)
    assert len(after["matchers"]) == len(before["matchers"]) == 1
    assert len(after["cleanup"]) == len(before["cleanup"])
    assert len(after["configurables"]) == len(before["configurables"])


def test_a_model_survives_a_reload(shell: Any, stub: Any) -> None:
    shell.ip.extension_manager.reload_extension("erllama_py")
    assert "stub" in "".join(shell.run("%erllama status"))


def test_loading_the_extension_loads_nothing_heavy() -> None:
    code = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
ip = InteractiveShell.instance()
before = set(sys.modules)
ip.extension_manager.load_extension("erllama_py")
assert "erllama" in ip.magics_manager.magics["cell"]
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = json.loads(result.stdout)
    assert "erllama_py._notebook.magics" in loaded
    heavy = {"numpy", "ipywidgets", "anywidget", "llama_cpp", "jinja2", "erllama_py.api"}
    assert heavy & set(loaded) == set()
