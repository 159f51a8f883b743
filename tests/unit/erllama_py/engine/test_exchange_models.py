"""Rows as files with real models: what is exported is the engine's own, and comes back."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as native
import pytest

from erllama_py import api
from erllama_py._backends import open_backend
from erllama_py._backends.base import BackendConfig, ContextOptions, Row
from erllama_py._cache import kvc
from erllama_py._cache.kvcfile import KvcDirectory
from erllama_py._engine.registry import core
from erllama_py.config import EVERYDAY_POLICY
from erllama_py.errors import ErllamaError
from erllama_py.testing import record
from tests.backends import CHUNK, prefill, prompt
from tests.models import gemma3_path, hybrid_path, mamba_path, smollm2_path
from tests.waiting import wait_for

pytestmark = [pytest.mark.model, pytest.mark.timeout(180)]

THREADS = {"n_threads": 1, "n_threads_batch": 2}


def loaded(path: str, **context: Any) -> api.Model:
    return api.load_model(
        {
            "model_path": path,
            "policy": EVERYDAY_POLICY,
            "context_opts": {"n_ctx": 2048, **THREADS, **context},
        }
    )


def ids(model: api.Model, count: int) -> list[int]:
    """Tokens that repeat nothing for a while."""
    vocabulary = min(core().host(model).info.n_vocab, 20_000)
    return [(i * i * 31 + i * 17 + 11) % (vocabulary - 3) + 3 for i in range(count)]


def reply(model: api.Model, tokens: list[int], **options: Any) -> tuple[str, int, list[int]]:
    events = record(api.infer(model, tokens, {"response_tokens": 12, **options}))
    stats = events[-1].stats
    assert stats is not None, events[-1]
    said = [event.token_id for event in events if event.token_id is not None]
    return str(stats["cache_hit_kind"]), stats["prefix_len"], said


def saved(model: api.Model, tokens: list[int]) -> bytes:
    key: bytes = api.prefill_only(model, tokens)["finish_key"]
    wait_for(lambda: core().cache.holds(key))
    return key


def emptied() -> None:
    def empty() -> bool:
        core().cache.gc()
        return not core().cache.snapshot(limit=0)["blocks"]["payloads"]

    wait_for(empty)
    core().cache.counters.reset()


def refused(path: Path, **options: Any) -> Any:
    with pytest.raises(ErllamaError) as caught:
        api.import_rows(path, **options)
    return caught.value.reason


def untagged(path: str, payload: bytes | None = None) -> Path:
    """Write a row as the original would, without our records."""
    data = Path(path).read_bytes()
    facts = kvc.parse_meta(data)
    known = {name: getattr(facts.meta, name) for name in facts.meta.__struct_fields__}
    meta = kvc.Meta(**{**known, "engine": b"", "grade": ""})
    body = data[facts.payload_offset :] if payload is None else payload
    return KvcDirectory(Path(tempfile.mkdtemp(dir=Path(path).parent))).save(meta, body).path


def engines_own(path: str, tokens: list[int], seq: int, cut: int = CHUNK, **context: Any) -> bytes:
    """Compute tokens in a context without any of our cache; return that sequence's state."""
    options = ContextOptions(**{"n_ctx": 2048, "n_seq_max": 4, **THREADS, **context})
    backend: Any = open_backend(BackendConfig("llama", model_path=path, context=options))
    for at in range(0, len(tokens), cut):
        run = tokens[at : at + cut]
        backend.step([Row(seq, at, run, logits=False)])
    size = native.llama_state_seq_get_size(backend._context, seq)
    data = (ctypes.c_uint8 * size)()
    assert native.llama_state_seq_get_data(backend._context, data, size, seq) == size
    backend.close()
    return bytes(data)


# -- full attention -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2() -> Iterator[api.Model]:
    with loaded(smollm2_path(), n_seq_max=2) as model:
        yield model


