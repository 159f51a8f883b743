"""The load config (docs/reference/load-config.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from erllama_py._backends.base import (
    STUB_THINKING,
    STUB_TOOL_CALLS,
    BackendConfig,
    ContextOptions,
    ModelOptions,
    StubOptions,
)
from erllama_py._cache.policy import Policy
from erllama_py._machine.catalogue import resolve_model
from erllama_py._machine.cpus import default_threads
from erllama_py._machine.environment import Environment, Setting
from erllama_py._machine.fingerprint import MODES
from erllama_py._machine.gguf import GgufError, bits_of, quantisation, template_names
from erllama_py._templates.choice import is_template
from erllama_py._templates.families import FAMILIES
from erllama_py.config._speculate import Speculate, parse_speculate
from erllama_py.config._values import (
    badarg,
    bytes_of,
    choice,
    digest,
    enum,
    flag,
    integer,
    invalid,
    is_text,
    nested,
    options_of,
    text,
)
from erllama_py.errors import ErllamaError
from erllama_py.types import Atom, Markers

__all__ = ("EVERYDAY_POLICY", "LoadConfig", "environment", "parse_load", "policy_settings")

EVERYDAY_POLICY: Final = {
    "min_tokens": 16,
    "cold_min_tokens": 16,
    "boundary_trim_tokens": 0,
    "boundary_align_tokens": 1,
}
"""Small numbers: a person's prompts are short, and a saved block costs a fraction of a
millisecond.  The original's defaults (512 and 2048 tokens) stay at the API."""

_MAX_TEMPLATE: Final = 1 << 20

_MAX_MARKER_BYTES: Final = 1024

_MAX_SHARE: Final = 1e30
"""Of a device in ``tensor_split``: the engine computes with 32-bit floats."""

_BACKENDS: Final = {
    "erllama_model_llama": "llama",
    "erllama_model_stub": "stub",
    "llama": "llama",
    "stub": "stub",
}


class LoadConfig(msgspec.Struct, frozen=True):
    """A checked load config."""

    backend_config: BackendConfig
    policy: Policy
    fingerprint: bytes | None
    """What the caller gave; ``None``: computed from the file."""
    fingerprint_mode: str | None
    """What the caller or the environment named; ``None``: what is quick enough."""
    quant_type: str
    quant_bits: int
    ctx_params_hash: bytes
    context_size: int
    tier: str
    tier_srv: str
    """Name of the file tier's server; empty for the default one of that kind."""
    exactness: str
    speculate: Speculate | None
    """What requests do that say nothing about it."""
    caching: bool
    in_process: bool
    keep: bool = False
    """Never evicted to make room for another model."""
    chat_template: str | None = None
    """A template's text, or the name of one; ``None``: the file's own."""
    thinking: Markers | None = None
    """``None``: as the model's chat template has them; without texts: none."""
    tool_calls: Markers | None = None
    """The same of tool calls."""

    @property
    def model_path(self) -> str:
        """The model file; empty for the stub."""
        return self.backend_config.model_path


