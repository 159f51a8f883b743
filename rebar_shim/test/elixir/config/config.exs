import Config

# As in a project of one's own, but that the node of the tests is named by the environment.
config :erllama,
  node: System.fetch_env!("ERLLAMA_TEST_NODE"),
  cookie: System.fetch_env!("ERLLAMA_TEST_COOKIE"),
  required: true
