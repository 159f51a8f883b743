"""From a cell to a reply: build the prompt, stream, and end well however it ends.

The cell's thread waits for events and draws; it never computes.  So an interrupt is
noticed at once, in a long prefill too: the request is cancelled, what there is of the
reply stays, and ``KeyboardInterrupt`` goes on, since a magic that swallowed it would let
Run All go on to the next cell.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import erllama_py
from erllama_py._notebook.args import BadUsage
from erllama_py._notebook.reply import Reply
from erllama_py._notebook.text import as_text, fill
from erllama_py.errors import ErllamaError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from erllama_py._notebook.render import Surface
    from erllama_py._notebook.talks import Talk
    from erllama_py.types import Event

__all__ = ("generate", "prompt_text", "prompt_tokens", "schema_of")

POLL_S: Final = 0.05
"""How late a surface may be told that nothing has come."""

SETTLE_S: Final = 0.1
"""An interrupted request is given this long to say what it came to.  It answers after the
engine's current step; whoever pressed stop waits no longer than this."""

STEP_S: Final = 30.0
"""How long the next cell of a conversation waits for that, at most."""

_new_decoder: Final = codecs.getincrementaldecoder("utf-8")

_SAMPLER: Final = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


def prompt_text(
    arguments: argparse.Namespace, cell: str, names: Mapping[str, Any], *, typed: bool
) -> tuple[str, str | None]:
    """Return what is sent, and the system message.

    The newline that ends every cell is not part of it; all else is kept to the byte.

    :param typed: at a terminal, where empty lines at the end are how a cell is sent off.
    :raises BadUsage: there is nothing to send, or a variable is missing.
    """
    missing = [name for name in arguments.input if name not in names]
    if missing:
        raise BadUsage(f"not defined: {', '.join(missing)}", "the line asks for it with -i")
    body = cell.rstrip("\n") if typed else cell.removesuffix("\n")
    system = arguments.system
    if arguments.fill:
        body = fill(body, names)
        system = None if system is None else fill(system, names)
    parts = [as_text(names[name]) for name in arguments.input]
    text = "\n\n".join([*parts, body] if body.strip() or not parts else parts)
    if not text.strip():
        raise BadUsage("the cell is empty", "the prompt goes into the lines below %%erllama")
    return text, system


def schema_of(name: str | None, names: Mapping[str, Any]) -> Any:
    """Return the schema that ``--json-schema`` names: a variable's value, or a file's text.

    A class of pydantic stands for its schema.

    :raises BadUsage: there is neither.
    """
    if name is None:
        return None
    if name in names:
        value = names[name]
        if value is None:
            raise BadUsage(f"--json-schema {name}: it is None", "give True for any JSON")
        return value.model_json_schema() if hasattr(value, "model_json_schema") else value
    try:
        return Path(name).expanduser().read_bytes()
    except OSError as error:
        raise BadUsage(
            f"--json-schema {name}: {error.strerror}, and no variable has that name",
            "define a dict of that name, or give a file with a schema",
        ) from None


def prompt_tokens(
    model: str,
    arguments: argparse.Namespace,
    text: str,
    system: str | None,
    talk: Talk | None = None,
) -> list[int]:
    """Return the prompt's tokens: one chat message, or the text as it is.

    :param talk: the conversation that it is the next message of.
    :raises BadUsage: ``--raw`` with what only a chat can have.
    :raises ErllamaError: ``no_template`` where a chat was asked for and the model has none.
    """
    if arguments.raw and (arguments.chat or system is not None or talk is not None):
        other = "--chat" if arguments.chat else "--session" if talk else "--system"
        raise BadUsage(f"--raw and {other} exclude each other", "leave one of them out")
    if talk is not None:
        talk.begun_with(system)
        with _mended(talk):
            return erllama_py.api.apply_chat_template(model, talk.request(text))
    if not arguments.raw:
        request: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
        if system is not None:
            request["system"] = system
        try:
            return erllama_py.api.apply_chat_template(model, request)
        except ErllamaError as error:
            if error.reason != "no_template" or arguments.chat or system is not None:
                raise
    return erllama_py.api.tokenize(model, text)


