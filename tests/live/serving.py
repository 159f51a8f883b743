"""erllama's node in this process, and an Erlang node that asks it in every way there is."""

from __future__ import annotations

import re
from typing import Any

from erl_bridge.service import ErllamaNode
from tests.live.erlnode import COOKIE, ErlNode, unique_name

MODEL = '<<"m">>'
"""The stub model most tests ask, as an Erlang term."""


class Serving:
    """A node under test and the peer that calls it.

    :param options: of :class:`~erl_bridge.service.ErllamaNode`.
    """

    def __init__(self, peer: ErlNode, **options: Any) -> None:
        self.peer = peer
        self.node = ErllamaNode(unique_name("llm"), cookie=COOKIE, **options)
        self.node.start()

    @property
    def name(self) -> str:
        return self.node.name

    def stop(self) -> None:
        self.node.stop()

    def eval(self, expression: str, timeout: float = 30) -> str:
        """Evaluate at the peer.  N stands for our node, ``erllama:`` calls are made there."""
        return self.peer.eval(self.expand(expression), timeout)

    def expand(self, expression: str) -> str:
        """Write out N and the calls: ``erllama:f(A)`` becomes an ``erpc:call``."""
        whole = re.sub(r"\bN\b", f"'{self.name}'", expression)
        return _calls_expanded(whole, self.name)

    def ask(self, via: str, function: str, args: str) -> str:
        """Return the expression of one call.

        :param via: ``rpc``, ``erpc``, ``name`` (a gen_server call to ``{erllama, Node}``),
            or ``pid`` (one to the model's process, with ``args`` less the model).
        """
        match via:
            case "rpc" | "erpc":
                return f"{via}:call('{self.name}', erllama, {function}, [{args}])"
            case "name":
                request = f"{{{function}, {args}}}" if args else function
                return f"gen_server:call({{erllama, '{self.name}'}}, {request})"
            case _:
                rest = args.partition(",")[2]
                request = f"{{{function}, {rest}}}" if rest else function
                info = f"erpc:call('{self.name}', erllama, model_info, [{MODEL}])"
                return f"gen_server:call(maps:get(pid, {info}), {request})"


def _calls_expanded(text: str, node: str) -> str:
    out, at = "", 0
    for call in re.finditer(r"\berllama:(\w+)\(", text):
        if call.start() < at:  # inside the arguments of one that is done
            continue
        end = _closing(text, call.end())
        args = _calls_expanded(text[call.end() : end], node)
        out += text[at : call.start()] + f"erpc:call('{node}', erllama, {call[1]}, [{args}])"
        at = end + 1
    return out + text[at:]


def _closing(text: str, at: int) -> int:
    """Return where the parenthesis that was opened before ``at`` is closed."""
    depth, quoted = 1, False
    for index in range(at, len(text)):
        char = text[index]
        if char == '"':
            quoted = not quoted
        elif not quoted:
            depth += (char == "(") - (char == ")")
            if depth == 0:
                return index
    raise ValueError(f"no closing parenthesis: {text[at:]}")
