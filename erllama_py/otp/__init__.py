"""The original's modules besides ``erllama`` itself, with its function names.

``erllama_x:f(A)`` is ``erllama_py.otp.x.f(a)``.  Values are as in :mod:`erllama_py.api`:
``{ok, X}`` returns ``X``, ``{error, R}`` raises :class:`~erllama_py.errors.ErllamaError`.
"""

from __future__ import annotations

__all__ = ()
