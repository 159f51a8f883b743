"""LoRA adapters of stub models: the list, whose rows are whose, and who computes with what.

The stub takes any file for an adapter, and computes the same with it; what a request was
admitted with shows in its keys.
"""

from __future__ import annotations

import hashlib
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from erllama_py import api
from erllama_py._cache import key as keys
from erllama_py._engine.adapterset import Adapter, AdapterSet
from erllama_py._engine.frames import Adapt, Admitted, Answer, Cancel, Lookup, Saved
from erllama_py._engine.registry import core
from erllama_py.config import EVERYDAY_POLICY
from erllama_py.errors import BadCall, ErllamaError, ModelGone
from erllama_py.testing import record, stub_model
from erllama_py.types import Ref
from tests.enginepeer import stub_peer
from tests.waiting import wait_for

PROMPT = list(range(1000, 1030))
"""Shorter than what tells the stub that it computes faster than it could restore."""
SLOW = {"step_delay_ms": 5}
FINGERPRINT = bytes([0x42] * 32)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "one.gguf"
    path.write_bytes(b"adapter-1")
    return path


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "two.gguf"
    path.write_bytes(b"adapter-2")
    return path


@pytest.fixture
def model() -> Iterator[api.Model]:
    with stub_model(fingerprint=FINGERPRINT) as loaded:
        yield loaded


def key_of(tokens: list[int], *adapters: tuple[bytes, float]) -> bytes:
    """Return the key under which these tokens are with adapters, as (content, scale)."""
    hashed = [(hashlib.sha256(content).digest(), scale) for content, scale in adapters]
    fingerprint = keys.effective_fingerprint(FINGERPRINT, hashed)
    return keys.make(fingerprint, "f16", bytes(32), keys.encode_tokens(tokens))


def scales(model: api.Model) -> list[float]:
    return [one["scale"] for one in api.list_adapters(model)]


# -- the list -----------------------------------------------------------------------------


def test_attached_ones_are_listed_in_order_and_a_change_moves_to_the_end(
    model: api.Model, file: Path, other: Path
) -> None:
    assert api.list_adapters(model) == []
    first = api.load_adapter(model, file)
    second = api.load_adapter(model, str(other).encode())
    third = api.load_adapter(model, str(file))
    assert len({first, second, third}) == 3
    assert api.list_adapters(model) == [
        {"handle": first, "scale": 1.0, "path": str(file)},
        {"handle": second, "scale": 1.0, "path": str(other)},
        {"handle": third, "scale": 1.0, "path": str(file)},
    ]
    assert api.set_adapter_scale(model, first, 2) == "ok"
    assert [one["handle"] for one in api.list_adapters(model)] == [second, third, first]
    assert type(api.list_adapters(model)[-1]["scale"]) is float
    assert api.unload_adapter(model, third) == "ok"
    assert scales(model) == [1.0, 2.0]


def test_a_models_methods(model: api.Model, file: Path) -> None:
    handle = model.load_adapter(file, scale=0.5)
    assert model.adapters == [{"handle": handle, "scale": 0.5, "path": str(file)}]
    assert model.set_adapter_scale(handle, 2.0) == model.unload_adapter(handle) == "ok"
    assert model.adapters == []


