"""The original's modules of models and streams, in Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from erllama_py import api
from erllama_py.errors import BadCall, ErllamaError, ModelGone
from erllama_py.otp import cache_key, inflight, model, model_sup, registry
from erllama_py.testing import stub_model
from erllama_py.types import Atom, ModelPid, Ref
from tests.waiting import wait_for

TOKENS = list(range(20))


@pytest.fixture
def slow() -> Iterator[str]:
    """A model with one slot that takes its time."""
    with stub_model(
        "slow", stub_opts={"step_delay_ms": 20}, context_opts={"n_seq_max": 1}
    ) as loaded:
        yield str(loaded)


def reason(call: Callable[..., object], *args: object) -> object:
    with pytest.raises(ErllamaError) as caught:
        call(*args)
    return caught.value.reason


def test_ids_and_pids() -> None:
    with stub_model("named"):
        pid = registry.whereis_name("named")
        assert isinstance(pid, ModelPid)
        assert registry.whereis_name(b"named") == pid == registry.send("named", "hello")
        assert ("named", pid) in registry.all()
        assert (None, pid, "worker", ["erllama_model"]) in model_sup.models()
        assert registry.register_name("named", pid) == registry.register_name("x", pid) == "no"
        assert reason(registry.unregister_name, "named") == "not_supported"
        assert reason(model_sup.start_model, "named", {}) == ("already_started", pid)
    assert registry.whereis_name("named") is None
    assert registry.whereis_name(Atom("named")) is None
    assert registry.whereis_name(5) is None
    assert registry.unregister_name("named") == "named"
    assert reason(registry.send, "named", 1) == ("badarg", ("named", 1))


def test_a_model_is_started_and_stopped() -> None:
    config = {"backend": "erllama_model_stub", "in_process": True}
    pid = model.start_link("child", config)
    assert pid == registry.whereis_name("child")
    assert model.stop("child") == "ok"
    with pytest.raises(ModelGone):
        model.stop("child")
    assert reason(model_sup.stop_model, "child") == "not_found"


def test_what_addresses_a_models_rows() -> None:
    fingerprint = b"\x05" * 32
    with stub_model("keyed", fingerprint=fingerprint, quant_type="q4_k_m"):
        meta = model.cache_key_meta("keyed")
        assert meta == {
            "fingerprint": fingerprint,
            "quant_type": "q4_k_m",
            "ctx_params_hash": bytes(32),
        }
        key = cache_key.make({**meta, "tokens": TOKENS})
        assert model.prefill_only("keyed", TOKENS)["finish_key"] == key
        row = inflight.obs_get("keyed")
        assert row is not None
        assert row[:3] == ("keyed", "idle", 0)
        assert row[4] == api.model_info("keyed")["last_cache_hit"]["prefix_len"]
    assert inflight.obs_get("keyed") is None
    with pytest.raises(ModelGone):
        model.cache_key_meta("keyed")


def test_streams_are_found_while_they_live(slow: str) -> None:
    pid = registry.whereis_name(slow)
    with api.infer(slow, [1], {"response_tokens": 200}) as first:
        wait_for(lambda: inflight.queue_depth(pid) == 1)
        with api.infer(slow, [2], {"response_tokens": 200}) as second:
            assert inflight.lookup(first.ref) == inflight.lookup(second.ref) == pid
            assert set(inflight.all()) == {(first.ref, pid), (second.ref, pid)}
            assert inflight.queue_depth() == inflight.queue_depth(pid) == 1
            assert inflight.queue_depth(ModelPid(0)) == 0
    wait_for(lambda: inflight.all() == [])
    assert reason(inflight.lookup, first.ref) == "not_found"
    assert reason(inflight.lookup, Ref(0)) == reason(inflight.lookup, "ref") == "not_found"


def test_the_tables_are_views() -> None:
    refusals: list[tuple[Callable[..., object], tuple[object, ...]]] = [
        (inflight.register, (Ref(1), ModelPid(1))),
        (inflight.unregister, (Ref(1),)),
        (inflight.obs_put, ("m", ())),
        (inflight.obs_delete, ("m",)),
    ]
    for refused, args in refusals:
        assert reason(refused, *args) == "not_supported"
    with pytest.raises(BadCall):
        inflight.queue_depth("m")  # type: ignore[arg-type]  # that is what is refused
