"""Calls of the original's other modules, and what they are given."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from erl_bridge import CallContext
from erl_bridge.etf import Atom, Pid
from erl_bridge.service import ErllamaNode

OK, ERROR, MISS, UNDEFINED = map(Atom, ("ok", "error", "miss", "undefined"))
DISK, RAM = Atom("disk"), Atom("ram")
MODEL = b"others"
KEY = b"k" * 32
HEADER = bytes(48)
META: dict[Any, Any] = {
    Atom("save_reason"): Atom("finish"),
    Atom("quant_bits"): 16,
    Atom("fingerprint"): b"\x07" * 32,
    Atom("fingerprint_mode"): Atom("safe"),
    Atom("quant_type"): Atom("f16"),
    Atom("ctx_params_hash"): b"\x08" * 32,
    Atom("tokens"): [1, 2, 3],
    Atom("context_size"): 4096,
}
TOKENS = bytes.fromhex("010000000200000003000000")


def call(node: ErllamaNode, what: str, *args: Any, caller: Pid | None = None) -> Any:
    """Apply a function as a peer would; ``what`` is its module and name, without erllama."""
    module, _, function = what.partition(":")
    pid = caller or Pid(Atom("peer@nowhere.invalid"), 9, 0, 1)
    context = CallContext(node.node, "peer@nowhere.invalid", pid, pid)

    async def run() -> Any:
        value = node._apply(context, f"erllama_{module}", function, list(args))
        return await value if inspect.isawaitable(value) else value

    return asyncio.run(run())
