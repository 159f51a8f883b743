"""Load and request options: from the caller's maps to checked structures.

Options are dicts keyed by the atoms' names; values may be ``str`` or ``bytes`` where
Erlang has binaries.  ``undefined`` and ``nil`` count as absent.  Every refusal names
the key and the value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, TypeGuard

import msgspec

from erllama_py._backends.base import (
    GUESSED_TOKENS,
    STUB_THINKING,
    STUB_TOOL_CALLS,
    BackendConfig,
    ContextOptions,
    ModelOptions,
    SamplerOptions,
    StubOptions,
)
from erllama_py._cache.policy import Policy
from erllama_py._grammar import SchemaError, grammar_of, too_much
from erllama_py._machine.catalogue import resolve_model
from erllama_py._machine.cpus import default_threads
from erllama_py._machine.environment import Environment, Setting
from erllama_py._machine.fingerprint import MODES
from erllama_py._machine.gguf import GgufError, bits_of, quantisation, template_names
from erllama_py._templates.choice import is_template
from erllama_py._templates.families import FAMILIES
from erllama_py.errors import BadCall, ErllamaError
from erllama_py.types import Atom, Markers, SessionKey, session_key

__all__ = (
    "EVERYDAY_POLICY",
    "MAX_DRAFT",
    "GenerateOptions",
    "LoadConfig",
    "RequestOptions",
    "Speculate",
    "environment",
    "invalid",
    "parse_load",
    "parse_request",
    "parse_session",
    "policy_settings",
)

DEFAULT_INFER_TOKENS: Final = 64
"""``response_tokens`` of infer/4 when absent, as in the original's source; complete/3
fills the context instead, as its documentation says."""

EVERYDAY_POLICY: Final = {
    "min_tokens": 16,
    "cold_min_tokens": 16,
    "boundary_trim_tokens": 0,
    "boundary_align_tokens": 1,
}
"""Small numbers: a person's prompts are short, and a saved block costs a fraction of a
millisecond.  The original's defaults (512 and 2048 tokens) stay at the API."""

MAX_DRAFT: Final = GUESSED_TOKENS - 1
"""Most tokens of a draft: with the one before it, what a step has logits for."""

_LOOKUP_TOKENS: Final = 3
_DRAFT_TOKENS: Final = 8
"""``max`` of a draft model, whose tokens cost more than those of a lookup."""

MAX_LOGPROBS: Final = 20
_MANY: Final = (1 << 31) - 1
"""More tokens than any context or vocabulary has; larger numbers are as good as this."""
_FAR: Final = 1e30
"""Beyond it a sampler's number is as good as this one: the engine computes in 32 bits."""
_MAX_ATOM_CHARS: Final = 255
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


class Speculate(msgspec.Struct, frozen=True):
    """Where a request's drafts come from: from one of two places."""

    most: int
    """Tokens of a draft at most."""
    lookup: int = 0
    """From the context itself, where so many tokens are the same; 0: not."""
    draft: str = ""
    """From the model of this id."""


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


class GenerateOptions(msgspec.Struct, frozen=True):
    """What a request asks for, validated."""

    sampler: SamplerOptions = SamplerOptions()
    response_tokens: int | None = None
    """``None``: whatever fits into the context."""
    stop_sequences: tuple[bytes, ...] = ()
    bit: bool = False
    """Exactness ``bit``: computed alone, so that warm equals cold bit for bit."""
    cached: bool = True
    """False: nothing is looked up for the request, and nothing of it stored."""
    trace: bool = False
    """Keep the logits every token is drawn from, for a comparison."""
    thinking: bool = False
    """Tell thinking apart from the reply."""
    thinking_budget: int | None = None
    """Tokens of thinking, at most."""
    tool_calls: bool | None = None
    """Tell tool calls apart; ``None``: where the load config names their markers."""
    speculate: Speculate | None = None
    logprobs: int | None = None
    """Tell each token's log probability, and those of so many of the likeliest."""


