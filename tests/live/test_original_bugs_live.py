"""Two defects of erllama 0.3.0 that processes of a peer see, and that are not here.

The others are in tests/unit/erllama_py/engine/test_original_bugs.py.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from erllama_py import api
from erllama_py._engine.registry import core
from erllama_py.testing import stub_model
from tests.live.erlnode import ErlNode
from tests.live.serving import Serving
from tests.waiting import wait_for

SLOW = {"step_delay_ms": 5}

ENDS = """
    fun Ends(Ref, Found) ->
        receive
            {Kind, Ref, Last} when Kind =:= erllama_done; Kind =:= erllama_error ->
                Ends(Ref, [{Kind, Last} | Found]);
            {_, Ref, _} -> Ends(Ref, Found)
        after 300 -> Found
        end
    end
"""
"""All terminal messages of a stream; the first may take a while, so it is waited for before."""


@pytest.fixture(scope="module")
def llm(peer: ErlNode) -> Iterator[Serving]:
    serving = Serving(peer)
    yield serving
    serving.stop()


def test_bug_11_a_dead_caller_stops_its_stream(llm: Serving) -> None:
    """Its own process, and one that started the stream for another that was killed."""
    with stub_model("m", context_opts={"n_seq_max": 2}, stub_opts=SLOW):
        llm.eval("""begin
            Reader = spawn(fun() -> receive stop -> ok end end),
            {ok, R} = erllama:infer(<<"m">>, [1], #{response_tokens => 4000}, Reader),
            put(reader, Reader), put(ref, R)
        end""")
        wait_for(lambda: api.queue_depth("m") == 1 and api.phase("m") == "generating")
        llm.eval("exit(get(reader), kill)")
        wait_for(lambda: api.queue_depth("m") == 0 and api.phase("m") == "idle")
        assert llm.eval("erllama:cancel(get(ref))") == "ok"


@pytest.mark.parametrize("end", ["unload", "crash"])
def test_bug_14_each_stream_hears_of_the_end_once(llm: Serving, end: str) -> None:
    with stub_model("m", in_process=False, stub_opts=SLOW) as model:
        llm.eval("""begin
            {ok, R} = erllama:infer(<<"m">>, [1], #{response_tokens => 4000}, self()),
            put(ref, R),
            receive {erllama_token_id, R, _} -> ok end
        end""")
        if end == "unload":
            llm.eval('erllama:unload(<<"m">>)')
        else:
            process = core().host(model).os_pid
            assert process is not None
            os.kill(process, signal.SIGKILL)
        seen = llm.eval(f"""begin
            R = get(ref),
            First = receive {{erllama_error, R, Why}} -> Why after 10000 -> none end,
            {{First, ({ENDS})(R, [])}}
        end""")
    assert seen == {"unload": "{{unloaded,shutdown},[]}", "crash": "{{model_down,killed},[]}"}[end]
