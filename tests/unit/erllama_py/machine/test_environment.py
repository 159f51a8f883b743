"""Variables before the file, and errors that say which of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from erllama_py import config
from erllama_py._cache.policy import INFINITE, Policy
from erllama_py._machine import environment
from erllama_py._machine.environment import DEFAULTS, POLICY_KEYS, CacheSettings, Environment
from erllama_py.errors import ErllamaError
from erllama_py.otp import cache

KEYS = tuple(environment._KEYS)


@pytest.fixture
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that writes config.toml; no variable is set."""
    for key in KEYS:
        monkeypatch.delenv(environment._variable(key), raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))

    def write(text: str | bytes) -> Path:
        path = tmp_path / "erllama" / "config.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def variable(key: str) -> str:
    return environment._variable(key)


GOOD = {
    "min_tokens": ("4", "16", 4, 16),
    "cold_min_tokens": ("4", '"infinity"', 4, INFINITE),
    "cold_max_tokens": ("infinity", "100", INFINITE, 100),
    "continued_interval": ("1", "7", 1, 7),
    "boundary_trim_tokens": ("0", "7", 0, 7),
    "boundary_align_tokens": ("1", "7", 1, 7),
    "session_resume_wait_ms": ("0", "7", 0, 7),
    "evict_save_timeout_ms": ("0", "7", 0, 7),
    "fingerprint_mode": ("fast_unsafe", '"gguf_chunked"', "fast_unsafe", "gguf_chunked"),
    "tiers": (
        '[{"backend": "ram", "quota_mb": 1}]',
        '[{backend = "disk", quota_mb = 2}]',
        {"ram": 1 << 20},
        {"disk": 2 << 20},
    ),
    "scheduler": ('{"enabled": true}', "{interval_ms = 9}", {"enabled": True}, {"interval_ms": 9}),
    "writer_max_concurrent": ("1", "7", 1, 7),
    "thinking_signing_key": ("of the node", '"of the file"', b"of the node", b"of the file"),
    "cache.ram": ("512M", "1048576", 512 << 20, 1 << 20),
    "model_memory_bytes": ("8GB", '"8 gib"', 8 << 30, 8 << 30),
    "cache.disk": ("2g", '"3K"', 2 << 30, 3 << 10),
    "cache.dir": ("/a", '"/b"', Path("/a"), Path("/b")),
    "cache.ram_file": ("0", '"1M"', 0, 1 << 20),
    "cache.ram_file_dir": ("~/a", '"/b"', Path("~/a").expanduser(), Path("/b")),
    "cache.save": ("off", '"pressure"', "off", "pressure"),
    "cache.promote": ("0", "false", False, False),
}

BAD = {
    "min_tokens": ["-1", "few", "1.5", True, -1, 1.5, []],
    "cold_min_tokens": ["-1", "", {}],
    "cold_max_tokens": ["many", -1],
    "continued_interval": ["0", "infinity", 0],
    "boundary_trim_tokens": ["x", -1],
    "boundary_align_tokens": ["0", 0],
    "session_resume_wait_ms": ["infinity", -1, 2**63],
    "evict_save_timeout_ms": ["soon", -1],
    "fingerprint_mode": ["SAFE", "sha256", 1, ["safe"]],
    "tiers": [
        "ram",
        "{}",
        '[{"backend": "tape", "quota_mb": 1}]',
        '[{"backend": "ram"}]',
        "[" * 9999,
    ],
    "scheduler": ["system", "[]", "{", 5, [1]],
    "writer_max_concurrent": ["0", "two", 0],
    "model_memory_bytes": ["8 tons", "5I", "GB", "1.5G", -1],
    "thinking_signing_key": [5, True, [], {}],
    "cache.ram": ["12X", "M", "-1", "1.5G", 1.5, True],
    "cache.disk": ["half", -1],
    "cache.dir": [5, "a\0b"],
    "cache.ram_file": ["some", []],
    "cache.ram_file_dir": [5],
    "cache.save": ["later", True],
    "cache.promote": ["yes", 2, 0.5],
}


def toml(key: str, text: str) -> str:
    table, _, name = key.rpartition(".")
    return f"[{table}]\n{name} = {text}\n" if table else f"{name} = {text}\n"