def test_it_is_attached_with_its_scale_at_once(
    model: api.Model, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request can be admitted between two steps, and compute with the file's full weight."""
    host = core().host(model)
    sets: list[list[float]] = []
    adapt = host.adapters._apply

    def noted(new: AdapterSet, *rest: Any) -> None:
        sets.append([one.scale for one in new.adapters])
        adapt(new, *rest)

    monkeypatch.setattr(host.adapters, "_apply", noted)
    model.load_adapter(file, 0.5)
    assert sets == [[0.5]]
    for bad, error in [("0.5", BadCall), (True, BadCall), (2.0**31, ErllamaError)]:
        with pytest.raises(error):
            api.load_adapter(model, file, bad)  # type: ignore[arg-type]
    assert scales(model) == sets[0]


@pytest.mark.parametrize("handle", [Ref(10**9), None, 5, b"x", [1], {}])
def test_unknown_handles(model: api.Model, handle: Any) -> None:
    assert api.unload_adapter(model, handle) == "ok"
    with pytest.raises(ErllamaError) as caught:
        api.set_adapter_scale(model, handle, 1.0)
    assert caught.value.reason == "not_found"


def test_a_handle_is_of_no_use_after_its_adapter_or_with_another_model(
    model: api.Model, file: Path
) -> None:
    handle = api.load_adapter(model, file)
    with stub_model() as second:
        assert api.unload_adapter(second, handle) == "ok"
    assert scales(model) == [1.0]
    assert api.unload_adapter(model, handle) == "ok"
    assert api.unload_adapter(model, handle) == "ok"
    with pytest.raises(ErllamaError, match="no adapter"):
        api.set_adapter_scale(model, handle, 1.0)


@pytest.mark.parametrize("scale", ["1.0", None, True, [1.0]])
def test_a_scale_that_is_no_number_is_a_bad_call(model: api.Model, file: Path, scale: Any) -> None:
    handle = api.load_adapter(model, file)
    with pytest.raises(BadCall):
        api.set_adapter_scale(model, handle, scale)
    assert scales(model) == [1.0]


@pytest.mark.parametrize("scale", [math.nan, math.inf, 2.0**31, -(2**40), 10**400])
def test_a_scale_that_no_key_can_tell_from_another_is_refused(
    model: api.Model, file: Path, scale: float
) -> None:
    handle = api.load_adapter(model, file)
    with pytest.raises(ErllamaError) as caught:
        api.set_adapter_scale(model, handle, scale)
    assert caught.value.reason == "badarg"
    assert scales(model) == [1.0]


def test_files_that_cannot_be_read_are_refused_by_their_error(
    model: api.Model, tmp_path: Path
) -> None:
    for path, reason in (
        (tmp_path / "none", "enoent"),
        (tmp_path, "eisdir"),
        (tmp_path / ("x" * 300), "enametoolong"),
        ("/dev/null", "einval"),
        ("", "badarg"),
        (b"a\0b", "badarg"),
        ("a" * 5000, "badarg"),
        (5, "badarg"),
        (None, "badarg"),
    ):
        with pytest.raises(ErllamaError) as caught:
            api.load_adapter(model, path)  # type: ignore[arg-type]
        assert caught.value.reason == reason
    assert api.list_adapters(model) == []


def test_unknown_models_exit(file: Path) -> None:
    for call in (
        lambda: api.load_adapter("nobody", file),
        lambda: api.unload_adapter("nobody", Ref(1)),
        lambda: api.set_adapter_scale("nobody", Ref(1), 1.0),
        lambda: api.list_adapters("nobody"),
    ):
        with pytest.raises(ModelGone):
            call()


# -- rows ---------------------------------------------------------------------------------


def test_keys_are_those_of_the_effective_fingerprint(
    model: api.Model, file: Path, other: Path
) -> None:
    def finish_key() -> bytes:
        result = api.prefill_only(model, PROMPT)
        assert isinstance(result["finish_key"], bytes)
        return result["finish_key"]

    one, two = b"adapter-1", b"adapter-2"
    assert finish_key() == key_of(PROMPT)
    first = api.load_adapter(model, file)
    assert finish_key() == key_of(PROMPT, (one, 1.0))
    second = api.load_adapter(model, other)
    api.set_adapter_scale(model, second, -0.75)
    assert finish_key() == key_of(PROMPT, (one, 1.0), (two, -0.75))
    assert api.model_info(model)["fingerprint"] == FINGERPRINT
    api.unload_adapter(model, second)
    api.set_adapter_scale(model, first, 0)
    assert finish_key() == key_of(PROMPT, (one, 0.0)) != key_of(PROMPT)
    twice = api.load_adapter(model, file)
    assert finish_key() == key_of(PROMPT, (one, 0.0), (one, 1.0))
    api.unload_adapter(model, first)
    api.unload_adapter(model, twice)
    assert finish_key() == key_of(PROMPT)


def test_rows_are_not_shared_between_sets_and_are_found_again(model: api.Model, file: Path) -> None:
    def kind() -> str:
        return str(api.prefill_only(model, PROMPT)["cache_hit_kind"])

    assert [kind(), kind()] == ["cold", "exact"]
    assert api.list_cached_prefixes(model, PROMPT) == len(PROMPT)
    handle = api.load_adapter(model, file)
    assert api.list_cached_prefixes(model, PROMPT) == 0
    assert [kind(), kind()] == ["cold", "exact"]
    api.set_adapter_scale(model, handle, 0.5)
    assert [kind(), kind()] == ["cold", "exact"]
    api.set_adapter_scale(model, handle, 1.0)
    assert kind() == "exact"
    api.unload_adapter(model, handle)
    assert api.list_cached_prefixes(model, PROMPT) == len(PROMPT)
    assert kind() == "exact"
    # The same file is the same adapter, whatever its name and handle.
    copy = file.with_name("copy")
    copy.write_bytes(file.read_bytes())
    api.load_adapter(model, copy)
    assert kind() == "exact"


def test_a_parent_key_of_another_set_is_none(model: api.Model, file: Path) -> None:
    parent = api.prefill_only(model, PROMPT)["finish_key"]
    api.load_adapter(model, file)
    stats = record(api.infer(model, [*PROMPT, 1], {"parent_key": parent}))[-1].stats
    assert stats is not None
    assert stats["cache_hit_kind"] == "cold"


def test_a_fingerprint_that_poses_as_one_with_adapters_gets_none_of_its_rows(
    model: api.Model, file: Path
) -> None:
    api.load_adapter(model, file)
    expected = api.prefill_only(model, PROMPT)["finish_key"]
    sha = hashlib.sha256(b"adapter-1").digest()
    posing = keys.effective_fingerprint(FINGERPRINT, [(sha, 1.0)])
    with stub_model(fingerprint=posing) as second:
        result = api.prefill_only(second, PROMPT)
    assert result["finish_key"] == expected
    assert result["cache_hit_kind"] == "cold"


# -- running requests ---------------------------------------------------------------------


def test_a_running_request_keeps_what_it_was_admitted_with(file: Path) -> None:
    with stub_model(fingerprint=FINGERPRINT, stub_opts=SLOW) as model:
        stream = api.infer(model, PROMPT, {"response_tokens": 20})
        next(stream)
        handle = api.load_adapter(model, file)
        api.set_adapter_scale(model, handle, 0.5)
        last = record(stream)[-1]
        assert last.stats is not None
        assert last.stats["finish_reason"] == "length"
        base = core().host(model).cache.spaces._made[0].space.rows
        wait_for(lambda: last.stats["finish_key"] in base)
        assert base[last.stats["finish_key"]].length == len(PROMPT) + 20
        result = api.prefill_only(model, PROMPT)
        assert result["finish_key"] == key_of(PROMPT, (b"adapter-1", 0.5))
        assert result["cache_hit_kind"] == "cold"


def test_requests_of_two_sets_run_one_after_the_other_in_the_order_they_came(
    file: Path,
) -> None:
    context = {"n_seq_max": 3}
    with stub_model(fingerprint=FINGERPRINT, stub_opts=SLOW, context_opts=context) as model:
        seen: list[str] = []

        def watch(name: str):
            return lambda event: seen.append(name) if event.kind in ("token_id", "done") else None

        api.infer(model, [1], {"response_tokens": 10}, watch("base"))
        wait_for(lambda: seen)
        api.load_adapter(model, file)
        api.infer(model, [2], {"response_tokens": 5}, watch("lora"))
        api.infer(model, [3], {"response_tokens": 5}, watch("lora too"))
        wait_for(lambda: seen.count("lora too") == 6)
        base = [at for at, name in enumerate(seen) if name == "base"]
        rest = seen[base[-1] + 1 :]
        assert len(base) == 11
        assert base[-1] == 10
        assert rest[0] == "lora"
        # They are of one set, and run together.
        assert rest.index("lora too") < 4


def one(number: int, path: Path, scale: float = 1.0) -> Adapter:
    return Adapter(number, os.fsencode(path), scale)


def test_a_queued_request_takes_what_there_is_when_its_turn_comes(file: Path) -> None:
    with stub_peer(n_ctx=512, stub=SLOW) as peer:
        peer.grant()
        peer.submit(1, PROMPT, 300)
        peer.cold(1)
        peer.submit(2, PROMPT)
        peer.send(Adapt(50, AdapterSet(1, (one(7, file),))))
        peer.wait(Answer, 50)
        peer.send(Adapt(51, AdapterSet(2, (one(7, file, 0.5),))))
        peer.wait(Answer, 51)
        assert not peer.seen(Lookup, 2)
        peer.send(Cancel(1))
        peer.cold(2)
        peer.finish(1, 2)
        assert peer.wait(Lookup, 1).adapters == peer.wait(Admitted, 1).adapters == 0
        assert peer.wait(Lookup, 2).adapters == peer.wait(Admitted, 2).adapters == 2


def test_parked_sequences_and_repeats_of_another_set_are_not_gone_on_from(file: Path) -> None:
    with stub_peer(n_ctx=512, n_seq_max=2) as peer:
        peer.grant()
        for number in (1, 2):
            peer.submit(number, PROMPT)
            peer.cold(number)
            peer.finish(number)
        peer.send(Adapt(50, AdapterSet(1, (one(7, file),))))
        peer.wait(Answer, 50)
        peer.submit(3, PROMPT)
        assert peer.wait(Lookup, 3).adapters == 1
        peer.cold(3)
        peer.finish(3)
        # Computed anew and stored anew, though the same tokens were just stored.
        ends = [row.tail.end for row in peer.seen(Saved, 3) if row.tail]
        assert ends == [len(PROMPT), len(PROMPT) + 1]


# -- the process --------------------------------------------------------------------------


def os_pid(model: api.Model) -> int:
    pid = core().host(model).os_pid
    assert pid is not None
    return pid


def test_a_restarted_process_has_the_adapters(file: Path) -> None:
    with stub_model(fingerprint=FINGERPRINT, in_process=False) as model:
        handle = api.load_adapter(model, file)
        api.set_adapter_scale(model, handle, 0.25)
        before = api.prefill_only(model, PROMPT)
        rows = core().host(model).cache.namespace.space.rows
        wait_for(lambda: before["finish_key"] in rows)
        os.kill(os_pid(model), signal.SIGKILL)
        after = api.prefill_only(model, PROMPT)
        assert after["finish_key"] == before["finish_key"]
        assert after["finish_key"] == key_of(PROMPT, (b"adapter-1", 0.25))
        assert after["cache_hit_kind"] == "exact"
        assert api.list_adapters(model) == [{"handle": handle, "scale": 0.25, "path": str(file)}]
        api.unload_adapter(model, handle)
        assert api.prefill_only(model, PROMPT)["finish_key"] == key_of(PROMPT)


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_bytes(b"another")])
def test_a_model_is_not_restarted_without_an_adapter_it_had(file: Path, change: Any) -> None:
    with stub_model("bereft", in_process=False) as model:
        api.load_adapter(model, file)
        change(file)
        assert api.prefill_only(model, PROMPT)["finish_key"]
        os.kill(os_pid(model), signal.SIGKILL)
        wait_for(lambda: core().find("bereft") is None)
        with pytest.raises(ModelGone):
            api.prefill_only(model, PROMPT)


