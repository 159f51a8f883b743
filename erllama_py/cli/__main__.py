"""``python -m erllama_py.cli`` is the ``erllama`` command."""

from erllama_py.cli import main

main(prog_name="erllama")