def test_the_tables_here_are_complete() -> None:
    assert set(GOOD) == set(BAD) == set(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_variable_before_file_before_default(config_file, monkeypatch, key) -> None:
    in_variable, in_file, first, second = GOOD[key]
    default = Environment().setting(key)
    assert (default.value, default.origin) == (DEFAULTS.get(key), "default")
    assert Environment().get(key) is None

    path = config_file(toml(key, in_file))
    assert Environment().get(key) == second
    assert Environment().setting(key) == (key, second, str(path), None)

    monkeypatch.setenv(variable(key), in_variable)
    assert Environment().get(key) == first
    assert Environment().setting(key) == (key, first, variable(key), None)

    monkeypatch.setenv(variable(key), "  ")
    assert Environment().get(key) == second


@pytest.mark.parametrize(("key", "value"), [(key, v) for key in BAD for v in BAD[key]])
def test_what_cannot_be_names_place_key_and_value(config_file, monkeypatch, key, value) -> None:
    path = config_file(toml(key, json.dumps(value)))
    name = key.rpartition(".")[2]
    with pytest.raises(ErllamaError) as caught:
        Environment().get(key)
    assert caught.value.reason[:2] == ("invalid", key)
    assert all(part in str(caught.value) for part in (str(path), name, "cannot be", "give"))
    seen = {one.key: one for one in config.environment()}[key]
    assert seen.origin == str(path)
    assert seen.error is not None

    path.unlink()
    if isinstance(value, str) and value and "\0" not in value:
        monkeypatch.setenv(variable(key), value)
        with pytest.raises(ErllamaError) as caught:
            Environment().get(key)
        assert caught.value.reason == ("invalid", variable(key), value)
        assert variable(key) in caught.value.message


@pytest.mark.parametrize(
    "content", ["min_tokens = ", b"\xff\xfe", "a = " + "[" * 5000, "min_tokens = 1\nmin_tokens = 2"]
)
def test_a_file_that_is_no_toml_is_named(config_file, content) -> None:
    path = config_file(content)
    with pytest.raises(ErllamaError, match="cannot be read") as caught:
        Environment()
    assert str(path) in caught.value.message


def test_a_folder_in_the_place_of_the_file_is_named(config_file, tmp_path) -> None:
    (tmp_path / "erllama" / "config.toml").mkdir(parents=True)
    with pytest.raises(ErllamaError, match=r"config\.toml cannot be read"):
        Environment()


def test_everything_is_listed_with_keys_that_are_none(config_file) -> None:
    path = config_file("min_token = 4\nmin_tokens = 5\n[cache]\nrams = 1\n[other]\nx = 1\n")
    seen = {one.key: one for one in config.environment()}
    assert set(seen) == {*KEYS, "min_token", "cache.rams", "other"}
    assert seen["min_tokens"] == ("min_tokens", 5, str(path), None)
    for key in ("min_token", "cache.rams", "other"):
        assert seen[key].error is not None
        assert key in seen[key].error.message


def test_a_secret_is_read_and_not_shown(config_file, monkeypatch) -> None:
    monkeypatch.setenv("ERLLAMA_THINKING_SIGNING_KEY", "hush")
    assert Environment().get("thinking_signing_key") == b"hush"
    assert "hush" not in str(config.environment())


def test_the_defaults_listed_are_those_that_hold(config_file) -> None:
    policy = Policy()
    assert {key: getattr(policy, key) for key in POLICY_KEYS} == {
        key: DEFAULTS[key] for key in POLICY_KEYS
    }
    cache_settings = Environment().cache()
    for key in ("cache.ram_file", "cache.save", "cache.promote"):
        assert getattr(cache_settings, key.partition(".")[2]) == DEFAULTS[key]


def test_the_cache_where_nothing_is_set(config_file, tmp_path) -> None:
    found = Environment().cache()
    assert isinstance(found, CacheSettings)
    assert (found.ram, found.disk) == (None, None)
    assert found.disk_dir == tmp_path / "caches" / "erllama" / "kv"


def test_quotas_of_tiers_are_those_nobody_set_elsewhere(config_file, monkeypatch) -> None:
    tiers = [{"backend": "ram", "quota_mb": 3}, {"backend": "disk", "quota_mb": 4}]
    monkeypatch.setenv("ERLLAMA_TIERS", json.dumps(tiers))
    monkeypatch.setenv("ERLLAMA_CACHE_DISK", "0")
    found = Environment().cache()
    assert (found.ram, found.disk, found.ram_file) == (3 << 20, 0, 0)


def test_a_prefix_lookup_without_numbers_takes_those_of_the_environment(
    config_file, monkeypatch
) -> None:
    asked = []
    monkeypatch.setattr(
        "erllama_py.otp.cache_meta_srv.lookup_longest_prefix", lambda *given: asked.append(given)
    )
    cache.lookup_longest_prefix({}, [1])
    config_file("boundary_align_tokens = 3\nmin_tokens = 5\n")
    cache.lookup_longest_prefix({}, [1])
    cache.lookup_longest_prefix({}, [1], 7, 9)
    assert asked == [({}, [1], 2048, 512), ({}, [1], 3, 5), ({}, [1], 7, 9)]
