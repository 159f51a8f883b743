"""The engine's log: kept, bounded, handed on, and never on our descriptors."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from erllama_py._backends import native_log
from erllama_py._backends.native_log import CONTINUED, ERROR, INFO, LogLine

# The engine calls this function; the tests call it as the engine does.
receive = native_log._receive


@pytest.fixture
def heard() -> Iterator[list[LogLine]]:
    lines: list[LogLine] = []
    native_log.set_listener(lines.append)
    yield lines
    native_log.set_listener(None)


def test_lines_are_put_together_from_pieces(heard: list[LogLine]) -> None:
    receive(INFO, b"loading ", None)
    receive(CONTINUED, b"tensors\nand", None)
    receive(CONTINUED, b" more\n", None)
    receive(CONTINUED, b".", None)
    receive(CONTINUED, b"\n", None)
    receive(ERROR, b"one\ntwo\n", None)
    assert [(line.level, line.text) for line in heard] == [
        (INFO, "loading tensors"),
        (INFO, "and more"),
        (ERROR, "one"),
        (ERROR, "two"),
    ]


def test_errors_since_a_point_are_the_last_few() -> None:
    receive(ERROR, b"before\n", None)
    point = native_log.mark()
    assert native_log.errors_since(point) == []
    receive(INFO, b"fine\n", None)
    for number in range(6):
        receive(ERROR, b"error %d\n" % number, None)
    assert native_log.errors_since(point, 2) == ["error 4", "error 5"]
    for _ in range(2000):
        receive(INFO, b"chatter\n", None)
    assert native_log.errors_since(point) == []


def test_a_failing_listener_and_bad_bytes_do_no_harm(capfd: pytest.CaptureFixture[str]) -> None:
    def fail(line: LogLine) -> None:
        raise RuntimeError(line.text)

    native_log.set_listener(fail)
    try:
        receive(ERROR, b"\xff bad\n", None)
    finally:
        native_log.set_listener(None)
    assert native_log.errors_since(native_log.mark() - 1) == ["\ufffd bad"]
    assert capfd.readouterr() == ("", "")


def test_standard_error_is_captured_and_given_back(capfd: pytest.CaptureFixture[str]) -> None:
    point = native_log.mark()
    with native_log.stderr_captured():
        os.write(2, b"parse: no such rule\n\n")
    os.write(2, b"mine\n")
    assert native_log.errors_since(point) == ["parse: no such rule"]
    assert capfd.readouterr().err == "mine\n"
