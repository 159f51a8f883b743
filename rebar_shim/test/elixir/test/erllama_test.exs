defmodule ErllamaTest do
  use ExUnit.Case

  @moduledoc "The façade from Elixir.  Mix has started the application with config.exs."

  setup context do
    options = Map.merge(%{backend: :erllama_model_stub}, context[:load] || %{})
    {:ok, model} = :erllama.load_model(options)
    on_exit(fn -> :erllama.unload(model) end)
    {:ok, model: model}
  end

  test "the application is up and connected" do
    assert {:up, node} = :erllama_link.status()
    assert Atom.to_string(node) == System.fetch_env!("ERLLAMA_TEST_NODE")
  end

  test "a completion", %{model: model} do
    assert {:ok, %{reply: reply, generated: [t, t], finish_key: :undefined, stats: stats}} =
             :erllama.complete(model, "one two", %{response_tokens: 2})

    assert reply == "#{t} #{t}"
    assert %{prompt_tokens: 2, finish_reason: :length, cancelled: false} = stats
  end

  test "nil counts as absent", %{model: model} do
    assert {:ok, _} = :erllama.complete(model, "a", %{parent_key: nil, response_tokens: 1})
  end

  test "a stream", %{model: model} do
    {:ok, tokens} = :erllama.tokenize(model, "one two three")
    {:ok, ref} = :erllama.infer(model, tokens, %{response_tokens: 2}, self())
    assert_receive {:erllama_token, ^ref, text}, 5000
    assert_receive {:erllama_token_id, ^ref, id}, 5000
    assert text == Integer.to_string(id)
    assert_receive {:erllama_done, ^ref, %{completion_tokens: 2, prompt_tokens: 3}}, 5000
  end

  @tag load: %{stub_opts: %{step_delay_ms: 5}}
  test "cancelling a stream", %{model: model} do
    {:ok, ref} = :erllama.infer(model, [1], %{response_tokens: 4000}, self())
    assert_receive {:erllama_token, ^ref, _}, 5000
    assert :ok = :erllama.cancel(ref)
    assert_receive {:erllama_done, ^ref, %{cancelled: true, finish_reason: :cancelled}}, 5000
  end

  test "a monitor on a model", %{model: model} do
    %{pid: pid} = :erllama.model_info(model)
    monitor = Process.monitor(pid)
    assert :ok = :erllama.unload(model)
    assert_receive {:DOWN, ^monitor, :process, ^pid, :shutdown}, 5000
  end

  test "failures are Erlang's own" do
    assert {:noproc, {:erllama_model, :not_found, "nobody"}} =
             catch_exit(:erllama.complete("nobody", "a"))

    assert_raise FunctionClauseError, fn -> :erllama.complete(:nobody, "a") end
    assert {:error, :not_found} = :erllama.unload("nobody")
    assert :idle = :erllama.phase("nobody")
  end

  test "a real model" do
    path = System.fetch_env!("ERLLAMA_TEST_MODEL")
    assert {:ok, model} = :erllama.load_model("from elixir", %{model_path: path})
    request = %{messages: [%{role: "user", content: "Say hello."}]}
    assert {:ok, tokens} = :erllama.apply_chat_template(model, request)
    assert {:ok, %{context_tokens: ^tokens}} = :erllama.prefill_only(model, tokens)
    assert :ok = :erllama.unload(model)
  end
end
