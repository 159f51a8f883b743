"""A real kernel, spoken to as a front end does."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import psutil
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

TIMEOUT_S = 120


class Message(NamedTuple):
    """One message of a cell, and when it came."""

    at: float
    kind: str
    content: dict[str, Any]

    @property
    def plain(self) -> str:
        """Its text, in whatever form."""
        if self.kind == "error":
            return "\n".join(self.content["traceback"])
        return self.content.get("text") or self.content.get("data", {}).get("text/plain", "")


class Cell:
    """A cell under way: iterating gives its messages until it is idle."""

    def __init__(self, kernel: Kernel, number: str) -> None:
        self._kernel = kernel
        self.number = number
        self.messages: list[Message] = []

    def __iter__(self) -> Iterator[Message]:
        while True:
            raw = self._kernel.client.get_iopub_msg(timeout=TIMEOUT_S)
            if raw["parent_header"].get("msg_id") != self.number:
                continue
            message = Message(time.monotonic(), raw["msg_type"], raw["content"])
            self.messages.append(message)
            yield message
            if message.kind == "status" and message.content["execution_state"] == "idle":
                return

    def finish(self) -> Cell:
        """Take all its messages."""
        for _ in self:
            pass
        return self

    @property
    def status(self) -> str:
        """``ok``, ``error`` or ``aborted``."""
        return self._kernel.reply(self.number)["status"]

    @property
    def outputs(self) -> list[Message]:
        """What a front end would show, every update by itself."""
        kinds = ("stream", "display_data", "update_display_data", "execute_result", "error")
        return [message for message in self.messages if message.kind in kinds]

    @property
    def text(self) -> str:
        """All outputs, in plain text."""
        return "\n".join(message.plain for message in self.outputs)


class Kernel:
    """A started kernel."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager = manager
        self.client = client
        self._replies: dict[str, dict[str, Any]] = {}

    def start(self, code: str) -> Cell:
        """Send a cell."""
        return Cell(self, self.client.execute(code))

    def run(self, code: str) -> Cell:
        """Run a cell that must succeed."""
        cell = self.start(code).finish()
        assert cell.status == "ok", cell.text
        return cell

    def fail(self, code: str) -> Cell:
        """Run a cell that must fail."""
        cell = self.start(code).finish()
        assert cell.status == "error", cell.text
        return cell

    def reply(self, number: str) -> dict[str, Any]:
        """Return the answer to an execute request."""
        while number not in self._replies:
            raw = self.client.get_shell_msg(timeout=TIMEOUT_S)
            self._replies[raw["parent_header"]["msg_id"]] = raw["content"]
        return self._replies[number]

    def interrupt(self) -> None:
        """Do what the stop button does."""
        self.manager.interrupt_kernel()

    @property
    def pid(self) -> int:
        """The process id of the kernel."""
        return int(self.manager.provisioner.pid)  # type: ignore[union-attr]

    def models(self) -> list[psutil.Process]:
        """Return the model processes it started."""
        children = psutil.Process(self.pid).children(recursive=True)
        return [child for child in children if "erllama_py._engine.worker" in child.cmdline()]


@contextlib.contextmanager
def kernel(**variables: str) -> Iterator[Kernel]:
    """Start a kernel with the extension loaded."""
    env = os.environ | variables
    manager = KernelManager(kernel_name="python3", transport="ipc")
    manager.start_kernel(env=env)
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=TIMEOUT_S)
        started = Kernel(manager, client)
        started.run("%load_ext erllama_py")
        yield started
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def gone(processes: list[psutil.Process], seconds: float) -> bool:
    """Whether all of these end within some seconds."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not alive
