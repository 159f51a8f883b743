"""What callers give, checked, and requests made of it."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from erllama_py._engine.draftmodel import draft_model
from erllama_py._engine.host import ModelHost
from erllama_py._engine.prompt import MAX_LIST, MAX_TEXT_BYTES, refusal
from erllama_py._engine.registry import core
from erllama_py._engine.request import Request
from erllama_py._engine.tokenbytes import unpack_tokens
from erllama_py.config import RequestOptions, bytes_of, parse_request
from erllama_py.errors import BadCall, ErllamaError
from erllama_py.types import Event, ModelPid

__all__ = (
    "answered",
    "as_mapping",
    "checked_tokens",
    "make_request",
    "prompt_bytes",
    "token_array",
    "tokens_of",
)

ModelArg = str | bytes | ModelPid
Tokens = Sequence[int] | Iterable[int]
Options = Mapping[str, Any]


def make_request(
    host: ModelHost,
    mode: str,
    options: Options | None,
    default_tokens: int | None,
    *,
    text: bytes | None = None,
    tokens: array[int] | None = None,
    sink: Callable[[Event], None] | None = None,
    on_over: Callable[[Request], None] | None = None,
) -> Request:
    """Return the request that these options ask for.

    :param default_tokens: what it may generate where they do not say; ``None``: what fits.
    :raises ErllamaError: they cannot be, or the model cannot do what they say.
    """
    given = {} if options is None else options
    usual = host.config.speculate
    parsed: RequestOptions = parse_request(given, host.config.exactness, default_tokens, usual)
    if parsed.generate.logprobs is not None and not host.info.has_logits:
        raise ErllamaError("not_supported", f"{host.info.description} has no log probabilities")
    drafts = draft_model(host, parsed.generate.speculate, core().find)
    request = Request(
        mode,
        parsed.generate,
        text=text,
        tokens=tokens,
        parent_key=parsed.parent_key,
        session=parsed.session,
        signing_key=parsed.signing_key,
        sink=sink,
        on_over=on_over,
    )
    request.drafts = drafts
    return request


def answered(host: ModelHost, request: Request) -> dict[str, Any]:
    """Submit a request and return its result; cancel it where the wait is interrupted."""
    host.submit(request)
    try:
        return request.wait()
    except BaseException:
        # Interrupted: nobody waits for this reply any more.
        if not request.over:
            host.cancel(request)
        raise


def checked_tokens(host: ModelHost, mode: str, tokens: Tokens) -> array[int]:
    """Return a prompt's tokens where the model takes them.

    :raises ErllamaError: why it does not.
    """
    prompt = token_array(tokens)
    if refused := refusal(prompt, host.info, mode):
        raise ErllamaError(*refused)
    return prompt


def token_array(tokens: Tokens) -> array[int]:
    """Return token ids as 32-bit words.

    :raises ErllamaError: ``invalid_token``, ``too_large``.
    :raises BadCall: no list.
    """
    if isinstance(tokens, (str, bytes, bytearray)) or not isinstance(tokens, Iterable):
        raise BadCall("function_clause", f"tokens must be a list of ids, not {tokens!r:.40}")
    try:
        found = array("I", tokens)
    except OverflowError:
        raise ErllamaError("invalid_token", "token ids are whole numbers from 0") from None
    except TypeError:
        raise ErllamaError("invalid_token", "every token must be a whole number") from None
    if len(found) > MAX_LIST:
        raise ErllamaError("too_large", f"{len(found)} tokens; {MAX_LIST} at most")
    return found


def tokens_of(data: bytes) -> list[int]:
    """Return token ids as frames carry them."""
    return unpack_tokens(data).tolist()


def prompt_bytes(text: Any) -> bytes:
    """Return a prompt's bytes.

    :raises ErllamaError: ``too_large``.
    :raises BadCall: no text, or one with half of a surrogate pair.
    """
    if not isinstance(text, (str, bytes)):
        raise BadCall("function_clause", f"a prompt must be a text, not {type(text).__name__}")
    data = bytes_of(text, "the prompt")
    if len(data) > MAX_TEXT_BYTES:
        raise ErllamaError("too_large", f"{len(data)} bytes of text; {MAX_TEXT_BYTES} at most")
    return data


def as_mapping(value: Any, what: str) -> Mapping[str, Any]:
    """Return what was given as a config or as options.

    :raises BadCall: no mapping.
    """
    if not isinstance(value, Mapping):
        raise BadCall("function_clause", f"a {what} must be a map, not {type(value).__name__}")
    return value
