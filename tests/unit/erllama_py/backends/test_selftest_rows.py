"""The self-test of whole rows, on backends that restore wrongly in one way each."""

from __future__ import annotations

import struct
import zlib
from array import array

import pytest

from erllama_py._backends.base import BackendConfig, ContextOptions, RestoreFailed
from erllama_py._backends.selftest import check_whole_rows
from erllama_py._backends.stub import StubBackend


class Subject(StubBackend):
    """The stub with logits that depend on every token before, as a model's do."""

    def copy_logits(self, row: int, out: memoryview) -> None:
        super().copy_logits(row, out)
        struct.pack_into("<I", out, 0, zlib.crc32(array("i", self._cells[0])))


class RestoresPositionsOnly(Subject):
    """What is found in the cells is what was computed there last."""

    last = array("i")

    def clear(self, seq: int) -> None:
        self.last = self._cells[seq][:] or self.last
        super().clear(seq)

    def unpack(self, seq: int, start: int, end: int, data: memoryview) -> None:
        super().unpack(seq, start, end, data)
        self._cells[seq][: len(self.last)] = self.last


class ForgetsWhatItShows(Subject):
    """The packed bytes are right, and the logits after them are not."""

    restored = 0

    def unpack(self, seq: int, start: int, end: int, data: memoryview) -> None:
        super().unpack(seq, start, end, data)
        self.restored += 1

    def copy_logits(self, row: int, out: memoryview) -> None:
        super().copy_logits(row, out)
        out[0] ^= self.restored


class PacksNothing(Subject):
    def pack(self, *_: object) -> int:
        return 0


class RefusesRows(Subject):
    def unpack(self, seq: int, start: int, end: int, data: memoryview) -> None:
        raise RestoreFailed("restore_failed", "no")


def make(kind: type[StubBackend], n_batch: int = 16) -> StubBackend:
    return kind(BackendConfig("stub", context=ContextOptions(n_ctx=256, n_batch=n_batch)))


@pytest.mark.parametrize("n_batch", [1, 7, 512])
def test_a_sound_backend_passes_and_is_left_empty(n_batch: int) -> None:
    subject = make(Subject, n_batch)
    verdict = check_whole_rows(subject)
    assert verdict.why_not == ""
    assert [(p.start, p.end, len(p.data)) for p in verdict.parts] == [
        (0, 16, 64),
        (0, 32, 128),
        (0, 37, 148),
    ]
    assert subject.length(0) == 0


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (RestoresPositionsOnly, "packs to other bytes"),
        (ForgetsWhatItShows, "logits after a row's restore differ"),
        (PacksNothing, "could not be packed"),
        (RefusesRows, "restore_failed"),
    ],
)
def test_a_backend_that_restores_wrongly_fails(kind: type[StubBackend], why: str) -> None:
    subject = make(kind)
    assert why in check_whole_rows(subject).why_not
    assert subject.length(0) == 0
