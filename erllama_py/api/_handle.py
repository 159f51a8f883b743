"""What loading a model returns: its id, with methods."""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from erllama_py._engine.registry import core, id_text
from erllama_py._engine.stream import Stream
from erllama_py._engine.utf8 import Utf8Assembler
from erllama_py.api._adapters import list_adapters, load_adapter, set_adapter_scale, unload_adapter
from erllama_py.api._asking import Tokens, answered, as_mapping, checked_tokens, make_request
from erllama_py.api._caching import explain, verify_exact
from erllama_py.api._generation import complete, prefill_only
from erllama_py.api._models import model_info, unload
from erllama_py.api._sessions import end_session, list_sessions
from erllama_py.api._text import apply_chat_template, detokenize, embed, tokenize
from erllama_py.types import Atom, Event, Ref

__all__ = ("Model", "load_model")


def load_model(*args: Any) -> Model:
    """Load a model: ``load_model(config)`` or ``load_model(model_id, config)``.

    ``config["model_path"]`` is a GGUF file or a known name (``smollm2``).  See the
    reference page "load config" for all keys.

    :return: the id, a ``str`` with methods for everyday use.
    :raises ErllamaError: ``already_loaded``, ``load_failed``, ``malformed_gguf``,
        ``context_failed``, ``oom``, ``badarg``, ``{badkey, model_path}``,
        ``{invalid, Key, Value}``.  Nothing is left behind.
    :raises BadCall: the id is not a text, or the config not a mapping.
    """
    match args:
        case (config,):
            return Model(core().load(None, as_mapping(config, "config")))
        case (model_id, config):
            return Model(core().load(id_text(model_id), as_mapping(config, "config")))
        case _:
            raise TypeError("load_model takes a config, or an id and a config")


class Model(str):
    """A model's id, with the functions a user would look for as methods."""

    __slots__ = ()

    def complete(self, prompt: str | bytes | Tokens, **options: Any) -> dict[str, Any]:
        """Do :func:`complete` with options as keywords.

        :param prompt: tokens are taken, too, such as those of :meth:`chat`.
        """
        if isinstance(prompt, (str, bytes)):
            return complete(self, prompt, options)
        host = core().host(self)
        tokens = checked_tokens(host, "complete", prompt)
        request = make_request(host, "complete", options, None, tokens=tokens)
        return answered(host, request)

    def stream(self, prompt: str | bytes | Tokens, **options: Any) -> Iterator[str]:
        """Yield the reply in whole characters as it is generated.

        Leaving the loop cancels the request.

        :param prompt: as that of :meth:`complete`.

        :raises ErllamaError: as :func:`infer`, or what ended the stream early.
        """
        options.setdefault("response_tokens", None)
        assembler = Utf8Assembler()
        host = core().host(self)
        given = tokenize(self, prompt) if isinstance(prompt, (str, bytes)) else prompt
        tokens = checked_tokens(host, "infer", given)
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        request = make_request(host, "infer", options, None, tokens=tokens, sink=events.put)
        host.submit(request)
        with Stream(host, request, events) as stream:
            for event in stream:
                if event.kind == "token" and (text := assembler.feed(event.data)):
                    yield text
        if request.error:
            raise request.error
        if rest := assembler.flush():
            yield rest

    def tokenize(self, text: str | bytes) -> list[int]:
        """Do :func:`tokenize`."""
        return tokenize(self, text)

    def detokenize(self, tokens: Tokens) -> str | bytes:
        """Do :func:`detokenize`."""
        return detokenize(self, tokens)

    def embed(self, tokens: Tokens) -> list[float]:
        """Do :func:`embed`."""
        return embed(self, tokens)

    def chat(self, messages: Sequence[Mapping[str, Any]], **request: Any) -> list[int]:
        """Do :func:`apply_chat_template`; returns the prompt's tokens."""
        return apply_chat_template(self, {"messages": messages, **request})

    def explain(self, what: Any = None, **options: Any) -> dict[str, Any]:
        """Do :func:`explain` with options as keywords."""
        return explain(self, what, options)

    def prefill(self, tokens: Tokens, **options: Any) -> dict[str, Any]:
        """Do :func:`prefill_only` with options as keywords."""
        return prefill_only(self, tokens, options)

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """:func:`list_sessions`."""
        return list_sessions(self)

    def end_session(self, session: Any) -> Atom:
        """Do :func:`end_session`."""
        return end_session(self, session)

    def verify_exact(
        self, prompt: str | bytes | Tokens, *, tokens: int | None = None, **options: Any
    ) -> dict[str, Any]:
        """Do :func:`verify_exact` with options as keywords."""
        return verify_exact(self, prompt, options, tokens=tokens)

    @property
    def adapters(self) -> list[dict[str, Any]]:
        """:func:`list_adapters`."""
        return list_adapters(self)

    def load_adapter(self, path: str | bytes | os.PathLike[str], scale: float = 1.0) -> Ref:
        """Do :func:`load_adapter`."""
        return load_adapter(self, path, scale)

    def set_adapter_scale(self, handle: Ref, scale: float) -> Atom:
        """Do :func:`set_adapter_scale`."""
        return set_adapter_scale(self, handle, scale)

    def unload_adapter(self, handle: Ref) -> Atom:
        """Do :func:`unload_adapter`."""
        return unload_adapter(self, handle)

    @property
    def info(self) -> dict[str, Any]:
        """:func:`model_info`."""
        return model_info(self)

    def unload(self) -> Atom:
        """Do :func:`unload`."""
        return unload(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if core().find(self):
            unload(self)
