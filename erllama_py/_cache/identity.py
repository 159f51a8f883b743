"""Who computed what is cached: rows of two engines, or of two models, never meet."""

from __future__ import annotations

import msgspec

__all__ = ("Identity",)


class Identity(msgspec.Struct, frozen=True):
    """Everything KV depends on besides tokens.  Equal identities share a namespace."""

    fingerprint: bytes
    """Effective: adapters mixed in.  32 bytes."""
    quant_type: str
    ctx_params_hash: bytes
    """32 bytes, the caller's."""
    engine: tuple[tuple[str, str], ...] = ()
    """What the engine says of itself, sorted; not part of keys, but of the namespace: a
    key from another engine's cache is a miss."""

    @property
    def fingerprint_mode(self) -> str:
        """How the model's file was looked at: what ``file``, a mode and a digest, says."""
        return dict(self.engine).get("file", "").partition(":")[0] or "safe"