class RequestOptions(msgspec.Struct, frozen=True):
    """A checked option map of complete/3 or infer/4."""

    generate: GenerateOptions
    parent_key: bytes | None
    session: SessionKey | None = None
    signing_key: bytes = b""
    """What thinking is signed with; empty: not at all."""


def invalid(key: str, value: Any, expected: str) -> ErllamaError:
    """Return the error for an option that cannot be what it is."""
    return ErllamaError(
        (Atom("invalid"), Atom(key), value),
        f"{key} cannot be {value!r}",
        f"give {expected}",
    )


def parse_load(config: Mapping[str, Any]) -> LoadConfig:
    """Check a load config (docs/reference/load-config.md).

    :raises BadCall: not a mapping.
    :raises ErllamaError: ``{badkey, model_path}``; ``undef`` for an unknown backend;
        ``badarg`` where the original says so; else ``{invalid, Key, Value}``.
    """
    options = _options(config, "a load config")
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
    policy = Policy.from_map(_nested(options, "policy"), environs.policy())
    quant_type, quant_bits = _quantisation(options, model_path)
    tier_srv = _text(options, "tier_srv", "")
    tier = _choice(options, "tier", ("ram", "ram_file", "disk"), "ram")
    thinking, calls = _markers(options, "thinking_markers"), _markers(options, "tool_call_markers")
    stub = _stub_options(_nested(options, "stub_opts"))
    if backend == "stub":
        stub = _stub_spans(stub, options, thinking, calls)
    return LoadConfig(
        backend_config=BackendConfig(
            backend=backend,
            model_path=model_path,
            model=_model_options(_nested(options, "model_opts")),
            context=_context_options(_nested(options, "context_opts")),
            stub=stub,
        ),
        policy=policy,
        fingerprint=_digest(options, "fingerprint"),
        fingerprint_mode=_choice(options, "fingerprint_mode", MODES, "safe")
        if "fingerprint_mode" in options
        else environs.get("fingerprint_mode"),
        quant_type=quant_type,
        quant_bits=quant_bits,
        ctx_params_hash=_digest(options, "ctx_params_hash") or bytes(32),
        context_size=_integer(options, "context_size", 4096, 0, 1 << 31),
        tier=tier,
        tier_srv="" if tier == "ram" else tier_srv,
        exactness=_choice(options, "exactness", ("token", "bit"), "token"),
        speculate=_speculate(options, None),
        caching=_flag(options, "cache", default=True),
        in_process=_flag(options, "in_process", default=False) and backend == "stub",
        keep=_flag(options, "keep", default=False),
        chat_template=_chat_template(options, model_path),
        thinking=thinking or stub.thinking,
        tool_calls=calls or stub.tool_calls,
    )


def parse_request(
    options: Mapping[str, Any],
    exactness: str,
    default_tokens: int | None,
    speculate: Speculate | None = None,
) -> RequestOptions:
    """Check the option map of a request; the last three are for what it does not say.

    Sampler values of the wrong type count as absent, as in the original; what would
    change the result unseen (``seed``, ``grammar``, ``json_schema``) is refused.

    :raises BadCall: not a mapping.
    :raises ErllamaError: ``badarg`` for seed and grammar, else ``{invalid, Key, Value}``,
        where thinking is asked for and the environment's key for it cannot be read, too.
    """
    given = _options(options, "options")
    tokens = given.get("response_tokens", default_tokens)
    if tokens is not None and (type(tokens) is not int):
        raise invalid("response_tokens", tokens, "a whole number")
    stops = given.get("stop_sequences", ())
    if not isinstance(stops, (list, tuple)):
        raise invalid("stop_sequences", stops, "a list of texts")
    exact = _choice(given, "exactness", ("token", "bit"), exactness)
    # As in the original: whatever else it is, true among it, counts as disabled.
    thinking = given.get("thinking") == "enabled"
    # JSON is reply from its first byte to its last, whatever its texts look like.
    constrained = "json_schema" in given
    likeliest = _integer(given, "logprobs", 0, 0, MAX_LOGPROBS) if "logprobs" in given else None
    return RequestOptions(
        GenerateOptions(
            sampler=_sampler(given),
            response_tokens=None if tokens is None else min(max(0, tokens), _MANY),
            stop_sequences=tuple(_bytes(s) for s in stops if _is_text(s) and s),
            bit=exact == "bit",
            thinking=thinking and not constrained,
            thinking_budget=_thinking_budget(given),
            tool_calls=False if constrained else _tool_calls(given),
            speculate=_speculate(given, speculate),
            logprobs=likeliest,
        ),
        _digest(given, "parent_key"),
        parse_session(given.get("session_id", _named_undefined(options))),
        signing_key=(Environment().get("thinking_signing_key") or b"") if thinking else b"",
    )