def test_an_exported_payload_is_the_engines_own_state_of_the_sequence(
    smollm2: api.Model, tmp_path: Path
) -> None:
    tokens = ids(smollm2, 300)
    data = Path(api.export_row(saved(smollm2, tokens), tmp_path)).read_bytes()
    facts = kvc.parse_meta(data)
    chunk = core().host(smollm2).cache._chunk
    own = engines_own(smollm2_path(), tokens, 0, cut=chunk)
    assert data[facts.payload_offset :] == own


def test_a_row_is_exact_after_export_and_import_and_says_the_same(
    smollm2: api.Model, tmp_path: Path
) -> None:
    tokens = ids(smollm2, 333)
    path = api.export_row(saved(smollm2, tokens), tmp_path)
    emptied()
    cold = reply(smollm2, tokens)
    emptied()
    api.import_rows(path)
    warm = reply(smollm2, tokens)
    assert (cold[:2], warm[:2]) == (("cold", 0), ("exact", 333))
    assert warm[2] == cold[2]


def test_a_reply_goes_on_from_an_imported_conversation(smollm2: api.Model, tmp_path: Path) -> None:
    first = smollm2.complete("The lighthouse keeper wrote " * 20, response_tokens=8)
    wait_for(lambda: core().cache.holds(first["finish_key"]))
    path = api.export_row(first["finish_key"], tmp_path)
    turn = [*first["context_tokens"], *smollm2.tokenize(" And then")]
    expected = reply(smollm2, turn)
    emptied()
    api.import_rows(path)
    found = reply(smollm2, turn, parent_key=first["finish_key"])
    assert found[:2] == ("partial", first["committed_tokens"])
    assert found[2] == expected[2]
    assert api.counters()["hits_resume"] == 1


def test_a_file_of_the_originals_kind_serves_on_somebodys_word(
    smollm2: api.Model, tmp_path: Path
) -> None:
    """Its payload names whatever sequence the original had it in."""
    tokens = ids(smollm2, 200)
    path = api.export_row(saved(smollm2, tokens), tmp_path)
    emptied()
    cold = reply(smollm2, tokens)
    emptied()
    theirs = untagged(path, engines_own(smollm2_path(), tokens, 3))
    assert refused(theirs) == "untrusted"
    api.import_rows(theirs, trust=True)
    warm = reply(smollm2, tokens)
    assert warm[:2] == ("exact", 200)
    assert warm[2] == cold[2]


