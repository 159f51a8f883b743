"""Text and tokens on real vocabularies."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from erllama_py._backends import open_backend
from erllama_py._backends.base import Backend, BackendConfig, BackendError, ModelOptions, Row
from tests.models import smollm2_path

pytestmark = pytest.mark.model


def tokens_of(backend: Backend, text: bytes, *, parse_special: bool = False) -> list[int]:
    return backend.tokenize(text, special=True, parse_special=parse_special)


def test_special_tokens_are_added_where_the_vocabulary_asks(
    smollm2: Backend, gemma3: Backend
) -> None:
    assert tokens_of(gemma3, b"") == [2]
    assert gemma3.tokenize(b"", special=False, parse_special=False) == []
    assert tokens_of(smollm2, b"") == []
    assert (gemma3.info.bos, gemma3.info.eos) == ("<bos>", "<eos>")
    assert smollm2.info.eos == "<|im_end|>"


def test_special_syntax_is_read_only_on_request(smollm2: Backend) -> None:
    assert tokens_of(smollm2, b"<|im_start|>", parse_special=True) == [1]
    assert len(tokens_of(smollm2, b"<|im_start|>")) == 7


@pytest.mark.parametrize(
    "text",
    [b"Once upon a time", b"  two spaces", "grüße 世界 🦙".encode(), b"a\0b", b"x" * 5000],
    ids=["plain", "leading spaces", "unicode", "NUL", "long"],
)
def test_text_comes_back_from_its_tokens(llama: Backend, text: bytes) -> None:
    assert llama.detokenize(tokens_of(llama, text)) == text


def test_pieces_concatenate_and_may_be_part_of_a_character(llama: Backend) -> None:
    text = "🦙🦙 ꙮ".encode()
    pieces = [llama.piece(token) for token in tokens_of(llama, text)]
    assert b"".join(pieces) == text
    assert any(piece.decode(errors="replace") != piece.decode(errors="ignore") for piece in pieces)


def test_control_tokens_render_empty_and_end_generation(smollm2: Backend) -> None:
    [end] = tokens_of(smollm2, b"<|im_end|>", parse_special=True)
    assert smollm2.piece(end) == b""
    assert smollm2.detokenize([end, 28120, end]) == b"hello"
    assert smollm2.is_eog(end)
    assert not smollm2.is_eog(28120)


def test_invalid_utf8_is_tokenised_all_the_same(llama: Backend) -> None:
    assert tokens_of(llama, b"\xff\xfe abc \xc3")


@pytest.mark.parametrize("token", [-1, 2**31, 10**20])
def test_ids_outside_of_the_vocabulary_are_refused(llama: Backend, token: int) -> None:
    for call in (llama.piece, llama.is_eog, lambda t: llama.detokenize([5, t])):
        with pytest.raises(BackendError, match=str(token)) as refused:
            call(token)
        assert refused.value.reason == "invalid_token"


def test_limits_are_four_mebibytes_and_a_million_tokens(smollm2: Backend) -> None:
    for call in (
        lambda: tokens_of(smollm2, b"a" * (4 * 1024 * 1024 + 1)),
        lambda: tokens_of(smollm2, b"\x01\x02" * 600_000),
        lambda: smollm2.detokenize([5] * 1_048_577),
    ):
        with pytest.raises(BackendError) as refused:
            call()
        assert refused.value.reason == "too_large"
    assert smollm2.detokenize([]) == b""


def test_other_threads_tokenise_while_the_engine_computes(smollm2: Backend) -> None:
    text = b"The quick brown fox jumps over the lazy dog. " * 40
    expected = tokens_of(smollm2, text)
    stop = threading.Event()

    def control() -> int:
        rounds = 0
        while not stop.is_set() or not rounds:
            assert tokens_of(smollm2, text) == expected
            assert smollm2.detokenize(expected) == text
            rounds += 1
        return rounds

    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(control) for _ in range(2)]
        for pos in range(12):
            smollm2.step([Row(0, pos, [100 + pos], False)])
        stop.set()
        assert all(call.result() > 0 for call in calls)
    assert smollm2.length(0) == 12


def test_closing_waits_for_calls_of_other_threads() -> None:
    backend = open_backend(
        BackendConfig("llama", model_path=smollm2_path(), model=ModelOptions(vocab_only=True))
    )
    begun = threading.Event()

    def control() -> int:
        begun.set()
        return len(tokens_of(backend, b"hello world " * 20_000))

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(control)
        begun.wait()
        backend.close()
        outcome = call.exception() or call.result()
    # Either it was in time, or it came too late and was told so.
    assert outcome == 40_001 or getattr(outcome, "reason", None) == "released"
