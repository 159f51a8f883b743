"""llama.cpp models as supervised processes with a token-exact KV cache."""

__version__ = "0.1.0"
