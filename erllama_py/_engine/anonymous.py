"""Anonymous memory with a descriptor, to hand over what no frame should carry."""

from __future__ import annotations

import os
import sys
import tempfile

__all__ = ("anonymous_file",)


def anonymous_file(name: str) -> int:
    """Return the descriptor of a new, empty file that exists in memory only.

    Elsewhere than Linux it is an unlinked temporary file.

    :raises OSError: there is no memory, or no descriptor.
    """
    if sys.platform == "linux":
        return os.memfd_create(name, os.MFD_CLOEXEC)
    fd, path = tempfile.mkstemp(prefix=name)
    os.unlink(path)  # noqa: PTH108 - mkstemp gave a str
    return fd
