"""Elixir asks the node by its own means."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from erl_bridge.service import ErllamaNode
from erllama_py import api
from erllama_py.testing import stub_model
from tests.live.erlnode import COOKIE, unique_name
from tests.waiting import wait_for

SCRIPT = r"""
defmodule Mail do
  # In a module: the compiler of OTP 25 fails on these in the body of a script.
  def next(ref) do
    receive do
      message when elem(message, 1) == ref -> message
    after
      5000 -> {:late, ref}
    end
  end
end

[name] = System.argv()
node = String.to_atom(name)
:pong = Node.ping(node)
call = fn function, args -> :erpc.call(node, :erllama, function, args) end

# Strings are binaries, and nil counts as absent.
{:ok, %{reply: reply, generated: [t, t], finish_key: :undefined, stats: stats}} =
  call.(:complete, ["m", "one two", %{response_tokens: 2, parent_key: nil}])

^reply = "#{t} #{t}"
%{prompt_tokens: 2, finish_reason: :length, cancelled: false} = stats
{:ok, [_, _]} = :rpc.call(node, :erllama, :tokenize, ["m", "one two"])

# A process of the caller's reads the stream.
{:ok, ref} = call.(:infer, ["m", [1, 2, 3], %{response_tokens: 2}, self()])

kinds = for _ <- 1..5, do: elem(Mail.next(ref), 0)

[:erllama_token, :erllama_token_id, :erllama_token, :erllama_token_id, :erllama_done] = kinds

# GenServer, by name and by the model's pid.
:idle = GenServer.call({:erllama, node}, {:phase, "m"})
%{pid: pid} = GenServer.call({:erllama, node}, {:model_info, "m"})
{:ok, "1 2"} = GenServer.call(pid, {:detokenize, [1, 2]})
:idle = GenServer.call(pid, :status)

# A task's call, many at a time.
lengths =
  1..10
  |> Task.async_stream(fn n ->
    {:ok, %{context_tokens: tokens}} = call.(:prefill_only, ["m", Enum.to_list(1..n)])
    length(tokens)
  end)
  |> Enum.map(fn {:ok, length} -> length end)

^lengths = Enum.to_list(1..10)

# Failures.
{:noproc, {:erllama_model, :not_found, "nobody"}} =
  try do
    call.(:complete, ["nobody", "a"])
  catch
    :exit, {:exception, reason} -> reason
  end

{:badrpc, {:EXIT, {:undef, _}}} = :rpc.call(node, System, :cmd, ["true", []])
{:badrpc, {:EXIT, {:function_clause, _}}} = :rpc.call(node, :erllama, :phase, [:m])
{:error, {:invalid, :stop_sequences, "x"}} = call.(:complete, ["m", "a", %{stop_sequences: "x"}])

# A monitor on a model that it loads and unloads.
{:ok, "brief"} = call.(:load_model, ["brief", %{backend: :erllama_model_stub, in_process: true}])
%{pid: brief} = call.(:model_info, ["brief"])
monitor = Process.monitor(brief)
:ok = call.(:unload, ["brief"])
{:DOWN, ^monitor, :process, ^brief, :shutdown} = Mail.next(monitor)

# What it leaves behind ends with it.
{:ok, _} = call.(:infer, ["slow", [1], %{response_tokens: 4000}, self()])
IO.puts("all well")
"""


@pytest.fixture(scope="module")
def node() -> Iterator[ErllamaNode]:
    with (
        ErllamaNode(unique_name("llm"), cookie=COOKIE) as served,
        stub_model("m", context_opts={"n_seq_max": 2}),
        stub_model("slow", stub_opts={"step_delay_ms": 5}),
    ):
        yield served


@pytest.mark.parametrize("hidden", [False, True])
def test_a_plain_script(elixir: str, node: ErllamaNode, tmp_path: Path, hidden: bool) -> None:
    script = tmp_path / "script.exs"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [
            elixir,
            *("--erl", "-start_epmd false"),
            *("--sname", unique_name("ex"), "--cookie", COOKIE),
            *(("--hidden",) if hidden else ()),
            *(str(script), node.name),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == "all well", done.stderr
    wait_for(lambda: api.phase("slow") == "idle", seconds=5)
