"""Which file a model is: in its keys, in the cache's namespaces, and over its lives."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from pathlib import Path

import pytest

from erllama_py import api
from erllama_py._cache import key as keys
from erllama_py._engine import modelfile
from erllama_py._engine.modelfile import ModelFile
from erllama_py._engine.registry import core
from erllama_py._machine import fingerprint
from erllama_py.config import EVERYDAY_POLICY, LoadConfig, parse_load
from erllama_py.errors import ErllamaError
from erllama_py.testing import stub_model
from tests.models import hybrid_path, smollm2_path
from tests.waiting import wait_for

LONG_AGO = 1_700_000_000
PROMPT = list(range(3, 103))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return write(tmp_path / "model.gguf", b"weights")


@pytest.fixture
def slow(monkeypatch):
    """Take every file for one that is hashed for long; set the event, and it is done."""
    go, hashed = threading.Event(), modelfile.whole

    def whole(facts, digests, stopped):
        while not go.wait(0.01):
            if stopped():
                return None
        return hashed(facts, digests, stopped)

    monkeypatch.setattr(fingerprint, "WHOLE_FILE_BYTES", 0)
    monkeypatch.setattr(modelfile, "whole", whole)
    return go


def config_of(path: Path, **options: object) -> LoadConfig:
    return parse_load({"model_path": str(path), **options})


def sha(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


class TestModelFile:
    def test_a_file_named_by_its_content(self, path, tmp_path) -> None:
        one, copy = ModelFile(config_of(path)), write(tmp_path / "copy.gguf", b"weights")
        assert (one.fingerprint, one.mode, one.known) == (sha(path), "safe", True)
        assert one.content == f"safe:{sha(path).hex()}"
        assert ModelFile(config_of(copy)).content == one.content

    def test_a_fingerprint_of_the_caller_s_does_not_replace_the_check(self, path) -> None:
        zeros = ModelFile(config_of(path, fingerprint=bytes(32), fingerprint_mode="gguf_chunked"))
        assert (zeros.fingerprint, zeros.mode) == (bytes(32), "gguf_chunked")
        assert zeros.content == f"safe:{sha(path).hex()}"

    @pytest.mark.parametrize("mode", ["gguf_chunked", "fast_unsafe"])
    def test_a_mode_that_was_named(self, path, mode) -> None:
        found = ModelFile(config_of(path, fingerprint_mode=mode))
        assert found.mode == mode
        assert found.content.startswith(f"{mode}:")
        assert found.fingerprint != sha(path)

    def test_without_a_file(self) -> None:
        none = ModelFile(parse_load({}))
        assert (none.fingerprint, none.content, none.known) == (bytes(32), "", True)

    def test_a_file_that_is_not_there(self, tmp_path) -> None:
        with pytest.raises(ErllamaError, match="cannot be read") as caught:
            ModelFile(config_of(tmp_path / "absent.gguf"))
        assert caught.value.reason == "load_failed"

    def test_safe_by_name_is_made_behind_the_load(self, path, slow) -> None:
        found, told = ModelFile(config_of(path, fingerprint_mode="safe")), threading.Event()
        assert (found.known, found.fingerprint, found.mode) == (False, bytes(32), "safe")
        found.when_known(told.set)
        assert not told.is_set()
        slow.set()
        assert told.wait(10)
        assert (found.known, found.fingerprint) == (True, sha(path))
        found.close()

    def test_hashing_ends_with_the_model(self, path, slow) -> None:
        found = ModelFile(config_of(path, fingerprint_mode="safe"))
        found.close()
        assert not any(one.name == "fingerprint" for one in threading.enumerate())
        assert not found.known

    def test_a_file_replaced_between_two_lives(self, path) -> None:
        found = ModelFile(config_of(path))
        before = found.content
        found.look()
        assert found.content == before
        write(path, b"other weights")
        found.look()
        assert found.content == f"safe:{sha(path).hex()}" != before


@pytest.mark.model
class TestLoads:
    @pytest.fixture
    def toy(self, tmp_path, monkeypatch) -> Path:
        source = hybrid_path()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
        target = Path(shutil.copy(source, tmp_path / "toy.gguf"))
        os.utime(target, (LONG_AGO, LONG_AGO))
        return target

    def load(self, path: Path, **options: object) -> api.Model:
        context = {"n_ctx": 512, "n_threads": 1, "n_threads_batch": 2}
        config = {"model_path": str(path), "context_opts": context, "policy": EVERYDAY_POLICY}
        return api.load_model({**config, **options})

    def kind(self, model: api.Model) -> str:
        result = api.prefill_only(model, PROMPT)
        return str(result["cache_hit_kind"])

    def test_a_copy_is_warm_and_another_mode_is_cold(self, toy, tmp_path) -> None:
        copy = Path(shutil.copy(toy, tmp_path / "copy.gguf"))
        with self.load(toy) as one, self.load(copy) as two:
            assert self.kind(one) == "cold"
            wait_for(lambda: self.kind(two) == "exact")
        with self.load(toy, fingerprint_mode="gguf_chunked") as three:
            assert self.kind(three) == "cold"
        modes = {space["fingerprint_mode"] for space in api.cache_snapshot()["namespaces"]}
        assert modes >= {"safe", "gguf_chunked"}

    def test_a_model_serves_while_its_file_is_hashed_and_is_cached_from_then_on(
        self, toy, slow
    ) -> None:
        with self.load(toy, fingerprint_mode="safe") as model:
            assert api.model_info(model)["fingerprint"] == bytes(32)
            assert [self.kind(model) for _ in range(2)] == ["cold", "cold"]
            assert api.prefill_only(model, PROMPT)["finish_key"] is None
            slow.set()
            wait_for(lambda: api.model_info(model)["fingerprint"] == sha(toy))
            wait_for(lambda: core().host(model).cache.namespace is not None)
            result = api.prefill_only(model, PROMPT)
            assert result["cache_hit_kind"] == "cold"
            assert result["finish_key"] == keys.make(
                sha(toy), "f16", bytes(32), keys.encode_tokens(PROMPT)
            )
            wait_for(lambda: self.kind(model) == "exact")

    def test_unloading_while_its_file_is_hashed(self, toy, slow) -> None:
        with self.load(toy, fingerprint_mode="safe") as model:
            assert self.kind(model) == "cold"
        assert not any(one.name == "fingerprint" for one in threading.enumerate())

    def test_the_file_s_quantisation_is_reported_and_part_of_keys(self) -> None:
        with self.load(Path(smollm2_path())) as model:
            info = api.model_info(model)
            assert (info["quant_type"], info["quant_bits"]) == ("q4_1", 4)
            found = api.prefill_only(model, PROMPT)["finish_key"]
        parts = (info["fingerprint"], "q4_1", bytes(32), keys.encode_tokens(PROMPT))
        assert found == keys.make(*parts)

    @pytest.mark.parametrize("kept", [0, 3, 4, 40, 3000])
    def test_a_damaged_file_is_an_error_of_the_load(self, toy, kept) -> None:
        damaged = toy.with_name("damaged.gguf")
        damaged.write_bytes(toy.read_bytes()[:kept])
        with pytest.raises(ErllamaError, match=r"damaged\.gguf") as caught:
            self.load(damaged)
        assert caught.value.reason in ("load_failed", "malformed_gguf")


class TestWhatKilledTheOriginal:
    """Values that its load took, and its first request died of."""

    @pytest.mark.parametrize(
        ("minimum", "saved"), [(0, True), (1, True), ("infinity", False), (10**30, False)]
    )
    def test_min_tokens_of_nothing_and_of_everything(self, minimum, saved) -> None:
        policy = {**EVERYDAY_POLICY, "min_tokens": minimum}
        policy["cold_min_tokens"] = policy["cold_max_tokens"] = "infinity"
        with stub_model(policy=policy) as model:
            first = api.prefill_only(model, PROMPT)
            assert (first["finish_key"] is not None) == saved
            expected = "exact" if saved else "cold"
            wait_for(lambda: api.prefill_only(model, PROMPT)["cache_hit_kind"] == expected)

    def test_no_slots_are_one(self) -> None:
        with stub_model(context_opts={"n_seq_max": 0}) as model:
            assert api.complete(model, "a", {"response_tokens": 2})["committed_tokens"] > 0

    @pytest.mark.parametrize("key", ["fingerprint", "ctx_params_hash"])
    @pytest.mark.parametrize("size", [0, 31, 33])
    def test_hashes_of_the_wrong_size(self, key, size) -> None:
        with pytest.raises(ErllamaError) as caught, stub_model(**{key: bytes(size)}):
            pass
        assert caught.value.reason == ("invalid", key, bytes(size))

    def test_a_quantisation_without_a_code_is_saved_and_found_under_its_name(self) -> None:
        for name in ("my_own", "another"):
            with stub_model(quant_type=name) as model:
                assert api.model_info(model)["quant_type"] == name
                result = api.prefill_only(model, PROMPT)
                assert result["cache_hit_kind"] == "cold"  # the other's key is the same
                wait_for(
                    lambda model=model: api.prefill_only(model, PROMPT)["cache_hit_kind"] == "exact"
                )
