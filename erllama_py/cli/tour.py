"""``erllama demo``: what this is for, in a minute, with real times."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import time
from pathlib import Path

import click

from erllama_py import api
from erllama_py.cli.serving import running_node
from erllama_py.config import EVERYDAY_POLICY

__all__ = ("run",)

PROMPT_TOKENS = 600
REPLY_TOKENS = 32
ERL_TIMEOUT_S = 120

_TEXT = (
    "The lighthouse keeper wrote a line in the log every evening, and no two lines were"
    " alike. On the {}th day of the year the wind came from the north, the lamp burned"
    " well, and {} ships went by before midnight. "
)


def run(model: str) -> None:
    """Load a model and answer the same prompt cold and warm, here and from Erlang."""
    began = time.perf_counter()
    config = {"model_path": model, "policy": EVERYDAY_POLICY}
    with api.load_model("demo", config) as loaded:
        click.echo(f"loaded {model} in {time.perf_counter() - began:.1f} s")
        prompt = _prompt(loaded, "")
        tokens = len(api.tokenize(loaded, prompt))
        click.echo(f"\na prompt of {tokens} tokens, {REPLY_TOKENS} tokens of reply:")
        cold = _answer(loaded, prompt)
        warm = _answer(loaded, prompt)
        click.echo(f"  the first token came {cold / warm:.0f} times sooner")
        _from_erlang(loaded)
    click.echo("\nnow the notebook:\n  make notebook")


def _prompt(model: str, start: str) -> str:
    text = start + "".join(_TEXT.format(day, day % 7) for day in range(1, 40))
    whole = api.tokenize(model, text)
    return str(api.detokenize(model, whole[:PROMPT_TOKENS]))


def _answer(model: str, prompt: str) -> float:
    """Stream one reply, say how it went, and return the seconds to its first token."""
    tokens = api.tokenize(model, prompt)
    began = time.perf_counter()
    first = 0.0
    kind = ""
    for event in api.infer(model, tokens, {"response_tokens": REPLY_TOKENS}):
        if event.token_id is not None and not first:
            first = time.perf_counter() - began
        if event.stats:
            kind = event.stats["cache_hit_kind"]
    whole = time.perf_counter() - began
    click.echo(
        f"  {kind:>7}: first token {first * 1000:7.1f} ms, whole reply {whole * 1000:7.1f} ms"
    )
    return first


def _from_erlang(model: str) -> None:
    """Ask the same of the node from a real Erlang, where there is one."""
    erl = shutil.which("erl")
    if erl is None:
        click.echo("\nno erl here: install Erlang (Debian: erlang-base) to see it answer one")
        return
    cookie = secrets.token_hex(8)
    suffix = secrets.token_hex(3)
    with running_node(f"erllama_demo_{suffix}", roots=[Path.cwd()], cookie=cookie) as served:
        node = served.name
        # Another beginning, so that nothing of it is cached.
        prompt = _prompt(model, "From the Erlang side. ")
        click.echo(f"\nthe same from Erlang, by rpc:call to {node}:")
        script = _SCRIPT.format(node=node, model=model, prompt=_binary(prompt), reply=REPLY_TOKENS)
        command = [erl, "-noshell", "-hidden", "-sname", f"demo_{suffix}", "-setcookie", cookie]
        done = subprocess.run(
            [*command, "-eval", script],
            capture_output=True,
            text=True,
            timeout=ERL_TIMEOUT_S,
            check=False,
        )
    click.echo(done.stdout.rstrip() or f"  erl failed: {done.stderr.strip()}")


def _binary(text: str) -> str:
    return "<<" + ",".join(map(str, text.encode())) + ">>"


_SCRIPT = """
Ask = fun() ->
    T0 = erlang:monotonic_time(millisecond),
    {{ok, #{{stats := Stats, cache_hit_kind := Kind}}}} =
        rpc:call('{node}', erllama, complete,
                 [<<"{model}">>, {prompt}, #{{response_tokens => {reply}}}]),
    T1 = erlang:monotonic_time(millisecond),
    io:format("  ~7s: prompt ~5b ms, reply ~5b ms, whole call ~5b ms~n",
              [Kind, maps:get(prefill_ms, Stats), maps:get(generation_ms, Stats), T1 - T0])
end,
Ask(), Ask(), halt().
"""