def parse_load(config: Mapping[str, Any]) -> LoadConfig:
    """Check a load config (docs/reference/load-config.md).

    :raises BadCall: not a mapping.
    :raises ErllamaError: ``{badkey, model_path}``; ``undef`` for an unknown backend;
        ``badarg`` where the original says so; else ``{invalid, Key, Value}``.
    """
    options = options_of(config, "a load config")
    backend = _backend(options)
    model_path = ""
    if backend == "llama":
        if "model_path" not in options:
            raise ErllamaError(
                (Atom("badkey"), Atom("model_path")),
                "the config has no model_path",
                "give the path of a GGUF file, or a known name such as 'smollm2'",
            )
        model_path = resolve_model(options["model_path"])
    environs = Environment()
    policy = Policy.from_map(nested(options, "policy"), environs.policy())
    quant_type, quant_bits = _quantisation(options, model_path)
    tier_srv = text(options, "tier_srv", "")
    tier = choice(options, "tier", ("ram", "ram_file", "disk"), "ram")
    thinking, calls = _markers(options, "thinking_markers"), _markers(options, "tool_call_markers")
    stub = _stub_options(nested(options, "stub_opts"))
    if backend == "stub":
        stub = _stub_spans(stub, options, thinking, calls)
    return LoadConfig(
        backend_config=BackendConfig(
            backend=backend,
            model_path=model_path,
            model=_model_options(nested(options, "model_opts")),
            context=_context_options(nested(options, "context_opts")),
            stub=stub,
        ),
        policy=policy,
        fingerprint=digest(options, "fingerprint"),
        fingerprint_mode=choice(options, "fingerprint_mode", MODES, "safe")
        if "fingerprint_mode" in options
        else environs.get("fingerprint_mode"),
        quant_type=quant_type,
        quant_bits=quant_bits,
        ctx_params_hash=digest(options, "ctx_params_hash") or bytes(32),
        context_size=integer(options, "context_size", 4096, 0, 1 << 31),
        tier=tier,
        tier_srv="" if tier == "ram" else tier_srv,
        exactness=choice(options, "exactness", ("token", "bit"), "token"),
        speculate=parse_speculate(options, None),
        caching=flag(options, "cache", default=True),
        in_process=flag(options, "in_process", default=False) and backend == "stub",
        keep=flag(options, "keep", default=False),
        chat_template=_chat_template(options, model_path),
        thinking=thinking or stub.thinking,
        tool_calls=calls or stub.tool_calls,
    )


def environment() -> list[Setting]:
    """Return the application environment, for whoever asks what is set, and where.

    Every key there is, with its value and where that comes from; a value that cannot be
    has its ``error``.  Never raises, but where the file as a whole cannot be read.

    :raises ErllamaError: it is no TOML, or may not be read.
    """
    return Environment().all()


def policy_settings() -> Policy:
    """Return the policy of a load that says nothing about it.

    :raises ErllamaError: a variable or the file sets what cannot be.
    """
    return Policy.from_map({}, Environment().policy())


def _backend(options: Mapping[str, Any]) -> str:
    default = "erllama_model_llama" if "model_path" in options else "erllama_model_stub"
    name = options.get("backend", default)
    backend = _BACKENDS.get(name) if isinstance(name, str) else None
    if backend is None:
        raise ErllamaError(
            "undef", f"there is no backend {name!r}", "erllama_model_llama is the real one"
        )
    return backend


def _quantisation(options: Mapping[str, Any], path: str) -> tuple[str, int]:
    """Return what the caller says of the weights, else what the file does, else (f16, 16).

    Bits follow a type that was given.  A file that cannot be read is no error here: the
    load fails with the reason, or, at the engine, with a better one.
    """
    given = text(options, "quant_type", "")
    if "quant_type" in options and not given:
        raise invalid("quant_type", options["quant_type"], "a name such as q4_k_m")
    bits = integer(options, "quant_bits", 0, 0, 255) if "quant_bits" in options else None
    found = None
    if path and not given:
        try:
            found = quantisation(path)
        except (OSError, GgufError):
            found = None
    name, nominal = (given, bits_of(given) or 16) if given else (found or ("f16", 16))
    return name, nominal if bits is None else bits


def _chat_template(options: Mapping[str, Any], path: str) -> str | None:
    """Return the text or the name of a template; a name is one that there is."""
    given = options.get("chat_template")
    if given is None:
        return None
    text = given.decode(errors="replace") if isinstance(given, bytes) else given
    if not isinstance(text, str) or not 0 < len(text) <= _MAX_TEMPLATE:
        raise invalid("chat_template", given, "the text of a template, or a name such as chatml")
    if not is_template(text) and text not in FAMILIES:
        there = template_names(path) if path else []
        if text not in there:
            known = ", ".join(sorted({*there, *FAMILIES}))
            raise invalid("chat_template", given, f"a Jinja text, or one of {known}")
    return str(text)


