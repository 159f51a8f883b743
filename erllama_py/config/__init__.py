"""Load and request options: from the caller's maps to checked structures.

Options are dicts keyed by the atoms' names; values may be ``str`` or ``bytes`` where
Erlang has binaries.  ``undefined`` and ``nil`` count as absent.  Every refusal names
the key and the value.
"""

from __future__ import annotations

from erllama_py.config._load import (
    EVERYDAY_POLICY,
    LoadConfig,
    environment,
    parse_load,
    policy_settings,
)
from erllama_py.config._lora import Lora, adapter_path, parse_loras
from erllama_py.config._request import (
    DEFAULT_INFER_TOKENS,
    GenerateOptions,
    RequestOptions,
    parse_request,
    parse_session,
)
from erllama_py.config._speculate import MAX_DRAFT, Speculate
from erllama_py.config._values import bytes_of, invalid

__all__ = (
    "DEFAULT_INFER_TOKENS",
    "EVERYDAY_POLICY",
    "MAX_DRAFT",
    "GenerateOptions",
    "LoadConfig",
    "Lora",
    "RequestOptions",
    "Speculate",
    "adapter_path",
    "bytes_of",
    "environment",
    "invalid",
    "parse_load",
    "parse_loras",
    "parse_request",
    "parse_session",
    "policy_settings",
)