def test_payloads_with_damage_in_their_tables_never_reach_the_engine(
    smollm2: api.Model, tmp_path: Path
) -> None:
    tokens = ids(smollm2, 200)
    path = api.export_row(saved(smollm2, tokens), tmp_path)
    emptied()
    data = Path(path).read_bytes()
    payload = data[kvc.parse_meta(data).payload_offset :]
    pid = core().host(smollm2).os_pid
    for at, bit in (
        (0, 1),
        (8, 1),
        (12, 1),
        (16, 1),
        (19, 0x80),
        (20, 1),
        (24, 4),
        (12 + 12 * 200, 1),
    ):
        damaged = bytearray(payload)
        damaged[at] ^= bit
        assert refused(untagged(path, bytes(damaged)), trust=True) == "rejected", at
    for cut in (payload[:-1], payload[: len(payload) // 2], payload + bytes(4), payload[:3]):
        assert refused(untagged(path, cut), trust=True) == "rejected"
    assert api.counters()["corrupt_files"] == 12
    assert core().host(smollm2).os_pid == pid
    assert reply(smollm2, tokens)[:2] == ("cold", 0)


# -- a sliding window of 512 --------------------------------------------------------------


@pytest.fixture(scope="module")
def gemma3() -> Iterator[api.Model]:
    with loaded(gemma3_path()) as model:
        yield model


def test_a_row_within_the_window_is_blocks_again(gemma3: api.Model, tmp_path: Path) -> None:
    tokens = ids(gemma3, 500)
    path = api.export_row(saved(gemma3, tokens), tmp_path)
    emptied()
    cold = reply(gemma3, tokens)
    emptied()
    api.import_rows(path)
    warm = reply(gemma3, tokens)
    assert (cold[:2], warm[:2]) == (("cold", 0), ("exact", 500))
    assert warm[2] == cold[2]
    assert reply(gemma3, [*tokens[:400], 5])[:2] == ("partial", 400)


@pytest.mark.parametrize("length", [513, 1700])
def test_a_row_beyond_the_window_goes_on_from_its_end(
    gemma3: api.Model, tmp_path: Path, length: int
) -> None:
    """1536 cells are kept for the window's half, so of the longest some are reused."""
    tokens = ids(gemma3, length)
    path = api.export_row(saved(gemma3, tokens), tmp_path)
    longer = [*tokens, 5, 6, 7]
    expected = reply(gemma3, longer)
    assert expected[:2] == ("partial", length)
    emptied()
    assert len(api.import_rows(path)["imported"]) == 1
    found = reply(gemma3, longer)
    assert found[:2] == ("partial", length)
    assert found[2] == expected[2]
    # It cannot be cut, so it is of no use to others.
    assert reply(gemma3, [*tokens[: length - 1], 5])[:2] == ("cold", 0)


def test_logits_after_a_row_beyond_the_window_are_those_of_the_cold_run(tmp_path: Path) -> None:
    """The engine's own state, and a prompt that goes on from it in the same cuts."""
    options = ContextOptions(n_ctx=2048, n_seq_max=1, **THREADS)
    config = BackendConfig("llama", model_path=gemma3_path(), context=options)
    backend: Any = open_backend(config)
    tokens = prompt(backend, 10 * CHUNK + 20)
    prefill(backend, tokens, 0, 10 * CHUNK)
    size = backend.packed_size(0, 0, 10 * CHUNK)
    assert size == backend._memory.layout.size(10 * CHUNK)
    payload = bytearray(size)
    assert backend.pack(0, 0, 10 * CHUNK, memoryview(payload)) == size
    straight = prefill(backend, tokens, 10 * CHUNK, len(tokens))
    backend.clear(0)
    backend.unpack(0, 0, 10 * CHUNK, memoryview(payload))
    assert prefill(backend, tokens, 10 * CHUNK, len(tokens)) == straight
    backend.close()


def test_the_originals_state_of_a_windowed_model_is_taken_too(
    gemma3: api.Model, tmp_path: Path
) -> None:
    tokens = ids(gemma3, 700)
    path = api.export_row(saved(gemma3, tokens), tmp_path)
    longer = [*tokens, 5, 6, 7]
    expected = reply(gemma3, longer)
    emptied()
    own = engines_own(gemma3_path(), tokens, 2)
    assert len(own) == len(Path(path).read_bytes()) - offset(path)
    api.import_rows(untagged(path, own), trust=True)
    found = reply(gemma3, longer)
    assert found[:2] == ("partial", 700)
    assert found[2] == expected[2]
    emptied()
    damaged = bytearray(own)
    at = bytes(own).rindex((699).to_bytes(4, "little") + (1).to_bytes(4, "little"))
    damaged[at] ^= 1  # in the table of the window's half
    assert refused(untagged(path, bytes(damaged)), trust=True) == "rejected"
    assert refused(untagged(path, own[:-4]), trust=True) == "rejected"


def offset(path: str) -> int:
    return kvc.parse_meta(Path(path).read_bytes()).payload_offset


# -- states -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [mamba_path, hybrid_path])
def test_a_row_of_states_goes_on_after_export_and_import(path: Any, tmp_path: Path) -> None:
    with loaded(path()) as model:
        assert core().host(model).info.whole_rows
        tokens = ids(model, 300)
        file = api.export_row(saved(model, tokens), tmp_path)
        data = Path(file).read_bytes()
        longer = [*tokens, 7, 8, 9]
        emptied()
        cold = reply(model, longer)
        emptied()
        api.import_rows(file)
        warm = reply(model, longer)
        assert (cold[:2], warm[:2]) == (("cold", 0), ("partial", 300))
        assert warm[2] == cold[2]
        payload = bytearray(data[kvc.parse_meta(data).payload_offset :])
        payload[12] ^= 0x80
        emptied()
        assert refused(untagged(file, bytes(payload)), trust=True) == "rejected"
