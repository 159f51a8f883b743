"""The lines a user pastes to reach a node from Erlang or Elixir.  Pure."""

from __future__ import annotations

import shlex
from pathlib import Path

__all__ = ("cookie_source", "lines")

_IPV6 = "-proto_dist inet6_tcp"


def cookie_source(cookie: str | None, cookie_file: Path | None) -> str | None:
    """Return shell text that gives the cookie; ``None`` where erl finds it by itself."""
    if cookie_file:
        return f'"$(cat {shlex.quote(str(cookie_file.resolve()))})"'
    return shlex.quote(cookie) if cookie else None


def lines(node: str, cookie: str | None, model: str | None) -> list[str]:
    """Return what to paste: a shell line and a call, for ``erl`` and for ``iex``."""
    host = node.partition("@")[2]
    if ":" in host:  # an IPv6 address: long names, over a protocol that has to be asked for
        name, erl_flags, iex_flags = "-name shell@::1", f" {_IPV6}", f' --erl "{_IPV6}"'
    else:
        name = "-name shell@127.0.0.1" if "." in host else "-sname shell"
        erl_flags = iex_flags = ""
    erl_cookie = f" -setcookie {cookie}" if cookie else ""
    iex_cookie = f" --cookie {cookie}" if cookie else ""
    if model is None:
        erl_call = f"rpc:call('{node}', erllama, counters, [])."
        iex_call = f':rpc.call(:"{node}", :erllama, :counters, [])'
    else:
        prompt = "Once upon a time"
        erl_call = (
            f"rpc:call('{node}', erllama, complete,"
            f' [<<"{model}">>, <<"{prompt}">>, #{{response_tokens => 32}}]).'
        )
        iex_call = (
            f':rpc.call(:"{node}", :erllama, :complete,'
            f' ["{model}", "{prompt}", %{{response_tokens: 32}}])'
        )
    return [
        "",
        f"  erl{erl_flags} {name}{erl_cookie}",
        f"    {erl_call}",
        "",
        f"  iex{iex_flags} -{name}{iex_cookie}",
        f"    {iex_call}",
        "",
    ]