def test_a_file_that_was_only_touched_is_the_same(file: Path) -> None:
    with stub_model(in_process=False) as model:
        handle = api.load_adapter(model, file)
        file.write_bytes(file.read_bytes())
        os.kill(os_pid(model), signal.SIGKILL)
        assert api.prefill_only(model, PROMPT)["finish_key"]
        assert api.list_adapters(model) == [{"handle": handle, "scale": 1.0, "path": str(file)}]


def test_an_end_while_adapters_change_is_an_error_and_leaves_the_list(file: Path) -> None:
    # The step that is slow keeps the change waiting until the process is gone.
    hooks = {"step_delay_ms": 400}
    with stub_model(in_process=False, policy=EVERYDAY_POLICY, stub_opts=hooks) as model:
        stream = api.infer(model, [1], {"response_tokens": 100})
        next(stream)
        process = os_pid(model)
        host = core().host(model)
        asked = host._ask

        def ask_and_kill(frame_of):
            def frame(number):
                os.kill(process, signal.SIGKILL)
                return frame_of(number)

            return asked(frame)

        host._ask = ask_and_kill  # type: ignore[method-assign]
        with pytest.raises(ErllamaError) as caught:
            api.load_adapter(model, file)
        host._ask = asked  # type: ignore[method-assign]
        assert caught.value.reason == "exception"
        assert api.list_adapters(model) == []
        assert record(stream)[-1].kind == "error"
        assert api.load_adapter(model, file)
