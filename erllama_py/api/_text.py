"""Texts, tokens, chats and vectors."""

from __future__ import annotations

from collections.abc import Callable

from erllama_py._engine.registry import core
from erllama_py.api._asking import ModelArg, Options, Tokens, prompt_bytes, token_array, tokens_of
from erllama_py.errors import ErllamaError
from erllama_py.types import Ref, text_of

__all__ = ("apply_chat_template", "detokenize", "embed", "start_embed", "tokenize")


def tokenize(model: ModelArg, text: str | bytes) -> list[int]:
    """Tokenise a text as a prompt: BOS is added where the vocabulary asks for it.

    Special-token syntax in the text stays text.  Does not wait for running requests.

    :raises ErllamaError: ``too_large`` (4 MiB, or 1 048 576 tokens).
    """
    return tokens_of(core().host(model).call("tokenize", prompt_bytes(text)))


def detokenize(model: ModelArg, tokens: Tokens) -> str | bytes:
    """Return the text of tokens; control tokens render empty.

    :raises ErllamaError: ``invalid_token``.
    """
    data: bytes = core().host(model).call("detokenize", token_array(tokens).tobytes())
    return text_of(data)


def apply_chat_template(model: ModelArg, request: Options) -> list[int]:
    """Render a chat request with the model's template and tokenise it.

    A system text and tools are what every conversation of their kind begins with: what
    is cached of them is protected from eviction from now on (docs/design/cache.md).

    :param request: ``messages`` (``role``, ``content``), optional ``system``, ``tools``;
        all keys are in the reference page "Chat templates".
    :raises BadCall: the request is not a map.
    :raises ErllamaError: ``badarg``, ``invalid_content``, ``no_template``,
        ``template_failed``, ``too_large``, ``{invalid, Key, Value}``.
    :raises ModelGone: the model is unknown, or was unloaded meanwhile.
    """
    return tokens_of(core().host(model).chats.tokens(request))


def embed(model: ModelArg, tokens: Tokens) -> list[float]:
    """Return one vector for a list of tokens.

    Pooled as the model says; where it says nothing (models made to generate), the mean
    over all positions.  **Not normalised**: divide by the norm where cosines are wanted.
    LoRA adapters are of no effect here: the vectors are the model's own.
    The same tokens give the same numbers, whatever runs beside, and running requests
    neither wait for it nor change by it; they do share the cores.

    :raises ErllamaError: ``invalid_token`` (none, or one outside the vocabulary),
        ``context_overflow`` (as many as the context or more), ``too_large``,
        ``embed_failed``, ``not_supported`` (a model that ranks).
    """
    vector: list[float] = core().host(model).call("embed", token_array(tokens).tobytes())
    return vector


def start_embed(
    model: ModelArg, tokens: Tokens, *, on_over: Callable[[list[float] | ErllamaError], None]
) -> Ref:
    """Do :func:`embed` without waiting for the vector; see :func:`start`."""
    return core().host(model).start_call("embed", token_array(tokens).tobytes(), on_over)
