"""A process that forks children which are killed, so that no large process is forked.

A fork of a test's own process would copy whatever locks its threads hold at that moment.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class KillServer:
    """Runs a module that answers each line of JSON on its input with one.

    :param module: such as ``tests.container_kills``.
    """

    def __init__(self, module: str) -> None:
        command = [sys.executable, "-m", module]
        self.process = subprocess.Popen(
            command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def run(self, **trial: object) -> dict:
        """Run a trial."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(trial), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(10)