def generate(
    model: str,
    tokens: list[int],
    arguments: argparse.Namespace,
    surface: Surface,
    *,
    limit: int,
    keep: Callable[[Reply], None],
    schema: Any = None,
    talk: Talk | None = None,
) -> None:
    """Stream a reply to a surface.

    :param limit: most tokens of the reply.
    :param keep: is given the reply when it ends, however it ends.
    :param schema: what the reply has to satisfy.
    :param talk: the conversation that it is a part of.
    :raises KeyboardInterrupt: the cell was interrupted; the partial reply was kept.
    :raises ErllamaError: the request was refused, or the model died.
    """
    fingerprint = erllama_py.api.model_info(model)["fingerprint"].hex()
    reply = Reply(model, fingerprint, len(tokens), limit)
    reply.format = arguments.format or ("markdown" if schema is None else "json")
    reply.shows_thinking = arguments.thinking != "hide"
    options = _options(arguments, limit)
    if schema is not None:
        options["json_schema"] = schema
    if talk is None:
        stream = erllama_py.api.infer(model, tokens, options)
    else:
        options |= talk.options(model)
        with _mended(talk):
            stream = _settled(talk, model, tokens, options)
    assert isinstance(stream, erllama_py.api.Stream)
    reply.ref = stream.ref
    run = _Run(reply, stream, surface)
    try:
        run.follow()
    except KeyboardInterrupt:
        reply.interrupted = True
        stream.cancel()
        run.settle()
        raise
    finally:
        surface.grown(reply, complete=True)
        keep(reply)
    if stream.error:
        raise stream.error


@contextlib.contextmanager
def _mended(talk: Talk) -> Iterator[None]:
    """Give errors of a conversation's requests its own hints."""
    try:
        yield
    except ErllamaError as error:
        if error.reason == "context_overflow":
            error.hint = (
                f"the conversation is too long: %erllama session {talk.name} --end, another"
                " --session, or a larger --n-ctx of the load"
            )
        raise


def _settled(talk: Talk, model: str, tokens: list[int], options: dict[str, Any]) -> Any:
    """Start a stream, once what an interrupt stopped in the same session is over."""
    deadline = time.monotonic() + STEP_S
    while True:
        try:
            return erllama_py.api.infer(model, tokens, options)
        except ErllamaError as error:
            waits = talk.unsettled and error.reason == "sticky_busy"
            if not waits or time.monotonic() > deadline:
                raise
        time.sleep(POLL_S)


class _Run:
    """One stream on its way into a reply."""

    def __init__(self, reply: Reply, stream: erllama_py.api.Stream, surface: Surface) -> None:
        self._reply = reply
        self._stream = stream
        self._surface = surface
        self._started = time.monotonic()
        # A fragment may end inside a character: what is incomplete is not shown yet.
        self._decoder = _new_decoder("replace")
        self._aside: codecs.IncrementalDecoder | None = None
        """Of the thinking or the tool call that is being told."""

    def follow(self) -> None:
        """Draw until the stream ends."""
        with contextlib.suppress(StopIteration):
            while True:
                if event := self._stream.get(POLL_S):
                    self._take(event)
                if self._reply.tokens or self._reply.shown_asides:
                    self._surface.grown(self._reply, complete=False)
                else:
                    self._surface.waiting(self._reply)

    def settle(self) -> None:
        """Take what an interrupted stream still says, for a moment."""
        deadline = time.monotonic() + SETTLE_S
        with contextlib.suppress(StopIteration):
            while (left := deadline - time.monotonic()) > 0:
                if event := self._stream.get(left):
                    self._take(event)

    def _take(self, event: Event) -> None:
        reply = self._reply
        match event.kind:
            case "token":
                reply.text += self._decoder.decode(event.data)
                self._first()
            case "token_id" if event.token_id is not None:
                reply.tokens.append(event.token_id)
                self._first()
            case "thinking_delta" | "tool_call_delta":
                self._take_aside(event)
            case "thinking_end" | "tool_call_end":
                self._end_aside()
            case "logprobs" if event.logprobs is not None:
                reply.logprobs.append(event.logprobs)
            case "done" | "error":
                self._end_aside()
                reply.text += self._decoder.decode(b"", final=True)
                reply.stats = event.stats or {}

    def _take_aside(self, event: Event) -> None:
        fresh = self._aside is None
        self._aside = self._aside or _new_decoder("replace")
        aside = self._reply.aside(event.kind.removesuffix("_delta"), fresh=fresh)
        aside.text += self._aside.decode(event.data)
        self._first()

    def _end_aside(self) -> None:
        if self._aside is not None:
            self._reply.asides[-1].text += self._aside.decode(b"", final=True)
            self._aside = None

    def _first(self) -> None:
        if self._reply.first_token_ms is None:
            self._reply.first_token_ms = (time.monotonic() - self._started) * 1000


def _speculate(how: str | None) -> Any:
    return how if how in (None, "lookup", "false") else {"draft": how}


def _options(arguments: argparse.Namespace, limit: int) -> dict[str, Any]:
    options = {name: getattr(arguments, name) for name in _SAMPLER}
    options |= {
        "response_tokens": limit,
        "stop_sequences": arguments.stop,
        "exactness": arguments.exactness,
        "thinking": None if arguments.thinking == "off" else "enabled",
        "thinking_budget_tokens": arguments.thinking_budget,
        "speculate": _speculate(arguments.speculate),
        "logprobs": arguments.logprobs,
    }
    return {key: value for key, value in options.items() if value is not None}
