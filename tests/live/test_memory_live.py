"""A budget for models, as Erlang code sees it: who is evicted, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from erllama_py import api
from tests.live.erlnode import ErlNode
from tests.live.serving import Serving


@pytest.fixture
def llm(peer: ErlNode, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    monkeypatch.setenv("ERLLAMA_MODEL_MEMORY_BYTES", "100")
    serving = Serving(peer)
    yield serving
    for info in api.list_models():
        api.unload(info["id"])
    serving.stop()


def load(name: str, size: int, more: str = "") -> str:
    """Return the call that loads a stub of so many bytes."""
    opts = f"stub_opts => #{{weights_bytes => {size}}}{more}"
    return f'erllama:load_model(<<"{name}">>, #{{{opts}}})'


def test_an_evicted_model_is_down_and_not_found(llm: Serving) -> None:
    seen = llm.eval(f"""begin
        {{ok, _}} = {load("old", 60)},
        #{{pid := Pid}} = erllama:model_info(<<"old">>),
        Watch = monitor(process, Pid),
        {{ok, <<"new">>}} = {load("new", 60)},
        receive {{'DOWN', Watch, process, Pid, Down}} -> ok end,
        {{Down, catch erllama:status(<<"old">>), erllama:unload(<<"old">>)}}
    end""")
    assert seen == (
        "{{shutdown,evicted},"
        "{'EXIT',{exception,{noproc,{erllama_model,not_found,<<\"old\">>}}}},"
        "{error,not_found}}"
    )


def test_a_load_that_cannot_fit_is_refused_with_the_numbers(llm: Serving) -> None:
    seen = llm.eval(f"""begin
        {{ok, _}} = {load("kept", 60, ", keep => true")},
        {{error, {{no_memory, Numbers}}}} = {load("big", 70)},
        {{ok, _}} = {load("small", 40)},
        {{lists:sort(maps:to_list(Numbers)), length(erllama:models())}}
    end""")
    assert seen == "{[{idle,0},{limit,100},{needed,70},{used,60}],2}"
