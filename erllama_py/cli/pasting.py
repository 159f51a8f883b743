"""The lines a user pastes to reach a node from Erlang or Elixir.  Pure."""

from __future__ import annotations

import shlex
from pathlib import Path

__all__ = ("cookie_source", "lines")


def cookie_source(cookie: str | None, cookie_file: Path | None) -> str | None:
    """Return shell text that gives the cookie; ``None`` where erl finds it by itself."""
    if cookie_file:
        return f'"$(cat {shlex.quote(str(cookie_file.resolve()))})"'
    return shlex.quote(cookie) if cookie else None


def lines(node: str, cookie: str | None, model: str | None) -> list[str]:
    """Return what to paste: a shell line and a call, for ``erl`` and for ``iex``."""
    long_names = "." in node.partition("@")[2]
    host = "@127.0.0.1" if long_names else ""
    name = f"{'-name' if long_names else '-sname'} shell{host}"
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
        f"  erl {name}{erl_cookie}",
        f"    {erl_call}",
        "",
        f"  iex -{name}{iex_cookie}",
        f"    {iex_call}",
        "",
    ]
