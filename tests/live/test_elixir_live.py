"""Elixir calls our functions; its own ways end in the same calls."""

from __future__ import annotations

import subprocess

import pytest

from tests.live.erlnode import COOKIE, unique_name
from tests.live.served import Served


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("Node.connect(n)", "true"),
        ("Node.ping(n)", ":pong"),
        (":rpc.call(n, :t, :add, [1, 2])", "3"),
        (":erpc.call(n, :t, :add, [1, 2])", "3"),
        (
            ':erpc.call(n, :t, :echo, [%{"a" => [1, 2.5, nil, true]}])',
            '%{"a" => [1, 2.5, nil, true]}',
        ),
        ("GenServer.call({:echo, n}, :hello)", "{:echo, :hello}"),
        (
            (
                "(try do :erpc.call(n, System, :halt, [1])"
                " rescue e in ErlangError -> elem(e.original, 1) end)"
            ),
            ":undef",
        ),
        (
            (
                "(try do :erpc.call(n, fn -> 1 end)"
                " rescue e in ErlangError -> elem(e.original, 1) end)"
            ),
            ":undef",
        ),
        (
            (
                "(Node.connect(n); Node.monitor(n, true); Node.disconnect(n);"
                " receive do {:nodedown, ^n} -> :down end)"
            ),
            ":down",
        ),
    ],
)
def test_from_elixir(elixir: str, served: Served, code: str, answer: str) -> None:
    """One expression, one fresh node."""
    result = subprocess.run(
        [
            elixir,
            *("--erl", "-start_epmd false"),
            *("--sname", unique_name("ex")),
            *("--cookie", COOKIE),
            *("-e", f"n = :'{served.name}'; IO.inspect({code})"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.stdout.strip() == answer, result.stderr
