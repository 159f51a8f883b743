"""Text that a command is given: on its line, or on standard input."""

from __future__ import annotations

import sys

import click

__all__ = ("prompt_of", "read_input")


def prompt_of(argument: str) -> str:
    """Return the prompt that an argument means: itself, or for ``-`` standard input.

    :raises click.UsageError: it is no text.
    """
    if argument == "-":
        return read_input().removesuffix("\n")  # which ends every line that is piped
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise click.UsageError("PROMPT is no text in this locale's encoding") from None
    return argument


def read_input() -> str:
    """Return all of standard input.

    :raises click.UsageError: it is no text.
    """
    if sys.stdin is None:  # closed by whoever started us
        return ""
    encoding = sys.stdin.encoding
    try:
        # By the encoding, strictly: a locale's own handler may let bytes through.
        return sys.stdin.buffer.read().decode(encoding).replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise click.UsageError(
            f"standard input is no {encoding} text: byte {byte:#04x} at {error.start}"
        ) from None
