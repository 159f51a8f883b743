"""Rows as files, out of a model's cache and back into it, on the stub backend."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from erllama_py import api
from erllama_py._cache import kvc
from erllama_py._cache.key import decode_tokens
from erllama_py._cache.kvcfile import KvcDirectory
from erllama_py._engine.exchange import export
from erllama_py._engine.registry import core
from erllama_py.errors import BadCall, ErllamaError
from erllama_py.otp import cache_disk_srv, cache_ram, cache_writer
from erllama_py.testing import record, stub_model
from erllama_py.types import Atom
from tests.waiting import wait_for

PROMPT = list(range(1000, 1300))
ALL = (False, True)


@contextlib.contextmanager
def cutting(*, whole: bool = False, **options: object) -> Iterator[api.Model]:
    """A stub whose sequences can be cut, or one whose rows are whole.

    A step takes as long as it does with a real model, or restoring would not be worth it.
    """
    stub_opts = {"whole_rows": whole, "step_delay_ms": 5}
    with stub_model(stub_opts=stub_opts, **options) as model:
        yield model


def saved(model: str, tokens: list[int]) -> bytes:
    key: bytes = api.prefill_only(model, tokens)["finish_key"]
    # All of it: the row is counted once more when the request has ended.
    wait_for(lambda: core().cache.holds(key) and not core().host(model).requests)
    return key


def emptied() -> None:
    """Evict everything; nothing may be left that is held."""

    def empty() -> bool:
        core().cache.gc()
        return not core().cache.snapshot(limit=0)["blocks"]["payloads"]

    wait_for(empty)
    core().cache.counters.reset()


def hit(model: str, tokens: list[int]) -> tuple[str, int]:
    stats = record(api.infer(model, tokens, {"response_tokens": 2}))[-1].stats
    assert stats is not None
    return str(stats["cache_hit_kind"]), stats["prefix_len"]


def reason(call: Callable[..., object], *args: object, **options: object) -> object:
    with pytest.raises(ErllamaError) as caught:
        call(*args, **options)
    return caught.value.reason


def rewritten(path: str, meta: Callable[[kvc.Meta], dict], payload: bytes | None = None) -> Path:
    """Write the row of a file with other facts under the name that it has then."""
    data = Path(path).read_bytes()
    facts = kvc.parse_meta(data)
    known = {name: getattr(facts.meta, name) for name in facts.meta.__struct_fields__}
    changed = kvc.Meta(**{**known, **meta(facts.meta)})
    body = data[facts.payload_offset :] if payload is None else payload
    return KvcDirectory(Path(tempfile.mkdtemp(dir=Path(path).parent))).save(changed, body).path


# -- there and back -----------------------------------------------------------------------


@pytest.mark.parametrize("whole", ALL)
def test_an_exported_row_is_one_payload_of_exactly_its_tokens(whole: bool, tmp_path: Path) -> None:
    with cutting(whole=whole) as model:
        key = saved(model, PROMPT)
        before = api.counters()
        path = Path(api.export_row(key, tmp_path / "rows"))
        assert path == tmp_path / "rows" / f"{key.hex()}.kvc"
        (facts, payload) = kvc.parse(path.read_bytes(), key)
        assert bytes(payload) == struct.pack("<300I", *PROMPT)
        assert decode_tokens(facts.meta.tokens) == PROMPT
        assert facts.meta.engine == core().host(model).cache.namespace.description
        assert facts.meta.grade[:1] in ("P", "S")
        assert (facts.meta.save_reason, facts.meta.quant_bits) == ("cold", 16)
        moved = {name for name, value in api.counters().items() if value != before[name]}
        assert moved <= {"pack_total_ns", "bytes_ram"}
        assert api.last_cache_hit(model) == {"kind": "cold", "prefix_len": 0}
        assert hit(model, [*PROMPT, 7]) == ("partial", 300)


@pytest.mark.parametrize("whole", ALL)
def test_an_imported_row_is_a_hit_to_the_token(whole: bool, tmp_path: Path) -> None:
    with cutting(whole=whole) as model:
        key = saved(model, PROMPT)
        path = api.export_row(key, tmp_path)
        emptied()
        assert api.import_rows(path) == {"imported": [key], "refused": []}
        assert {name: n for name, n in api.counters().items() if name.startswith("saves")} == {
            name: 0 for name in api.counters() if name.startswith("saves")
        }
        assert hit(model, [*PROMPT, 7]) == ("partial", 300)
        # Without its logits a row of one piece is of use to longer prompts only.
        assert hit(model, PROMPT) == (("cold", 0) if whole else ("exact", 300))
        assert hit(model, [*PROMPT[:250], 7]) == (("cold", 0) if whole else ("partial", 250))


def test_what_is_there_already_stays(tmp_path: Path) -> None:
    with cutting() as model:
        key = saved(model, PROMPT)
        path = api.export_row(key, tmp_path)
        before = core().cache.snapshot()
        assert api.import_rows(path)["imported"] == [key]
        after = core().cache.snapshot()
        assert after["blocks"] == before["blocks"]
        assert len(after["rows"]) == len(before["rows"]) == 1
        emptied()  # and nothing is held by it


def test_a_row_that_ends_inside_a_longer_one_is_exported_at_its_own_length(
    tmp_path: Path,
) -> None:
    with cutting() as model:
        short = saved(model, PROMPT[:290])
        saved(model, PROMPT)
        data = Path(api.export_row(short, tmp_path)).read_bytes()
        payload = kvc.parse(data, short).payload
        assert bytes(payload) == struct.pack("<290I", *PROMPT[:290])


def test_a_file_written_by_one_model_is_read_by_its_like(tmp_path: Path) -> None:
    with cutting(context_opts={"n_ctx": 1024, "n_seq_max": 3}) as model:
        path = api.export_row(saved(model, PROMPT), tmp_path)
    emptied()
    with cutting(context_opts={"n_ctx": 2048}) as model:
        api.import_rows(path)
        assert hit(model, PROMPT)[0] == "exact"


def test_a_directory_is_read_as_far_as_its_files_are_good(tmp_path: Path) -> None:
    with cutting() as model:
        keys = {saved(model, PROMPT[:length]) for length in (64, 200)}
        for key in keys:
            api.export_row(key, tmp_path)
        (tmp_path / "note.txt").write_text("no row")
        (tmp_path / "bad.kvc").write_bytes(b"KVC\x01 and nothing else")
        emptied()
        found = api.import_rows(tmp_path)
        assert set(found["imported"]) == keys
        ((path, error),) = found["refused"]
        assert path == str(tmp_path / "bad.kvc")
        assert error.reason == "bad_header"


# -- what is not taken --------------------------------------------------------------------


def test_a_damaged_payload_is_a_miss_and_counted(tmp_path: Path) -> None:
    with cutting() as model:
        path = Path(api.export_row(saved(model, PROMPT), tmp_path))
        emptied()
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        assert reason(api.import_rows, path) == "damaged"
        assert api.counters()["corrupt_files"] == 1
        assert hit(model, PROMPT) == ("cold", 0)


@pytest.mark.parametrize("whole", ALL)
def test_a_payload_the_engine_does_not_take_is_a_miss_and_counted(
    whole: bool, tmp_path: Path
) -> None:
    with cutting(whole=whole) as model:
        path = api.export_row(saved(model, PROMPT), tmp_path)
        emptied()
        short = rewritten(path, lambda meta: {}, payload=bytes(4 * 299))
        assert reason(api.import_rows, short) == "rejected"
        assert api.counters()["corrupt_files"] == 1
        assert hit(model, PROMPT) == ("cold", 0)
        assert core().host(model).pending_len == 0


def test_another_engines_row_is_refused_with_what_differs(tmp_path: Path) -> None:
    with cutting() as model:
        path = api.export_row(saved(model, PROMPT), tmp_path)
        emptied()
        other = rewritten(path, lambda m: {"engine": m.engine.replace(b"stub 1", b"stub 2")})
        for trust in (False, True):
            with pytest.raises(ErllamaError, match="engine is stub 2, not stub 1") as caught:
                api.import_rows(other, trust=trust)
            assert caught.value.reason == "foreign"
        garbage = rewritten(path, lambda m: {"engine": b"\xff\x00"})
        assert reason(api.import_rows, garbage) == "foreign"
        assert hit(model, PROMPT) == ("cold", 0)


def test_a_file_that_does_not_say_its_engine_needs_somebodys_word(tmp_path: Path) -> None:
    with cutting() as model:
        path = api.export_row(saved(model, PROMPT), tmp_path)
        emptied()
        plain = rewritten(path, lambda m: {"engine": b"", "grade": ""})
        assert reason(api.import_rows, plain) == "untrusted"
        api.import_rows(plain, trust=True)
        assert hit(model, PROMPT)[0] == "exact"


def test_a_model_that_is_not_loaded_neither_exports_nor_imports(tmp_path: Path) -> None:
    with cutting() as model:
        key = saved(model, PROMPT)
        path = api.export_row(key, tmp_path)
    assert reason(api.export_row, key, tmp_path) == "model_not_loaded"
    assert reason(api.import_rows, path) == "model_not_loaded"
    with cutting(fingerprint=b"\x05" * 32):
        assert reason(api.export_row, key, tmp_path) == "model_not_loaded"
        assert reason(api.import_rows, path) == "model_not_loaded"
    emptied()
    assert reason(api.export_row, key, tmp_path) == "not_found"


def test_arguments_of_the_wrong_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadCall):
        api.export_row("key", tmp_path)  # type: ignore[arg-type]
    assert reason(api.import_rows, tmp_path / "none.kvc") == "enoent"
    (tmp_path / f"{bytes(32).hex()}.kvc").write_bytes(example())
    named = reason(api.import_rows, tmp_path / f"{bytes(32).hex()}.kvc")
    assert isinstance(named, tuple)
    assert named[0] == "key_mismatch"


def example() -> bytes:
    """A file as the original writes it."""
    meta = kvc.Meta(
        save_reason="cold",
        quant_bits=16,
        fingerprint=b"\xaa" * 32,
        fingerprint_mode="safe",
        quant_type="f16",
        ctx_params_hash=b"\xbb" * 32,
        tokens=struct.pack("<3I", 1, 2, 3),
        context_size=4096,
    )
    return kvc.build(meta, b"payload")


# -- beside running requests --------------------------------------------------------------


def test_it_waits_for_a_slot_and_gives_up_in_time(tmp_path: Path) -> None:
    with cutting() as model:
        key = saved(model, PROMPT)
        stream = api.infer(model, [1, 2, 3], {"response_tokens": 400})
        next(iter(stream))
        with pytest.raises(ErllamaError, match="no free slot") as caught:
            api.export_row(key, tmp_path, timeout_s=0.05)
        assert caught.value.reason == "busy"
        assert list(tmp_path.iterdir()) == []
        api.cancel(stream.ref)
        assert record(stream)[-1].kind == "done"
        assert Path(api.export_row(key, tmp_path)).exists()


def test_running_streams_go_on_beside_it(tmp_path: Path) -> None:
    with cutting(context_opts={"n_seq_max": 2}) as model:
        key = saved(model, PROMPT)
        stream = api.infer(model, [1, 2, 3], {"response_tokens": 100})
        next(iter(stream))
        path = api.export_row(key, tmp_path)
        api.import_rows(path)
        assert api.status(model) == "generating"
        stats = record(stream)[-1].stats
        assert stats is not None
        assert stats["completion_tokens"] == 100


def test_a_row_longer_than_the_context_is_refused(tmp_path: Path) -> None:
    with cutting() as model:
        path = api.export_row(saved(model, PROMPT), tmp_path)
    emptied()
    with cutting(context_opts={"n_ctx": 256}) as model:
        assert reason(api.import_rows, path) == "context_overflow"
        assert hit(model, PROMPT[:100]) == ("cold", 0)


def test_a_cache_without_room_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with cutting() as model:
        path = api.export_row(saved(model, PROMPT), tmp_path)
        emptied()
        monkeypatch.setattr(core().cache, "reserve", lambda nbytes: None)
        assert reason(api.import_rows, path) == "quota_exceeded"
    emptied()


def test_one_that_waits_survives_the_end_of_its_process(tmp_path: Path) -> None:
    with cutting() as model:
        path = api.export_row(saved(model, PROMPT), tmp_path)
    emptied()
    found: list[dict] = []
    with cutting(in_process=False) as model:
        host = core().host(model)
        stream = api.infer(model, [1, 2, 3], {"response_tokens": 400})
        next(iter(stream))
        waiting = threading.Thread(target=lambda: found.append(api.import_rows(path)))
        waiting.start()
        wait_for(lambda: len(host._requests) == 2)
        assert host.os_pid is not None
        os.kill(host.os_pid, signal.SIGKILL)
        waiting.join()
        assert len(found[0]["imported"]) == 1
        assert hit(model, PROMPT)[0] == "exact"


# -- under the original's names -----------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Atom]:
    name = Atom("exchange_disk")
    cache_disk_srv.start_link(name, tmp_path / "tier")
    yield name
    cache_disk_srv.stop(name)


def test_load_puts_a_row_of_the_engine_together(disk: Atom) -> None:
    with cutting(tier="disk", tier_srv=disk) as model:
        key = saved(model, PROMPT)
        assert core().cache.flush(5.0)
        core().cache.evict_bytes(1 << 40, ["ram"])
        info, payload = cache_disk_srv.load(disk, key)
        assert payload == struct.pack("<300I", *PROMPT)
        assert info["tokens"] == PROMPT
        assert info["payload_length"] == 1200
        assert info["engine"] == export(key).meta.engine
    assert reason(cache_disk_srv.load, disk, key) == "model_not_loaded"


def test_ram_load_answers_the_payload(disk: Atom) -> None:
    with cutting() as model:
        key = saved(model, PROMPT)
        assert cache_ram.load(key) == struct.pack("<300I", *PROMPT)
    assert reason(cache_ram.load, key) == "model_not_loaded"
    emptied()
    assert cache_ram.load(key) == "miss"


@pytest.mark.parametrize("through", ["save", "writer"])
def test_a_saved_row_with_its_engines_name_is_soon_the_engines(disk: Atom, through: str) -> None:
    with cutting() as model:
        key = saved(model, PROMPT)
        meta, payload = export(key)
        info, _ = cache_disk_srv.exported(key)
        emptied()
        assert meta.engine
        if through == "save":
            cache_disk_srv.save(disk, info, payload)
        else:
            cache_writer.save(disk, "disk", info, payload)
        wait_for(lambda: core().cache.holds(key))
        assert hit(model, PROMPT)[0] == "exact"


def test_a_saved_row_without_one_stays_a_file(disk: Atom, tmp_path: Path) -> None:
    with cutting() as model:
        key = saved(model, PROMPT)
        info, payload = cache_disk_srv.exported(key)
        emptied()
        del info["engine"]
        cache_disk_srv.save(disk, info, payload)
        assert hit(model, PROMPT) == ("cold", 0)
        emptied()
        api.import_rows(tmp_path / "tier", trust=True)
        assert hit(model, PROMPT)[0] == "exact"
