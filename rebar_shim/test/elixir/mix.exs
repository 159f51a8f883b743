defmodule ErllamaUser.MixProject do
  @moduledoc "A project that has the OTP application as a dependency by path."
  use Mix.Project

  def project do
    [
      app: :erllama_user,
      version: "0.1.0",
      elixir: "~> 1.14",
      deps: [{:erllama, path: "../..", manager: :rebar3}]
    ]
  end

  def application, do: [extra_applications: [:logger]]
end
