"""Loading, unloading, dying and coming back: real processes, stub backend."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from erllama_py import api
from erllama_py._engine.registry import core
from erllama_py.errors import ErllamaError, ModelGone
from erllama_py.testing import record, stub_model
from tests.waiting import wait_for

SLOW = {"step_delay_ms": 20}


def os_pid(model: str) -> int:
    pid = core().host(model).os_pid
    assert pid is not None
    return pid


def alive(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_an_id_is_taken_while_loaded_and_free_right_after() -> None:
    for _ in range(3):
        with stub_model("same"):
            with pytest.raises(ErllamaError) as caught, stub_model("same"):
                pass
            assert caught.value.reason == "already_loaded"
            assert api.phase("same") == "idle"
        assert api.last_cache_hit("same") is None


def test_ids_are_made_up_where_none_is_given_and_model_id_is_ignored() -> None:
    with stub_model(model_id=None) as one, stub_model() as two:
        assert one != two
        assert one.startswith("erllama_model_")
        assert {m["id"] for m in api.list_models()} >= {one, two}


def test_model_info_has_the_sixteen_keys() -> None:
    with stub_model() as model:
        info = api.model_info(model)
        assert set(info) == {
            *("id", "model_id", "pid", "status", "phase", "pending_len", "last_cache_hit"),
            *("backend", "context_size", "quant_type", "quant_bits", "quant_tag", "tier"),
            *("fingerprint", "loaded_at_monotonic", "vram_estimate_b"),
        }
        assert api.model_info(info["pid"])["id"] == model
        assert info["pid"] in api.models()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"backend": "erllama_model_llama"}, ("badkey", "model_path")),
        ({"backend": "nobody"}, "undef"),
        ({"model_path": ""}, "badarg"),
        ({"model_path": "/no/such/file.gguf"}, "load_failed"),
        ({"context_opts": {"n_seq_max": 257}}, "badarg"),
        ({"context_opts": {"flash_attn": "maybe"}}, "badarg"),
        ({"context_opts": {"n_ctx": -5}}, ("invalid", "n_ctx", -5)),
        ({"policy": {"min_tokens": "few"}}, ("invalid", "min_tokens", "few")),
        ({"fingerprint": b"short"}, ("invalid", "fingerprint", b"short")),
        ({"exactness": "roughly"}, ("invalid", "exactness", "roughly")),
        ({"tier": "disk", "tier_srv": "nobody"}, ("invalid", "tier_srv", "nobody")),
    ],
)
def test_a_bad_config_is_refused_and_leaves_the_id_free(config, reason) -> None:
    with pytest.raises(ErllamaError) as caught:
        api.load_model("bad", config)
    assert caught.value.reason == reason
    assert "bad" not in [m["id"] for m in api.list_models()]
    with stub_model("bad"):
        pass


def test_unload_ends_streams_queued_calls_and_the_process() -> None:
    seen = []
    forget = api.watch(lambda *event: seen.append(event))
    try:
        with stub_model("gone", in_process=False, stub_opts=SLOW) as model:
            process = os_pid(model)
            pid = api.models()[-1]
            live = api.infer(model, [1], {"response_tokens": 1000})
            queued = api.infer(model, [2], {"response_tokens": 1000})
            assert next(live).kind == "token"
            assert api.unload(model) == "ok"
            for stream in (live, queued):
                last = record(stream)[-1]
                assert last.kind == "error"
                assert last.reason[0] == "unloaded"
            wait_for(lambda: not alive(process))
            assert ("down", "gone", pid, "shutdown") in seen
            with pytest.raises(ModelGone):
                api.complete(pid, "a")
    finally:
        forget()


def test_kill_9_in_a_stream_fails_it_and_the_id_comes_back_with_a_new_pid() -> None:
    seen = []
    forget = api.watch(lambda *event: seen.append(event))
    try:
        with stub_model("phoenix", in_process=False, stub_opts=SLOW) as model:
            before = api.model_info(model)["pid"]
            live = api.infer(model, [1], {"response_tokens": 1000})
            queued = api.infer(model, [2], {"response_tokens": 2})
            assert next(live).kind == "token"
            os.kill(os_pid(model), signal.SIGKILL)
            last = record(live)[-1]
            assert last.kind == "error"
            assert last.reason == ("model_down", "killed")
            # It was not admitted: it survives and runs in the next life.
            assert record(queued)[-1].kind == "done"
            assert api.tokenize(model, "hello") == [47480723]
            after = api.model_info(model)["pid"]
            assert after != before
            assert ("down", "phoenix", before, "killed") in seen
            assert ("up", "phoenix", after, None) in seen
            assert api.complete(model, "a", {"response_tokens": 1})["generated"]
    finally:
        forget()


def test_a_waiting_call_learns_that_the_process_died() -> None:
    with stub_model(in_process=False, stub_opts={"step_delay_ms": 20}) as model:
        process = os_pid(model)
        killer = subprocess.Popen(
            [sys.executable, "-c", f"import os,time; time.sleep(0.3); os.kill({process}, 9)"]
        )
        with pytest.raises(ModelGone) as caught:
            api.complete(model, "a", {"response_tokens": 2000})
        killer.wait()
        assert caught.value.reason[0] == "killed"
        assert "killed with SIGKILL" in str(caught.value)


def test_a_call_by_id_waits_for_the_restart() -> None:
    with stub_model(in_process=False) as model:
        os.kill(os_pid(model), signal.SIGKILL)
        assert api.complete(model, "a b c", {"response_tokens": 2})["generated"]


def test_a_model_that_keeps_dying_is_given_up() -> None:
    seen = []
    forget = api.watch(lambda *event: seen.append(event))
    try:
        with stub_model("sick", in_process=False, stub_opts={"crash_at_step": 1}) as model:
            for _ in range(6):
                with pytest.raises(ModelGone):
                    api.complete(model, "a")
            wait_for(lambda: core().find("sick") is None)
            with pytest.raises(ModelGone):
                api.model_info(model)
        downs = [event for event in seen if event[0] == "down"]
        assert len(downs) == 6
        assert all(reason == ("signal", "SIGABRT") for *_, reason in downs)
    finally:
        forget()


CORE = """
import sys, time
from erllama_py import api
from erllama_py._engine.registry import core
from erllama_py.testing import stub_model
with stub_model("m", in_process=False, stub_opts={"step_delay_ms": 20}) as model:
    stream = api.infer(model, range(100), {"response_tokens": 1000})
    next(stream)
    print(core().host("m").os_pid, flush=True)
    time.sleep(60)
