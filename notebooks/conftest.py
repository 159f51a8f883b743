"""Kernels of the tests of notebooks show replies when they are whole.

nbval compares the first display of an output and ignores its updates; the kernels it
starts inherit this environment.
"""

from __future__ import annotations

import os

os.environ["ERLLAMA_RENDER"] = "final"
