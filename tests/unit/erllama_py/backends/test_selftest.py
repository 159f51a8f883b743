"""The block self-test, on backends that restore wrongly in one way each."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from erllama_py._backends.base import BackendConfig, ContextOptions, RestoreFailed, Row
from erllama_py._backends.selftest import check_blocks
from erllama_py._backends.stub import StubBackend


class Subject(StubBackend):
    """The stub with logits that depend on every token before, as a model's do."""

    def copy_logits(self, row: int, out: memoryview) -> None:
        super().copy_logits(row, out)
        struct.pack_into("<I", out, 0, hash(tuple(self._cells[0])) & 0xFFFFFFFF)


class LosesATail(Subject):
    def unpack(self, seq: int, start: int, end: int, data: memoryview) -> None:
        super().unpack(seq, start, end, data)
        self.truncate(seq, end - 1)


class ChangesAValue(Subject):
    def unpack(self, seq: int, start: int, end: int, data: memoryview) -> None:
        super().unpack(seq, start, end, data)
        self._cells[seq][start] ^= 1


class PacksNothing(Subject):
    def pack(self, *_: Any) -> int:
        return 0


class RefusesTheSecond(Subject):
    def unpack(self, seq: int, start: int, end: int, data: memoryview) -> None:
        if start:
            raise RestoreFailed("restore_failed", "no")
        super().unpack(seq, start, end, data)


def make(kind: type[StubBackend], n_batch: int = 16) -> StubBackend:
    return kind(BackendConfig("stub", context=ContextOptions(n_ctx=256, n_batch=n_batch)))


@pytest.mark.parametrize("n_batch", [1, 7, 16, 512])
def test_a_sound_backend_passes_and_is_left_empty(n_batch: int) -> None:
    subject = make(Subject, n_batch)
    verdict = check_blocks(subject)
    assert verdict.why_not == ""
    assert [(p.start, p.end, len(p.data)) for p in verdict.parts] == [
        (0, 16, 64),
        (16, 32, 64),
        (0, 37, 148),
    ]
    assert subject.length(0) == 0
    subject.step([Row(0, 0, [1], True)])


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (LosesATail, "of 15 tokens"),
        (ChangesAValue, "logits after a restore differ"),
        (PacksNothing, "could not be packed"),
        (RefusesTheSecond, "restore_failed"),
    ],
)
def test_a_backend_that_restores_wrongly_fails(kind: type[StubBackend], why: str) -> None:
    subject = make(kind)
    assert why in check_blocks(subject).why_not
    assert subject.length(0) == 0
