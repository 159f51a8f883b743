"""Run the benchmarks, each in a process of its own.

``python -m benchmarks [NAME ...]`` runs the modules named, or every module of this
package whose name has no leading underscore, in alphabetical order.  Each has a
``main()`` and prints its own figures.  A process of its own means that none inherits
the threads, the caches or the heap of the one before.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def available() -> list[str]:
    """Name the benchmarks there are."""
    return sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))


def main(names: list[str]) -> int:
    """Run the benchmarks named, or all; return the exit status."""
    there = available()
    if unknown := [name for name in names if name not in there]:
        print(f"no benchmark {unknown[0]!r}: choose from {', '.join(there)}")
        return 2
    failed = []
    for name in names or there:
        print(f"\n=== {name} " + "=" * max(0, 74 - len(name)), flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}"]
        if subprocess.run(command, check=False, cwd=HERE.parent).returncode != 0:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