def parse_session(value: Any) -> SessionKey | None:
    """Return the key of a ``session_id``; ``None`` where none was given.

    Its value may be any but ``undefined``; a text of that name is one.

    :raises ErllamaError: ``{invalid, session_id, Value}``.
    """
    if value is None or (isinstance(value, Atom) and value in ("undefined", "nil")):
        return None
    try:
        return session_key(value)
    except TypeError:
        raise invalid("session_id", value, "a value that can be a key of a dict") from None


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


# -- parts ------------------------------------------------------------------------------


def _named_undefined(options: Mapping[Any, Any]) -> Any:
    """Return a ``session_id`` as it was given: the text ``undefined`` counts as one."""
    names = ("session_id", b"session_id")
    return next((value for key, value in options.items() if key in names), None)


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
    given = _text(options, "quant_type", "")
    if "quant_type" in options and not given:
        raise invalid("quant_type", options["quant_type"], "a name such as q4_k_m")
    bits = _integer(options, "quant_bits", 0, 0, 255) if "quant_bits" in options else None
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
        raise _badarg("tensor_split", split, "a list of at most 16 numbers from 0")
    return ModelOptions(
        n_gpu_layers=_integer(options, "n_gpu_layers", -1, -1, (1 << 31) - 1),
        main_gpu=_integer(options, "main_gpu", 0, 0, (1 << 31) - 1),
        split_mode=_enum(options, "split_mode", ("none", "layer", "row"), "layer"),
        tensor_split=tuple(float(part) for part in split),
        use_mmap=_flag(options, "use_mmap", default=True),
        use_mlock=_flag(options, "use_mlock", default=False),
        vocab_only=_flag(options, "vocab_only", default=False),
    )