def _model_options(options: Mapping[str, Any]) -> ModelOptions:
    split = options.get("tensor_split", ())
    if (
        not isinstance(split, (list, tuple))
        or len(split) > 16
        or not all(_is_share(part) for part in split)
    ):
        raise badarg("tensor_split", split, "a list of at most 16 numbers from 0")
    return ModelOptions(
        n_gpu_layers=integer(options, "n_gpu_layers", -1, -1, (1 << 31) - 1),
        main_gpu=integer(options, "main_gpu", 0, 0, (1 << 31) - 1),
        split_mode=enum(options, "split_mode", ("none", "layer", "row"), "layer"),
        tensor_split=tuple(float(part) for part in split),
        use_mmap=flag(options, "use_mmap", default=True),
        use_mlock=flag(options, "use_mlock", default=False),
        vocab_only=flag(options, "vocab_only", default=False),
    )


def _is_share(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 <= value <= _MAX_SHARE and math.isfinite(value)


def _context_options(options: Mapping[str, Any]) -> ContextOptions:
    decode, batch = default_threads()
    slots = options.get("n_seq_max", 1)
    if type(slots) is not int or not 0 <= slots <= 255:
        # llama.cpp takes 256 sequence ids; one of them is the cache's.
        raise badarg("n_seq_max", slots, "a whole number from 1 to 255")
    # Whatever it says, embeddings and completions both work.
    flag(options, "embeddings", default=False)
    types = ("f16", "f32", "bf16", "q4_0", "q5_0", "q5_1", "q8_0")
    flash = options.get("flash_attn", "auto")
    flash = {True: "true", False: "false"}.get(flash, flash) if isinstance(flash, bool) else flash
    return ContextOptions(
        n_ctx=integer(options, "n_ctx", 0, 0, (1 << 31) - 1),
        n_batch=integer(options, "n_batch", 512, 1, 1 << 24),
        n_ubatch=integer(options, "n_ubatch", 512, 0, 1 << 24),
        n_seq_max=max(1, slots),
        n_threads=integer(options, "n_threads", decode, 0, 1 << 10) or decode,
        n_threads_batch=integer(options, "n_threads_batch", batch, 0, 1 << 10) or batch,
        offload_kqv=flag(options, "offload_kqv", default=True),
        flash_attn=enum({"flash_attn": flash}, "flash_attn", ("true", "false", "auto"), "auto"),
        type_k=enum(options, "type_k", types, "f16"),
        type_v=enum(options, "type_v", types, "f16"),
        swa_full=flag(options, "swa_full", default=False),
    )


def _stub_options(options: Mapping[str, Any]) -> StubOptions:
    try:
        return msgspec.convert(dict(options), StubOptions)
    except msgspec.ValidationError as error:
        raise invalid("stub_opts", dict(options), str(error)) from error


def _stub_spans(
    stub: StubOptions, options: Mapping[str, Any], thinking: Markers | None, calls: Markers | None
) -> StubOptions:
    """Have the stub think and call tools where the config says it can."""
    payloads = flag(options, "tool_call_payload_capable", default=False)
    if flag(options, "thinking_capable", default=False):
        stub = msgspec.structs.replace(stub, thinking=thinking or STUB_THINKING)
    if payloads or flag(options, "tool_call_capable", default=False):
        stub = msgspec.structs.replace(
            stub, tool_calls=calls or STUB_TOOL_CALLS, tool_payloads=payloads
        )
    return stub


def _markers(options: Mapping[str, Any], key: str) -> Markers | None:
    """Return the markers of a load config; ``None`` where it leaves them to the template.

    ``false``, and a map without a start or an end, say that there are none.
    """
    given = options.get(key)
    if given is None:
        return None
    if given is False or (isinstance(given, str) and given in ("false", "disabled")):
        return Markers()
    if not isinstance(given, Mapping):
        raise invalid(key, given, "a map of start and end, or false")
    named = options_of(given, key)
    texts = {name: named.get(name, "") for name in Markers.__struct_fields__}
    if not all(is_text(text) for text in texts.values()):
        raise invalid(key, given, "a text for each marker")
    markers = {name: bytes_of(text) for name, text in texts.items()}
    if max(map(len, markers.values())) > _MAX_MARKER_BYTES:
        raise invalid(key, given, f"markers of at most {_MAX_MARKER_BYTES} bytes")
    return Markers(**markers)