"""


def test_kill_9_of_the_core_leaves_nothing_within_two_seconds() -> None:
    shared = set(Path("/dev/shm").iterdir())
    python = subprocess.Popen([sys.executable, "-c", CORE], stdout=subprocess.PIPE, text=True)
    assert python.stdout is not None
    with python.stdout:
        model = int(python.stdout.readline())
    assert alive(model)
    python.kill()
    python.wait()
    wait_for(lambda: not alive(model), seconds=2.0)
    assert set(Path("/dev/shm").iterdir()) <= shared


SCRIPT = """
import sys
from erllama_py import api
model = api.load_model({"stub_opts": {"step_delay_ms": 1}, "policy": {"min_tokens": 16}})
tokens = [int(word) for word in sys.argv[1:]]
for event in api.infer(model, tokens, {"response_tokens": 4}):
    if event.token_id is not None:
        tokens.append(event.token_id)
    elif event.stats:
        print(event.stats["cache_hit_kind"], *tokens, flush=True)
"""


def test_the_last_reply_of_a_script_is_exact_in_the_next_one(tmp_path: Path) -> None:
    def run(tokens: list[str]) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *tokens],
            env=os.environ | {"ERLLAMA_CACHE_DISK": "64M", "ERLLAMA_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert not done.stderr
        return done.stdout.split()

    first = run([str(number) for number in range(100, 170)])
    assert first[0] == "cold"
    assert run(first[1:])[0] == "exact"


FORKING = """
import os, sys, time
from erllama_py import api
from erllama_py.testing import stub_model
loading = stub_model("m", in_process=False)
model = loading.__enter__()
from erllama_py._engine.registry import core
print(core().host("m").os_pid, flush=True)
if os.fork() == 0:
    try:
        api.model_info("m")
    except Exception as error:
        print(type(error).__name__, flush=True)
    sys.stdout.close()
    time.sleep(30)
    os._exit(0)
time.sleep(0.5)
os._exit(0)
"""


def test_a_forked_child_neither_has_the_models_nor_keeps_them_alive() -> None:
    python = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", FORKING], stdout=subprocess.PIPE, text=True
    )
    assert python.stdout is not None
    with python.stdout:
        model = int(python.stdout.readline())
        assert python.stdout.readline().strip() == "ModelGone"
    python.wait()
    wait_for(lambda: not alive(model), seconds=2.0)


def test_ctrl_c_to_the_process_group_does_not_reach_the_model() -> None:
    with stub_model(in_process=False) as model:
        process = os_pid(model)
        assert os.getsid(process) != os.getsid(0)
        os.kill(process, signal.SIGINT)
        time.sleep(0.1)
        assert api.complete(model, "a", {"response_tokens": 1})["generated"]
        assert os_pid(model) == process