def _context_options(options: Mapping[str, Any]) -> ContextOptions:
    decode, batch = default_threads()
    slots = options.get("n_seq_max", 1)
    if type(slots) is not int or not 0 <= slots <= 255:
        # llama.cpp takes 256 sequence ids; one of them is the cache's.
        raise _badarg("n_seq_max", slots, "a whole number from 1 to 255")
    # Whatever it says, embeddings and completions both work.
    _flag(options, "embeddings", default=False)
    types = ("f16", "f32", "bf16", "q4_0", "q5_0", "q5_1", "q8_0")
    flash = options.get("flash_attn", "auto")
    flash = {True: "true", False: "false"}.get(flash, flash) if isinstance(flash, bool) else flash
    return ContextOptions(
        n_ctx=_integer(options, "n_ctx", 0, 0, (1 << 31) - 1),
        n_batch=_integer(options, "n_batch", 512, 1, 1 << 24),
        n_ubatch=_integer(options, "n_ubatch", 512, 0, 1 << 24),
        n_seq_max=max(1, slots),
        n_threads=_integer(options, "n_threads", decode, 0, 1 << 10) or decode,
        n_threads_batch=_integer(options, "n_threads_batch", batch, 0, 1 << 10) or batch,
        offload_kqv=_flag(options, "offload_kqv", default=True),
        flash_attn=_enum({"flash_attn": flash}, "flash_attn", ("true", "false", "auto"), "auto"),
        type_k=_enum(options, "type_k", types, "f16"),
        type_v=_enum(options, "type_v", types, "f16"),
        swa_full=_flag(options, "swa_full", default=False),
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
    payloads = _flag(options, "tool_call_payload_capable", default=False)
    if _flag(options, "thinking_capable", default=False):
        stub = msgspec.structs.replace(stub, thinking=thinking or STUB_THINKING)
    if payloads or _flag(options, "tool_call_capable", default=False):
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
    named = _options(given, key)
    texts = {name: named.get(name, "") for name in Markers.__struct_fields__}
    if not all(_is_text(text) for text in texts.values()):
        raise invalid(key, given, "a text for each marker")
    markers = {name: _bytes(text) for name, text in texts.items()}
    if max(map(len, markers.values())) > _MAX_MARKER_BYTES:
        raise invalid(key, given, f"markers of at most {_MAX_MARKER_BYTES} bytes")
    return Markers(**markers)


def _tool_calls(options: Mapping[str, Any]) -> bool | None:
    """Return whether tool calls are told apart; ``None`` where the load config decides."""
    asked = options.get("tool_calls")
    known = {"enabled": True, "disabled": False}
    return known.get(asked) if isinstance(asked, str) else None


def _thinking_budget(options: Mapping[str, Any]) -> int | None:
    budget = options.get("thinking_budget_tokens")
    return budget if type(budget) is int and budget > 0 else None


def _sampler(options: Mapping[str, Any]) -> SamplerOptions:
    seed = options.get("seed", 0)
    if type(seed) is not int or not 0 <= seed < 1 << 64:
        raise _badarg("seed", seed, "a whole number from 0 to 2^64 - 1")
    grammar = options.get("grammar")
    if grammar is not None:
        if not (_is_text(grammar) and grammar):
            raise _badarg("grammar", grammar, "the text of a GBNF grammar")
        if much := too_much(_bytes(grammar)):
            raise ErllamaError("badarg", f"the grammar has {much}", "give a smaller one")
    schema = options.get("json_schema")
    top_k = options.get("top_k")
    return SamplerOptions(
        grammar=_optional_bytes(grammar) if schema is None else _schema_grammar(schema, grammar),
        visible=schema is not None,
        repetition_penalty=_number(options, "repetition_penalty", lambda v: v != 1.0),
        top_k=min(top_k, _MANY) if type(top_k) is int and top_k > 0 else None,
        top_p=_number(options, "top_p", lambda v: v < 1.0),
        min_p=_number(options, "min_p", lambda v: v > 0.0),
        temperature=_number(options, "temperature", lambda v: v > 0.0),
        seed=seed & 0xFFFFFFFF,
    )


def _speculate(options: Mapping[str, Any], default: Speculate | None) -> Speculate | None:
    """Check ``speculate``: ``lookup``, ``#{lookup => N}``, ``#{draft => Id}``, or off."""
    if "speculate" not in options:
        return default
    value = options["speculate"]
    if isinstance(value, (str, bytes, bool)):
        word = value.decode(errors="replace") if isinstance(value, bytes) else str(value).lower()
        if word in ("false", "none"):
            return None
        if word in ("lookup", "true"):
            return Speculate(MAX_DRAFT, lookup=_LOOKUP_TOKENS)
    expected = "lookup, false, or a map with lookup or draft, and max"
    given = _options(value, "speculate") if isinstance(value, Mapping) else {}
    if set(given) not in ({"lookup"}, {"lookup", "max"}, {"draft"}, {"draft", "max"}):
        raise invalid("speculate", value, expected)
    most = given.get("max", MAX_DRAFT if "lookup" in given else _DRAFT_TOKENS)
    if type(most) is not int or not 1 <= most <= MAX_DRAFT:
        raise invalid("speculate", value, f"a max from 1 to {MAX_DRAFT}")
    if "draft" in given:
        name = given["draft"]
        if not _is_text(name) or not name:
            raise invalid("speculate", value, "the id of a loaded model as draft")
        return Speculate(most, draft=_bytes(name).decode(errors="surrogateescape"))
    size = _LOOKUP_TOKENS if given["lookup"] is True else given["lookup"]
    if type(size) is not int or not 1 <= size <= MAX_DRAFT:
        raise invalid("speculate", value, f"tokens to look up, from 1 to {MAX_DRAFT}")
    return Speculate(most, lookup=size)


def _schema_grammar(schema: Any, grammar: Any) -> bytes:
    """Return the grammar of a JSON Schema.

    :raises ErllamaError: ``{invalid, json_schema, Why}``, where ``Why`` begins with the place.
    """
    refused = SchemaError((), "a grammar is given, too", "give one of them")
    if grammar is None:
        try:
            return grammar_of(schema)
        except SchemaError as error:
            refused = error
    why = str(refused)
    raise ErllamaError(
        (Atom("invalid"), Atom("json_schema"), why), f"json_schema, {why}", refused.mend
    )


# -- values -----------------------------------------------------------------------------


def _options(value: Any, what: str) -> dict[str, Any]:
    """Return the map without its absent values."""
    if not isinstance(value, Mapping):
        raise BadCall("function_clause", f"{what} must be a map, not {type(value).__name__}")
    return {
        key.decode(errors="surrogateescape") if isinstance(key, bytes) else key: item
        for key, item in value.items()
        if not (item is None or (isinstance(item, str) and item in ("undefined", "nil")))
    }


def _nested(options: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = options.get(key, {})
    if not isinstance(value, Mapping):
        raise invalid(key, value, "a map")
    return _options(value, key)


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


def _optional_bytes(value: str | bytes | None) -> bytes | None:
    return None if value is None else _bytes(value)


def _is_text(value: Any) -> TypeGuard[str | bytes]:
    """Whether it is a binary in Erlang: an atom's name is no text."""
    return isinstance(value, (str, bytes)) and not isinstance(value, Atom)


def _is_share(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 <= value <= _MAX_SHARE and math.isfinite(value)


def _number(options: Mapping[str, Any], key: str, active: Any) -> float | None:
    value = options.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    if value != value:  # noqa: PLR0124 - a NaN is not a number
        return None
    return float(max(-_FAR, min(value, _FAR))) if active(value) else None


def _badarg(key: str, value: Any, expected: str) -> ErllamaError:
    return ErllamaError("badarg", f"{key} cannot be {value!r}", f"give {expected}")


def _integer(options: Mapping[str, Any], key: str, default: int, low: int, high: int) -> int:
    value = options.get(key, default)
    if type(value) is not int or not low <= value <= high:
        raise invalid(key, value, f"a whole number from {low} to {high}")
    return value


def _flag(options: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = options.get(key, default)
    if isinstance(value, str) and value in ("true", "false"):
        return value == "true"
    if not isinstance(value, bool):
        raise invalid(key, value, "true or false")
    return value


def _choice(options: Mapping[str, Any], key: str, choices: tuple[str, ...], default: str) -> str:
    value = options.get(key, default)
    if not isinstance(value, str) or value not in choices:
        raise invalid(key, value, " or ".join(choices))
    return str(value)


def _enum(options: Mapping[str, Any], key: str, choices: tuple[str, ...], default: str) -> str:
    """Check an enumeration for which the original answers ``badarg``."""
    value = options.get(key, default)
    if not isinstance(value, str) or value not in choices:
        raise _badarg(key, value, " or ".join(choices))
    return str(value)


def _text(options: Mapping[str, Any], key: str, default: str) -> str:
    """Return the name of an atom, which Erlang limits to 255 characters."""
    value = options.get(key, default)
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    if not isinstance(text, str) or len(text) > _MAX_ATOM_CHARS:
        raise invalid(key, value, "a name")
    return text


def _digest(options: Mapping[str, Any], key: str) -> bytes | None:
    value = options.get(key)
    if value is None:
        return None
    if not isinstance(value, bytes) or len(value) != 32:
        raise invalid(key, value, "32 bytes")
    return value
