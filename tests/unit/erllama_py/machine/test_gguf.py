"""Headers as they should be, and every other kind."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from gguf import GGUFReader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erllama_py._cache.key import quant_byte
from erllama_py._machine import gguf
from erllama_py._machine.gguf import (
    FLOAT32,
    TEXT,
    GgufError,
    Header,
    Layout,
    Tensor,
    Value,
    bits_of,
    quantisation,
    read_header,
    read_layout,
    template_names,
)
from tests import ggufs
from tests.models import smollm2_path

VOCABULARY = ggufs.texts(b"tokenizer.ggml.tokens", [b"a", b"", b"word" * 40])
SCORES = ggufs.pair(b"tokenizer.ggml.scores", ggufs.ARRAY, struct.pack("<IQ", 6, 3) + bytes(12))
NAME = ggufs.pair(b"general.name", ggufs.TEXT, ggufs.text(b"A model"))
Q4_K_M = ggufs.number(b"general.file_type", 15)
WHOLE = ggufs.gguf(
    [NAME, VOCABULARY, SCORES, Q4_K_M], {b"one": bytes(400), b"two": b"\1" * 64, b"three": b"x" * 8}
)


@pytest.fixture
def written(tmp_path: Path):
    def write(content: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return write


def test_the_names_of_chat_templates(written) -> None:
    own = ggufs.pair(b"tokenizer.chat_template", ggufs.TEXT, ggufs.text(b"{{ messages }}" * 9000))
    tools = ggufs.pair(b"tokenizer.chat_template.tool_use", ggufs.TEXT, ggufs.text(b"{{ tools }}"))
    names = ggufs.texts(b"tokenizer.chat_templates", [b"tool_use"])
    assert template_names(written(ggufs.gguf([NAME, tools, names, own]))) == ["default", "tool_use"]
    assert template_names(written(WHOLE)) == []
    assert template_names(written(b"no GGUF at all, but long enough to look at")) == []
    assert template_names("/no/such/file.gguf") == []


def layout_of(path: Path) -> Layout:
    with path.open("rb") as file:
        return read_layout(file)


def header_of(path: Path) -> Header:
    with path.open("rb") as file:
        return read_header(file)


@pytest.mark.parametrize(
    ("number", "name", "bits", "code"),
    [
        (0, "f32", 32, 0),
        (1, "f16", 16, 1),
        (7, "q8_0", 8, 6),
        (15, "q4_k_m", 4, 7),
        (18, "q6_k", 6, 11),
        (29, "iq2_m", 2, 20),
        (32, "bf16", 16, 29),
        (15 | 1024, "q4_k_m", 4, 7),
        (21, "q2_k_s", 2, 255),
        (38, "mxfp4", 4, 255),
    ],
)
def test_llama_cpp_s_numbers_as_the_names_of_keys(written, number, name, bits, code) -> None:
    path = written(ggufs.gguf([NAME, ggufs.number(b"general.file_type", number)]))
    assert quantisation(path) == (name, bits)
    assert quant_byte(name) == code


def test_every_name_with_a_code_has_a_number_but_one_and_all_have_bits() -> None:
    names = {name for name in gguf._FILE_TYPES if name}
    coded = {name for name in names if quant_byte(name) != 255}
    assert len(coded) == 29  # q8_k is an intermediate of the engine's, never a file's
    assert all(bits_of(name) in (1, 2, 3, 4, 5, 6, 8, 16, 32) for name in names)
    assert bits_of("q8_k") == 8
    assert bits_of("mine") is bits_of("") is None


@pytest.mark.parametrize("pairs", [[], [NAME], [ggufs.number(b"general.file_type", 4)]])
def test_a_file_that_does_not_say(written, pairs) -> None:
    assert quantisation(written(ggufs.gguf(pairs))) is None


@pytest.mark.parametrize("number", [5, 33, 1000, 2**32 - 1])
def test_numbers_that_mean_nothing(written, number) -> None:
    assert quantisation(written(ggufs.gguf([ggufs.number(b"general.file_type", number)]))) is None


def test_a_file_type_behind_the_vocabulary(written) -> None:
    assert quantisation(written(WHOLE)) == ("q4_k_m", 4)


def test_tensors_are_where_the_header_says(written) -> None:
    layout = layout_of(written(WHOLE))
    (one, two), (three, four), (five, end) = layout.tensors
    assert layout.data == one
    assert one % 32 == 0
    assert WHOLE[three : three + 64] == b"\1" * 64
    assert WHOLE[five:end] == b"x" * 8
    assert (two, four, end) == (three, five, len(WHOLE))


def test_the_alignment_is_the_file_s_own(written) -> None:
    pairs = [ggufs.number(b"general.alignment", 256)]
    content = ggufs.gguf(pairs, {b"one": b"\1" * 8}, alignment=256)
    layout = layout_of(written(content))
    assert layout.data == 256
    assert content[layout.data : layout.data + 8] == b"\1" * 8


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_texts_longer_than_a_window_and_many_of_them(written, monkeypatch, count) -> None:
    monkeypatch.setattr(gguf, "_WINDOW", 64)
    words = [b"w" * (i % 200) for i in range(count)]
    path = written(ggufs.gguf([ggufs.texts(b"t", words), Q4_K_M], {b"one": bytes(64)}))
    assert quantisation(path) == ("q4_k_m", 4)
    assert layout_of(path).data == path.stat().st_size - 64


HUGE = struct.pack("<Q", 2**62)
DAMAGED = {
    "nothing": b"",
    "no magic": b"FUGG" + WHOLE[4:],
    "version 1": WHOLE[:4] + struct.pack("<I", 1) + WHOLE[8:],
    "big-endian": WHOLE[:4] + struct.pack(">I", 3) + WHOLE[8:],
    "endless tensors": WHOLE[:8] + HUGE + WHOLE[16:],
    "endless pairs": WHOLE[:16] + HUGE + WHOLE[24:],
    "endless key": WHOLE[:24] + HUGE + WHOLE[32:],
    "endless text": ggufs.gguf([ggufs.pair(b"k", ggufs.TEXT, HUGE)]) + bytes(100),
    "endless array": ggufs.gguf([ggufs.pair(b"k", ggufs.ARRAY, struct.pack("<I", 6) + HUGE)]),
    "endless texts": ggufs.gguf([ggufs.pair(b"k", ggufs.ARRAY, struct.pack("<I", 8) + HUGE)]),
    "an array of arrays": ggufs.gguf([ggufs.pair(b"k", 9, struct.pack("<IQ", 9, 1) + bytes(64))]),
    "an unknown type": ggufs.gguf([ggufs.pair(b"k", 77, bytes(64))]),
    "noise": b"GGUF" + struct.pack("<I", 3) + bytes(range(256)) * 20,
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_headers_are_named_errors(written, content) -> None:
    path = written(content)
    with pytest.raises(GgufError):
        layout_of(path)


def test_tensors_beyond_the_end(written) -> None:
    with pytest.raises(GgufError, match="ends before"):
        layout_of(written(WHOLE[:-200]))


def test_a_pipe_and_a_folder_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "absent"):
        with pytest.raises(GgufError, match="not a file"):
            quantisation(path)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    cut=st.integers(0, len(WHOLE)),
    changes=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.binary(max_size=9)), max_size=4),
)
def test_whatever_is_damaged_reads_or_is_refused(written, cut, changes) -> None:
    content = bytearray(WHOLE)
    for at, new in changes:
        content[at : at + len(new)] = new
    path = written(bytes(content[:cut]))
    for read in (quantisation, layout_of, header_of):
        try:
            found = read(path)
        except GgufError:
            continue
        if isinstance(found, Layout):
            assert all(0 <= start <= end <= cut for start, end in found.tensors)


def test_a_header_has_values_and_shapes(written) -> None:
    alpha = ggufs.pair(b"alpha", ggufs.F32, struct.pack("<f", 4.0))
    long = ggufs.pair(b"long", ggufs.TEXT, ggufs.text(b"x" * (1 << 17)))
    path = written(ggufs.gguf([NAME, VOCABULARY, alpha, long, Q4_K_M], {b"one": bytes(400)}))
    header = header_of(path)
    assert header.values == {
        b"general.name": Value(TEXT, b"A model"),
        b"tokenizer.ggml.tokens": Value(ggufs.ARRAY, None),
        b"alpha": Value(FLOAT32, 4.0),
        b"long": Value(TEXT, None),
        b"general.file_type": Value(ggufs.U32, 15),
    }
    assert header.tensors == {b"one": Tensor((100,), 0, 0)}
    assert header.data == layout_of(path).data


def test_two_tensors_of_a_name_are_damage(written) -> None:
    content = ggufs.gguf([], {b"one": bytes(8), b"two": bytes(8)})
    assert header_of(written(content)).tensors.keys() == {b"one", b"two"}
    with pytest.raises(GgufError, match="two tensors"):
        header_of(written(content.replace(b"two", b"one")))


@pytest.mark.model
def test_a_header_is_what_another_reader_reads() -> None:
    path = Path(smollm2_path())
    header, reference = header_of(path), GGUFReader(path)
    assert header.data == reference.data_offset
    assert {
        name.decode(): (tensor.shape, tensor.kind, header.data + tensor.offset)
        for name, tensor in header.tensors.items()
    } == {
        tensor.name: (tuple(map(int, tensor.shape)), tensor.tensor_type, tensor.data_offset)
        for tensor in reference.tensors
    }
    fields = {name for name in reference.fields if not name.startswith("GGUF.")}
    assert {key.decode() for key in header.values} == fields


@pytest.mark.model
def test_a_real_model() -> None:
    path = Path(smollm2_path())
    assert quantisation(path) == ("q4_1", 4)
    layout = layout_of(path)
    assert len(layout.tensors) == 272
    assert layout.tensors[-1][1] == path.stat().st_size
