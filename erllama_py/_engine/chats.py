"""One model's chats on the core's side: rendered in a process, tokenised in another.

::

    request --read_chat--> Chat --guard--> Renderer --text--> model process --> tokens
                                  marks        |                  marks out
                                  in users'    template, in a
                                  texts        sandbox
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from erllama_py._backends.base import BackendError, BackendInfo
from erllama_py._backends.stub import render_chat as render_for_stub
from erllama_py._engine.caching import ModelCache
from erllama_py._engine.ends import model_gone
from erllama_py._engine.heads import ChatHeads
from erllama_py._engine.renderer import Renderer, RendererClosed
from erllama_py._templates.choice import choose
from erllama_py._templates.controls import Controls, mark_beside
from erllama_py._templates.plain import is_absent
from erllama_py._templates.request import Chat, read_chat
from erllama_py.errors import BadCall, ErllamaError

__all__ = ("Chats",)

_USERS = ("user", "tool")
"""Roles whose texts come from outside: nothing in them is a control token."""


class Chats:
    """One model's.

    :param call: asks the model process.
    :param info: the loaded model.
    :param template: the load config's ``chat_template``.
    :param cache: keeps the heads of chats.
    """

    def __init__(
        self,
        model_id: str,
        call: Callable[[str, Any], Any],
        info: Callable[[], BackendInfo],
        template: str | None,
        cache: ModelCache,
    ) -> None:
        self._id = model_id
        self._call = call
        self._info = info
        self._template = template
        self._cache = cache
        self._heads = ChatHeads(self._tokenize, cache.keep_head)
        self._controls: Controls | None = None
        self.renderer = Renderer()

    def tokens(self, request: Mapping[str, Any]) -> bytes:
        """Render a chat request and tokenise it; its head is kept from now on.

        :raises BadCall, ErllamaError: as ``apply_chat_template``.
        :raises ModelGone: the model is gone.
        """
        tokens = self._tokenize(request)
        if self._cache.keeps_heads:
            self._heads.note(request, tokens)
        return tokens

    def _tokenize(self, request: Mapping[str, Any]) -> bytes:
        tokens: bytes
        info = self._info()
        if info.backend == "erllama_model_stub" and not self._named(request):
            tokens = self._call("tokenize_chat", _stubs_own(request))
            return tokens
        chat = read_chat(request)
        template = choose(
            chat.template or self._template, info.chat_template, info.chat_templates, chat.tools
        )
        mark = "" if chat.parse_special else _mark(chat)
        text = self._render(template, self._guarded(chat, mark) if mark else chat, info)
        if mark and mark.encode() in text:
            tokens = self._call("tokenize_marked", (text, mark))
        else:
            tokens = self._call("tokenize_chat", text)
        return tokens

    def _named(self, request: Any) -> bool:
        """Whether somebody wants a certain template; the stub has a format of its own."""
        given = request.get("chat_template") if isinstance(request, Mapping) else None
        return self._template is not None or not is_absent(given)

    def _render(self, template: str, chat: Chat, info: BackendInfo) -> bytes:
        special = {"bos_token": info.bos, "eos_token": info.eos}
        try:
            return self.renderer.render(
                {
                    "template": template,
                    "messages": chat.messages,
                    "system": chat.system,
                    "tools": chat.tools,
                    "variables": special | chat.variables,
                }
            )
        except RendererClosed:
            raise model_gone(self._id) from None

    def _guarded(self, chat: Chat, mark: str) -> Chat:
        """Return a chat with control tokens in users' texts marked as text."""
        if self._controls is None:
            spelt = self._call("controls", None)
            self._controls = Controls(one.decode(errors="replace") for one in spelt)
        guard = self._controls.guard
        return chat._replace(
            messages=[
                {**message, "content": guard(message["content"], mark)}
                if message["role"] in _USERS and message["content"]
                else message
                for message in chat.messages
            ]
        )


def _mark(chat: Chat) -> str:
    """Return a mark that is nowhere in the messages."""
    said = "".join(message["content"] or "" for message in chat.messages)
    mark = mark_beside(said)
    if mark is None:
        raise ErllamaError(
            "invalid_content", "the messages have every noncharacter from U+FDD0 to U+FDEF"
        )
    return mark


def _stubs_own(request: Mapping[str, Any]) -> bytes:
    if not isinstance(request, Mapping):
        raise BadCall("function_clause", "a chat request must be a map")
    try:
        return render_for_stub(request)
    except BackendError as error:
        raise ErllamaError(error.reason, error.detail) from None
